"""Samplers: ways to carry an embedded state from noise (tau = 0) to text (tau = 1), one network evaluation a step.

Each is a class with the interface of [`Sampler`]; `generate` calls the network between `target` and `advance`, and
`finish` after the last evaluation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .flow_flm import bridge_step, draw_token, flow_map_step, renoise

Noise = Iterator[tuple[Tensor, Tensor]]  # embedded noise (batch, length, d) and numbers (batch, length) in [0, 1]


class Sampler:
    """The interface, and what all share.

    Args:
        model (`FLMModel`): whose clock, tables and output layer are used.
        config (`FlowGenerationConfig`): its settings; those in `settings` of the class are read.
        tau (`Tensor`): (N + 1,) the grid: tau of the N evaluations, ascending from 0, and 1.
        noise (`Iterator`): fresh embedded noise and uniform numbers for each `next`.
    """

    settings: tuple[str, ...] = ()
    two_time = False  # asks the network of a flow map for jumps

    def __init__(self, model, config, tau: Tensor, noise: Noise):
        self.model, self.config, self.noise = model, config, noise
        self.tau, self.t = tau, model.clock.t(tau)

    def target(self, step: int) -> Tensor | None:
        """tau that the network is asked to jump to in this step, a scalar; None for the denoiser of one time."""
        return None

    def advance(self, state: Tensor, hidden: Tensor, step: int) -> Tensor:
        """The state (batch, length, d) at tau[step + 1] from that at tau[step] and the network's output there:
        each sampler's own."""
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """Ids (batch, length) of the last evaluation; -1 where it is not finite."""
        return self.model.decode_prediction(hidden)


class Euler(Sampler):
    """The Euler scheme of the probability flow `dx/dt = (D_t(x) - x) / (1 - t)`, of first order."""

    def advance(self, state: Tensor, hidden: Tensor, step: int) -> Tensor:
        return flow_map_step(state, self.model.embed_prediction(hidden), self.t[step], self.t[step + 1])


class Multistep(Sampler):
    """A second-order scheme at the cost of Euler's. With m = t / (1 - t) and y = x / (1 - t) the probability flow is
    `dy/dm = D`; Euler's scheme takes D as constant in m over a step, this one as the line through the last two
    evaluations (Adams-Bashforth). Lines in log m (DPM-Solver++(2M)) lose the order near t = 0, where m = 0.
    """

    def __init__(self, model, config, tau: Tensor, noise: Noise):
        super().__init__(model, config, tau, noise)
        t = self.t.double()
        self.width = (t / (1 - t)).diff()  # of each step, in m
        self.before: Tensor | None = None

    def advance(self, state: Tensor, hidden: Tensor, step: int) -> Tensor:
        prediction = denoised = self.model.embed_prediction(hidden)
        if self.before is not None:
            ahead = (self.width[step] / (2 * self.width[step - 1])).float()
            prediction = denoised + ahead * (denoised - self.before)
        self.before = denoised
        return flow_map_step(state, prediction, self.t[step], self.t[step + 1])


class FlowMap(Sampler):
    """Jumps of the flow map, with noise of strength gamma put back after each.

    A step from t to t' jumps beyond it, to t~ with `1 - t~ = (1 - t') sqrt(1 - gamma^2)`, and returns to t' with fresh
    noise: gamma = 0 is the deterministic map, gamma = 1 goes to the end and noises anew. Between them
    `renoise="official"` (the published form, with delta_{t,t~} for the unknown clean end) changes the marginals,
    `renoise="markov"` keeps them.
    """

    settings = ("gamma", "renoise")
    two_time = True

    def __init__(self, model, config, tau: Tensor, noise: Noise):
        super().__init__(model, config, tau, noise)
        self.gamma = config.gamma or 0.0
        # t~ of every step; the last one goes to the end.
        self.beyond = 1 - (1 - self.t[1:]) * (1 - self.gamma**2) ** 0.5
        self.tau_beyond = model.clock.tau(self.beyond) if self.gamma else self.tau[1:]

    def target(self, step: int) -> Tensor:
        return self.tau_beyond[step]

    def advance(self, state: Tensor, hidden: Tensor, step: int) -> Tensor:
        prediction, beyond, then = self.model.embed_prediction(hidden), self.beyond[step], self.t[step + 1]
        state = flow_map_step(state, prediction, self.t[step], beyond)
        if self.gamma == 0:
            return state
        noise, _ = next(self.noise)
        if self.config.renoise == "markov":
            return renoise(state, noise, beyond, then)
        return state + (then - beyond) * prediction + self.gamma * (1 - then) * noise


class Bridge(Sampler):
    """The marginal-conditioned bridge (arXiv 2605.13681), the sampler with a temperature: each position's token is
    drawn from the denoiser, and the state from the Gaussian bridge that ends in it. The last step takes the tokens.

    `temperature`, `top_k` and `top_p` shape the distribution that is drawn from; temperature 0 takes its mode.
    """

    settings = ("temperature", "top_k", "top_p")

    def advance(self, state: Tensor, hidden: Tensor, step: int) -> Tensor:
        noise, uniform = next(self.noise)
        tokens = self._draw(hidden, uniform)
        end = self.model.embed_tokens(tokens.clamp(min=0))
        end = end.masked_fill((tokens < 0)[..., None], torch.nan)  # which `finish` will see
        return bridge_step(state, end, noise, self.t[step], self.t[step + 1])

    def finish(self, hidden: Tensor) -> Tensor:
        _, uniform = next(self.noise)
        return self._draw(hidden, uniform)

    def _draw(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        head, config = self.model.lm_head, self.config
        if config.temperature == 0:
            return self.model.decode_prediction(hidden)
        cap = self.model.config.final_logit_softcapping
        choice = dict(temperature=config.temperature or 1.0, top_k=config.top_k, top_p=config.top_p)
        tokens = draw_token(hidden.flatten(0, 1), head.weight, head.bias, uniform.flatten(), cap, **choice)
        return tokens.view(hidden.shape[:2])


SAMPLERS: dict[str, type[Sampler]] = {"euler": Euler, "multistep": Multistep, "flow_map": FlowMap, "bridge": Bridge}
SETTINGS = tuple(name for sampler in SAMPLERS.values() for name in sampler.settings)
