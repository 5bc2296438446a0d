"""The algebra of the flow over one-hot tokens: the interpolant, the flow map and steps between two times.

Time runs from noise (t = 0) to data (t = 1) along the interpolant `x_t = (1 - t) x0 + t x1`, with Gaussian noise x0
and one-hot data x1. The network sees a state x (batch, length, V) only as `x @ E`, with its embedding table E (V, d).
So states are kept embedded, (batch, length, d). The functions here hold in any space that is linear in the one-hots:
states and predictions are (batch, length, width); the interpolation times `t`, `s` and `u` are (batch,) or scalars.
"""

import torch
from torch import Tensor


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The state `x_t = (1 - t) noise + t data`."""
    return torch.lerp(noise, data, _like_state(t, noise))


def velocity(state: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """The probability-flow velocity `b_t(x) = (D_t(x) - x) / (1 - t)`, for t < 1."""
    return (denoised - state) / (1 - _like_state(t, state))


def flow_map_step(state: Tensor, prediction: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A jump from time s to time t: `X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta`, for s <= t and s < 1.

    With the prediction delta_{s,t} of the exact flow map the jump is exact. With the denoiser D_s in its place it is
    the Euler step of the probability flow, which is also its exponential integrator.
    """
    weight = (t - s) / (1 - s)
    return torch.lerp(state, prediction, _like_state(weight, state))


def beyond(t: Tensor, gamma: float) -> Tensor:
    """The time t~ to which a step to t with noise of strength gamma jumps: `1 - t~ = (1 - t) sqrt(1 - gamma^2)`."""
    return 1 - (1 - t) * (1 - gamma**2) ** 0.5


def noised_jump(state: Tensor, prediction: Tensor, noise: Tensor, s: Tensor, t: Tensor, gamma: float) -> Tensor:
    """A step from s to t with fresh noise: a jump to t~ = beyond(t), then back to t with noise of strength gamma,

    X_{s,t~}(x) + (t - t~) delta + gamma (1 - t) noise,        delta = delta_{s,t~}(x), the prediction.

    This is the published form. For gamma in (0, 1) it changes the marginals of the flow, since it takes delta_{s,t~}
    for the unknown clean end.
    """
    past = beyond(t, gamma)
    back = _like_state(t - past, state) * prediction
    return flow_map_step(state, prediction, s, past) + back + gamma * _like_state(1 - t, state) * noise


def bridge_step(state: Tensor, end: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Draw `x_t` given `x_s` and the clean end x_1, for s < t < 1, from the Gaussian bridge of arXiv 2605.13681:

    x_t = a x_s + b x_1 + sqrt(v) noise,        q = (t - s)(t + s - 2 s t),
    a = s (1-t)^2 / (t (1-s)^2),    b = q / (t (1-s)^2),    v = (1-t)^2 q / (t^2 (1-s)^2).
    """
    q = (t - s) * (t + s - 2 * s * t)
    a = s * (1 - t) ** 2 / (t * (1 - s) ** 2)
    b = q / (t * (1 - s) ** 2)
    spread = (1 - t) * q.sqrt() / (t * (1 - s))
    return _like_state(a, state) * state + _like_state(b, state) * end + _like_state(spread, state) * noise


def renoise(state: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Go back in time: draw `x_t` given `x_s`, 0 < t <= s, by Markov noising with the marginals of the flow,

    x_t = (t/s) x_s + sqrt((1-t)^2 - (t/s)^2 (1-s)^2) noise.
    """
    kept = t / s
    spread = ((1 - t) ** 2 - (kept * (1 - s)) ** 2).clamp(min=0).sqrt()
    return _like_state(kept, state) * state + _like_state(spread, state) * noise


def semigroup_weight(s: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """The weight g of the first jump in `delta_{s,t} = g delta_{s,u} + (1 - g) delta_{u,t}(X_{s,u})`, s < u < t."""
    return (1 - t) * (u - s) / ((1 - u) * (t - s))


def _like_state(t: Tensor, state: Tensor) -> Tensor:
    """Times in the dtype of a state, with dimensions added so that they broadcast over it."""
    t = t.to(state.dtype)
    return t.reshape(t.shape + (1,) * (state.ndim - t.ndim)) if t.ndim else t
