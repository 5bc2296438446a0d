"""Small worlds in which everything is known: finite data sets with their exact denoiser (float64, dense states).

For data {y_k} with weights w_k the posterior of an item given x_t is

    p(k | x_t) = softmax_k( log w_k + t / (1 - t)^2 sum_l <x_l, y_kl> ),        D_t(x)_l = sum_k p(k | x_t) y_kl.
"""

from functools import cache

import torch
from torch import Tensor

from examples.sudoku.make_grids import all_4x4
from modeling_flm.clock_flm import Clock
from modeling_flm.flow_flm import flow_map_step, velocity

DECIDED = torch.tensor(1 - 1e-6, dtype=torch.float64)  # tau


class World:
    """A finite data set: ids (items, length) in [0, vocab_size), and the weight of each item."""

    def __init__(self, ids: Tensor, vocab_size: int, weights: Tensor | None = None):
        self.ids, self.vocab_size = ids, vocab_size
        self.weights = torch.full((len(ids),), 1 / len(ids)) if weights is None else weights
        self.one_hot = torch.nn.functional.one_hot(ids, vocab_size).double()
        self.clock = Clock(vocab_size)

    def posterior(self, state: Tensor, t: Tensor) -> Tensor:
        """Probability of each item, (batch, items), given states (batch, length, V) at t, a scalar or (batch,)."""
        match = state.flatten(1) @ self.one_hot.flatten(1).T
        return (self.weights.double().log() + match * (t / (1 - t) ** 2).reshape(-1, 1)).softmax(-1)

    def denoise(self, state: Tensor, t: Tensor) -> Tensor:
        """The exact denoiser D_t(x), (batch, length, V)."""
        return torch.einsum("bk,klv->blv", self.posterior(state, t), self.one_hot)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Ids (count, length) of items drawn by weight."""
        return self.ids[torch.multinomial(self.weights, count, replacement=True, generator=generator)]

    def noise(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.ids.shape[1], self.vocab_size, dtype=torch.float64, generator=generator)

    def euler(self, state: Tensor, steps: int, end: float = 1.0) -> Tensor:
        """`steps` Euler steps from tau = 0 to `end`; for end = 1 the last one is the jump to the denoiser's mean."""
        t = self.clock.t(torch.linspace(0, end, steps + 1, dtype=torch.float64))
        for now, then in zip(t[:-1], t[1:], strict=True):
            state = flow_map_step(state, self.denoise(state, now), now, then)
        return state

    def flow(self, state: Tensor, steps: int, end: float) -> Tensor:
        """The flow from tau = 0 to `end` < 1 by Runge-Kutta of order 4: exact for all that is tested against it."""
        t = self.clock.t(torch.linspace(0, end, steps + 1, dtype=torch.float64))
        for now, then in zip(t[:-1], t[1:], strict=True):
            state = self._runge_kutta(state, now, then)
        return state

    def carry(self, state: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
        """The flow of each state (batch, length, V) from `start` to `end` < 1, interpolation times (batch,)."""
        now, size = start, (end - start) / steps
        for _ in range(steps):
            state = self._runge_kutta(state, now, now + size)
            now = now + size
        return state

    def _runge_kutta(self, state: Tensor, now: Tensor, then: Tensor) -> Tensor:
        def slope(x: Tensor, t: Tensor) -> Tensor:
            return velocity(x, self.denoise(x, t), t)

        middle = (now + then) / 2
        h = (then - now).reshape(-1, 1, 1)
        k1 = slope(state, now)
        k2 = slope(state + h / 2 * k1, middle)
        k3 = slope(state + h / 2 * k2, middle)
        k4 = slope(state + h * k3, then)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def two_time_denoiser(self, state: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
        """The exact delta_{s,t}(x) of the flow map, (batch, length, V), for interpolation times s <= t, s < 1.

        From `DECIDED` on the text is as good as certain: the denoiser no longer changes, and one step is exact.
        """
        s, t = start.reshape(-1, 1, 1), end.reshape(-1, 1, 1)
        middle = torch.minimum(end, start.clamp(min=float(self.clock.t(DECIDED))))
        arrived = self.carry(state, start, middle, steps)
        arrived = flow_map_step(arrived, self.denoise(arrived, middle), middle, end)
        apart = (t - s) > 1e-9
        delta = ((1 - s) * arrived - (1 - t) * state) / torch.where(apart, t - s, 1)
        return torch.where(apart, delta, self.denoise(state, start))

    def items(self, ids: Tensor) -> Tensor:
        """Index of each sequence (batch, length) among the items, -1 for one that is not among them."""
        same = (ids[:, None] == self.ids[None]).all(-1)
        return torch.where(same.any(-1), same.int().argmax(-1), -1)


@cache
def two_cities(share: float = 0.7) -> World:
    """{"new york", "san diego"}, `share` of them the first: independent tokens would give spurious pairs."""
    return World(torch.tensor([[0, 1], [2, 3]]), 4, torch.tensor([share, 1 - share]))


@cache
def shidoku() -> World:
    """The 288 4x4 Sudoku grids."""
    return World(torch.from_numpy(all_4x4() - 1), 4)
