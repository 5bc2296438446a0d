"""Samplers: ways to carry an embedded state from noise (tau = 0) to text (tau = 1), one network evaluation a step.

Each is a class with the interface of [`Sampler`]; `generate` asks for a prediction between `target` and `advance`, and
`finish` takes the tokens of the last one.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .flow_flm import bridge_step, flow_map_step, renoise
from .guidance_flm import Noise, Prediction, Predictor


class Sampler(ABC):
    """The interface, and what all share.

    Args:
        predictor (`Predictor`): whose clock and tables are used.
        config (`FlowGenerationConfig`): its settings; those in `settings` of the class are read.
        tau (`Tensor`): (N + 1,) the grid: tau of the N evaluations, ascending from 0, and 1.
        noise (`Iterator`): fresh embedded noise and uniform numbers for each `next`.
    """

    settings: tuple[str, ...] = ()
    two_time = False  # asks the network of a flow map for jumps

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        self.predictor, self.config, self.noise = predictor, config, noise
        self.clock = predictor.model.clock
        self.tau, self.t = tau, self.clock.t(tau)

    def target(self, step: int) -> Tensor | None:
        """tau that the network is asked to jump to in this step, a scalar; None for the denoiser of one time."""
        return None

    @abstractmethod
    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        """The state (batch, length, width) at tau[step + 1] from that at tau[step] and the prediction there: each
        sampler's own."""

    def finish(self, prediction: Prediction) -> Tensor:
        """Ids (batch, length) of the last prediction; -1 where it is not finite."""
        return prediction.most_likely()


class Euler(Sampler):
    """The Euler scheme of the probability flow `dx/dt = (D_t(x) - x) / (1 - t)`, of first order."""

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        return flow_map_step(state, prediction.embedding(), self.t[step], self.t[step + 1])


class Multistep(Sampler):
    """A second-order scheme at the cost of Euler's. With m = t / (1 - t) and y = x / (1 - t) the probability flow is
    `dy/dm = D`; Euler's scheme takes D as constant in m over a step, this one as the line through the last two
    evaluations (Adams-Bashforth). Lines in log m (DPM-Solver++(2M)) lose the order near t = 0, where m = 0.
    """

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        super().__init__(predictor, config, tau, noise)
        t = self.t.double()
        self.width = (t / (1 - t)).diff()  # of each step, in m
        self.before: Tensor | None = None

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        extrapolated = denoised = prediction.embedding()
        if self.before is not None:
            ahead = (self.width[step] / (2 * self.width[step - 1])).float()
            extrapolated = denoised + ahead * (denoised - self.before)
        self.before = denoised
        return flow_map_step(state, extrapolated, self.t[step], self.t[step + 1])


class FlowMap(Sampler):
    """Jumps of the flow map, with noise of strength gamma put back after each.

    A step from t to t' jumps beyond it, to t~ with `1 - t~ = (1 - t') sqrt(1 - gamma^2)`, and returns to t' with fresh
    noise: gamma = 0 is the deterministic map, gamma = 1 goes to the end and noises anew. Between them
    `renoise="official"` (the published form, with delta_{t,t~} for the unknown clean end) changes the marginals,
    `renoise="markov"` keeps them.
    """

    settings = ("gamma", "renoise")
    two_time = True

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        super().__init__(predictor, config, tau, noise)
        self.gamma = config.gamma or 0.0
        # t~ of every step; the last one goes to the end.
        self.beyond = 1 - (1 - self.t[1:]) * (1 - self.gamma**2) ** 0.5
        self.tau_beyond = self.clock.tau(self.beyond) if self.gamma else self.tau[1:]

    def target(self, step: int) -> Tensor:
        return self.tau_beyond[step]

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        delta, beyond, then = prediction.embedding(), self.beyond[step], self.t[step + 1]
        state = flow_map_step(state, delta, self.t[step], beyond)
        if self.gamma == 0:
            return state
        noise, _ = next(self.noise)
        if self.config.renoise == "markov":
            return renoise(state, noise, beyond, then)
        return state + (then - beyond) * delta + self.gamma * (1 - then) * noise


class Bridge(Sampler):
    """The marginal-conditioned bridge (arXiv 2605.13681), the sampler with a temperature: each position's token is
    drawn from the denoiser, and the state from the Gaussian bridge that ends in it. The last step takes the tokens.

    `temperature`, `top_k` and `top_p` shape the distribution that is drawn from; temperature 0 takes its mode.
    """

    settings = ("temperature", "top_k", "top_p")

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        noise, uniform = next(self.noise)
        tokens = self._draw(prediction, uniform)
        end = self.predictor.embed(tokens.clamp(min=0))
        end = end.masked_fill((tokens < 0)[..., None], torch.nan)  # which `finish` will see
        return bridge_step(state, end, noise, self.t[step], self.t[step + 1])

    def finish(self, prediction: Prediction) -> Tensor:
        _, uniform = next(self.noise)
        return self._draw(prediction, uniform)

    def _draw(self, prediction: Prediction, uniform: Tensor) -> Tensor:
        config = self.config
        if config.temperature == 0:
            return prediction.most_likely()
        temperature = 1.0 if config.temperature is None else config.temperature
        return prediction.draw(uniform, temperature=temperature, top_k=config.top_k, top_p=config.top_p)


SAMPLERS: dict[str, type[Sampler]] = {"euler": Euler, "multistep": Multistep, "flow_map": FlowMap, "bridge": Bridge}
SETTINGS = tuple(name for sampler in SAMPLERS.values() for name in sampler.settings)
