"""Samplers: ways to carry an embedded state from noise (tau = 0) to text (tau = 1), one network evaluation a step.

Each is a subclass of [`Sampler`]. In every step `generate` evaluates the network, for a jump to `target` if there is
one, and passes the prediction to `advance`; in the last step it passes it to `finish`, which takes the tokens.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .flow_flm import beyond, bridge_step, flow_map_step, noised_jump, renoise
from .guidance_flm import Noise, Prediction, Predictor
from .noise_flm import in_float64


class Sampler(ABC):
    """Base class of samplers. A subclass implements `advance`, and `target` or `finish` where it needs to.

    Args:
        predictor (`Predictor`): what evaluates the network; gives the clock and the embedding of tokens.
        config (`FlowGenerationConfig`): the settings, of which a sampler reads those named in its `settings`.
        tau (`Tensor`): (N + 1,) the grid: tau of the N evaluations, ascending from 0, and then 1.
        noise (`Iterator`): gives fresh embedded noise (batch, length, width) and uniform numbers (batch, length) at
            each `next`.
    """

    settings: tuple[str, ...] = ()
    two_time = False  # whether it asks the network for jumps, which only a flow map can make

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        self.predictor, self.config, self.noise = predictor, config, noise
        self.clock = predictor.model.clock
        self.tau, self.t = tau, self.clock.t(tau)

    def target(self, step: int) -> Tensor | None:
        """The tau to which the network is asked to jump in this step, a scalar; None asks for the denoiser."""
        return None

    @abstractmethod
    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        """The state (batch, length, width) at tau[step + 1], from the state and the prediction at tau[step]."""

    def finish(self, prediction: Prediction) -> Tensor:
        """The tokens of the last prediction, ids (batch, length); -1 where it is not finite."""
        return prediction.most_likely()


class Euler(Sampler):
    """The Euler scheme of the probability flow `dx/dt = (D_t(x) - x) / (1 - t)`; first order."""

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        return flow_map_step(state, prediction.embedding(), self.t[step], self.t[step + 1])


class Multistep(Sampler):
    """A second-order scheme of the probability flow, at the cost of Euler's.

    With m = t / (1 - t) and y = x / (1 - t) the flow is `dy/dm = D`. Over a step the Euler scheme takes D as constant
    in m; this one takes it as the line through the last two evaluations (Adams-Bashforth). DPM-Solver++(2M) takes
    lines in log m instead, which lose second order near t = 0, where m = 0.
    """

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        super().__init__(predictor, config, tau, noise)
        t = in_float64(self.t)
        self.width = (t / (1 - t)).diff()  # the width of each step in m
        self.before: Tensor | None = None

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        extrapolated = denoised = prediction.embedding()
        if self.before is not None:
            ahead = (self.width[step] / (2 * self.width[step - 1])).float()
            extrapolated = denoised + ahead * (denoised - self.before)
        self.before = denoised
        return flow_map_step(state, extrapolated, self.t[step], self.t[step + 1])


class FlowMap(Sampler):
    """Jumps of the flow map, each followed by fresh noise of strength gamma.

    gamma = 0 is the deterministic map; gamma = 1 jumps to the end and noises the text anew. For gamma between them
    `renoise="official"`, the published form ([`noised_jump`]), changes the marginals of the flow; `renoise="markov"`
    ([`renoise`]) keeps them.
    """

    settings = ("gamma", "renoise")
    two_time = True

    def __init__(self, predictor: Predictor, config, tau: Tensor, noise: Noise):
        super().__init__(predictor, config, tau, noise)
        self.gamma = config.gamma or 0.0
        # t~ of each step. That of the last one is the end, t = 1.
        self.beyond = beyond(self.t[1:], self.gamma)
        self.tau_beyond = self.clock.tau(self.beyond) if self.gamma else self.tau[1:]

    def target(self, step: int) -> Tensor:
        return self.tau_beyond[step]

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        delta, now, then = prediction.embedding(), self.t[step], self.t[step + 1]
        if self.gamma == 0:
            return flow_map_step(state, delta, now, then)
        noise, _ = next(self.noise)
        if self.config.renoise == "markov":
            return renoise(flow_map_step(state, delta, now, self.beyond[step]), noise, self.beyond[step], then)
        return noised_jump(state, delta, noise, now, then, self.gamma)


class Bridge(Sampler):
    """The marginal-conditioned bridge (arXiv 2605.13681), the sampler with a temperature.

    A step draws a token at each position from the denoiser, and the next state from the Gaussian bridge that ends in
    these tokens. The last step returns the tokens it draws. `temperature`, `top_k` and `top_p` shape the distribution
    of the tokens; temperature 0 takes the likeliest.
    """

    settings = ("temperature", "top_k", "top_p")

    def advance(self, state: Tensor, prediction: Prediction, step: int) -> Tensor:
        noise, uniform = next(self.noise)
        tokens = self._draw(prediction, uniform)
        end = self.predictor.embed(tokens.clamp(min=0))
        end = end.masked_fill((tokens < 0)[..., None], torch.nan)  # then the last prediction is not finite either
        return bridge_step(state, end, noise, self.t[step], self.t[step + 1])

    def finish(self, prediction: Prediction) -> Tensor:
        _, uniform = next(self.noise)
        return self._draw(prediction, uniform)

    def _draw(self, prediction: Prediction, uniform: Tensor) -> Tensor:
        """A token at each position, ids (batch, length), chosen by `uniform` (batch, length) numbers in [0, 1]."""
        config = self.config
        if config.temperature == 0:
            return prediction.most_likely()
        temperature = 1.0 if config.temperature is None else config.temperature
        return prediction.draw(uniform, temperature=temperature, top_k=config.top_k, top_p=config.top_p)


SAMPLERS: dict[str, type[Sampler]] = {"euler": Euler, "multistep": Multistep, "flow_map": FlowMap, "bridge": Bridge}
SETTINGS = tuple(name for sampler in SAMPLERS.values() for name in sampler.settings)
