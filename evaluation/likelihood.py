"""A lower bound of log p(ids) under the flow, in nats: docs/likelihood.md has the derivation.

The model that is meant: Gaussian noise over one-hots, the exact probability flow of the network's velocity up to a
time t_1 < 1, and there a token per position drawn from the network's prediction. What the network does not see of a
state (all that is orthogonal to the embedding table) has no part in it, so all happens in an orthonormal basis of the
table's range: with the thin singular value decomposition E = U S W^T of the table, of rank r, and m = t / (1 - t),

    u = U^T x / (1 - t) in R^r per token,     du/dm = D(u, m) = U^T prediction,      u ~ N(0, I) at m = 0,

and q(u | ids) = N(m_1 U[ids], I) is the interpolant's law at m_1. With u_0 the start of the flow line through u,

    log p(ids) >= E_q[ log w ],   log w = log N(u_0; 0, I) - int_0^{m_1} tr dD/du dm + log p(ids | u) - log q(u | ids).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_flm import FLMModel
from modeling_flm.losses_flm import chunked_cross_entropy
from modeling_flm.noise_flm import step_seeds, white_noise
from modeling_flm.requests_flm import spread_seeds
from modeling_flm.vocabulary_flm import expected_embedding

Denoised = Callable[[Tensor, float], Tensor]  # D of states u (batch, length, r) at m
Trace = Callable[[Tensor, Tensor, int], Tensor]  # tr dD/du from D, u and the number of the node: (batch,)


@dataclass
class LogLikelihood:
    """Bounds of log p in nats, one per sequence.

    Args:
        bound (`Tensor`): (batch,) float64. Its expectation is at most log p(ids): of the tokens that are neither
            padding nor conditioning, given those that are conditioning.
        standard_error (`Tensor`): (batch,) float64, of `bound` over its samples (jackknife); NaN with one sample.
        num_tokens (`Tensor`): (batch,) int64, the tokens that are scored.
    """

    bound: Tensor
    standard_error: Tensor
    num_tokens: Tensor


def log_likelihood(
    model: FLMModel,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    conditioning_mask: Tensor | None = None,
    end: float = 0.99,
    num_steps: int = 32,
    num_samples: int = 1,
    num_probes: int | None = 1,
    importance_weighted: bool = False,
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
) -> LogLikelihood:
    """A lower bound of log p(ids) for each sequence, the mean of log w over `num_samples` draws of q.

    Of a flow map (FMLM) it is that of its diagonal, a flow: not of the samples it writes in a few steps.

    Args:
        model (`FLMModel`): in eval mode.
        input_ids (`Tensor`): (batch, length) ids.
        attention_mask (`Tensor`, *optional*): (batch, length), 0 at padding: not attended to, not scored.
        conditioning_mask (`Tensor`, *optional*): (batch, length) bool, True where the token is given: clamped to its
            embedding at every state, as `generate` clamps a prompt, and not scored.
        end (`float`): tau_1 in (0, 1), where the prediction is taken for the tokens. Every choice gives a valid bound
            (of a model that stops there); choose the tightest on other sequences than those reported.
        num_steps (`int`): even number of Runge-Kutta steps of order 4, of four evaluations each.
        num_samples (`int`): draws of q, >= 1.
        num_probes (`int`, *optional*): Hutchinson probes of the divergence at each step; None for the exact trace, at
            the cost of length * r backward passes.
        importance_weighted (`bool`): log mean w instead of mean log w, a tighter bound (IWAE). Needs the exact trace:
            the noise of probes would be exponentiated, and the result no bound.
        seed (`int` or `list[int]`): the i-th sequence takes `seed + i`, or `seed[i]`; its estimate depends on nothing
            else in the batch.
        batch_size (`int`): draws that are integrated together.

    Raises:
        ValueError: an argument breaks its rule, or nothing is left to score.
    """
    free = _check(model, input_ids, attention_mask, conditioning_mask, end, num_steps, num_samples, batch_size)
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"`num_probes` must be an integer >= 1, or None for the exact trace, but is {num_probes!r}.")
    if importance_weighted and num_probes is not None:
        raise ValueError(
            "`importance_weighted` exponentiates the noise of Hutchinson's estimator, which gives no bound: take the "
            "exact trace (`num_probes=None`) or the mean of the log weights."
        )
    count, device = len(input_ids), model.device
    seeds = spread_seeds(seed, None, count)
    draws = [step_seeds([own], 1 + sample)[0] for own in seeds for sample in range(num_samples)]
    ids, scored = input_ids.to(device, torch.long), free.to(device)
    mask = None if attention_mask is None else attention_mask.to(device)
    t = model.clock.t(torch.tensor(end, dtype=torch.float64)).item()
    basis, parts = _Basis(model), []
    for start in range(0, len(draws), batch_size):
        own = draws[start : start + batch_size]
        rows = torch.arange(start, start + len(own), device=device) // num_samples
        flow = _Flow(model, basis, ids[rows], scored[rows], None if mask is None else mask[rows])
        parts.append(_log_weights(flow, own, t / (1 - t), num_steps, num_probes))
    weights = torch.cat(parts).view(count, num_samples)
    average = _log_mean if importance_weighted else _mean
    return LogLikelihood(average(weights), _jackknife(average, weights), free.sum(1).cpu())


def bits_per(log_likelihood: Tensor, counts: Tensor | Sequence[int]) -> tuple[float, float]:
    """Bits per token, character or whatever is counted, `-sum log p / (log 2 sum counts)`, with the standard error
    over the sequences (that of a ratio of means).

    Args:
        log_likelihood (`Tensor`): (batch,) in nats, batch >= 2 for a standard error (else NaN).
        counts (`Tensor` or `list[int]`): (batch,).
    """
    bits = -log_likelihood.double() / math.log(2)
    count = torch.as_tensor(counts, dtype=torch.float64)
    ratio = bits.sum() / count.sum()
    variance = (bits - ratio * count).square().sum() / torch.tensor(len(bits) - 1)  # 0 / 0 for one sequence
    return float(ratio), float((variance * len(bits)).sqrt() / count.sum())


# -- the density of a flow --------------------------------------------------------------------------------------------


def flow_log_density(denoised: Denoised, u: Tensor, m: float, num_steps: int, trace: Trace) -> Tensor:
    """log p(u) of the flow du/dm = D(u, m) from N(0, I) at m = 0, by its change of variables:

        log p(u) = log N(u_0; 0, I) - int_0^m tr dD/du dm.

    The flow line is followed back by Runge-Kutta of order 4, the integral along it is Simpson's rule on its nodes.

    Args:
        denoised (`Callable`): D, differentiable in u.
        u (`Tensor`): (batch, length, r).
        m (`float`): > 0.
        num_steps (`int`): even.
        trace (`Callable`): tr dD/du at a node: [`exact_trace`] or [`probed_trace`].

    Returns:
        (batch,) float64.
    """
    h = m / num_steps
    total = torch.zeros(len(u), dtype=torch.float64)
    for node in range(num_steps + 1):
        here, middle, then = (max(m - (node + part) * h, 0.0) for part in (0, 0.5, 1))
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            slope = denoised(u, here)
            weight = 1 if node in (0, num_steps) else 4 if node % 2 else 2
            total += weight * h / 3 * trace(slope, u, node)
        u, k1 = u.detach(), slope.detach()
        if node < num_steps:
            with torch.no_grad():
                k2 = denoised(u - h / 2 * k1, middle)
                k3 = denoised(u - h / 2 * k2, middle)
                k4 = denoised(u - h * k3, then)
            u = u - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return log_normal(u) - total


def log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) of (batch, length, r): (batch,) float64."""
    return -0.5 * (x.cpu().double().square() + math.log(2 * math.pi)).sum((1, 2))


def exact_trace(positions: Sequence[int]) -> Trace:
    """tr dD/du, by one backward pass for each entry of the state at the `positions` that move."""

    def trace(slope: Tensor, u: Tensor, node: int) -> Tensor:
        total = torch.zeros(len(u), dtype=torch.float64)
        for position in positions:
            for entry in range(u.shape[2]):
                (row,) = torch.autograd.grad(slope[:, position, entry].sum(), u, retain_graph=True)
                total += row[:, position, entry].cpu()
        return total

    return trace


def probed_trace(seeds: Sequence[int], num_probes: int, longest: int, attention_mask: Tensor | None = None) -> Trace:
    """Hutchinson's estimator, the mean of `z^T dD/du z`: unbiased. The random signs z come from each sequence's own
    seed, new ones at every node; `longest` is that of [`white_noise`]. With `attention_mask` they do not depend on
    padding on the left."""

    def trace(slope: Tensor, u: Tensor, node: int) -> Tensor:
        total = torch.zeros(len(u), dtype=torch.float64)
        for probe in range(num_probes):
            own = step_seeds(seeds, 1 + node * num_probes + probe)
            white, _ = white_noise(own, u.shape[1], u.shape[2], u.device, longest, attention_mask)
            signs = torch.where(white < 0, -1.0, 1.0).to(u.dtype)
            (product,) = torch.autograd.grad(slope, u, signs, retain_graph=probe + 1 < num_probes)
            total += (product * signs).sum((1, 2)).cpu()
        return total / num_probes

    return trace


# -- the flow of a model ----------------------------------------------------------------------------------------------


class _Basis:
    """The table as E = U A: `left` U (V, r) with orthonormal columns, `right` A (r, d), r the rank of E."""

    def __init__(self, model: FLMModel):
        table = model.vocabulary_table().detach()
        left, scale, right = torch.linalg.svd(table.cpu().double(), full_matrices=False)
        kept = scale > scale[0] * max(table.shape) * torch.finfo(scale.dtype).eps
        self.left = left[:, kept].to(table.device, torch.float32)
        self.right = (scale[kept, None] * right[kept]).to(table.device, torch.float32)


class _Flow:
    """The flow of some sequences of a model, at their `free` positions; the others are clamped to their tokens."""

    def __init__(self, model: FLMModel, basis: _Basis, ids: Tensor, free: Tensor, attention_mask: Tensor | None):
        self.model, self.basis, self.ids, self.free, self.attention_mask = model, basis, ids, free, attention_mask
        self.clean = model.embed_tokens(ids).detach()
        weight, bias = model.output_layer()
        self.output_layer = weight.detach(), bias.detach()

    def hidden(self, u: Tensor, m: float) -> Tensor:
        """The last hidden states (batch * length, d) of states u (batch, length, r) at m."""
        tau = self.model.clock.tau(torch.tensor(m / (1 + m), dtype=torch.float64))
        times = tau.to(u.device, torch.float32).expand(len(u))
        embedded = (u / (1 + m)) @ self.basis.right  # x E = (1 - t) u A
        state = torch.where(self.free[..., None], embedded, self.clean)
        return self.model.denoise(state, times, attention_mask=self.attention_mask).flatten(0, 1)

    def denoised(self, u: Tensor, m: float) -> Tensor:
        """D(u, m), U^T of the prediction; 0 where clamped."""
        cap = self.model.config.final_logit_softcapping
        prediction = expected_embedding(self.hidden(u, m), *self.output_layer, self.basis.left, cap)
        return prediction.view(u.shape) * self.free[..., None]

    def decoded(self, u: Tensor, m: float) -> Tensor:
        """log p(ids | u) at m: (batch,) float64."""
        cap = self.model.config.final_logit_softcapping
        everywhere = torch.ones(self.ids.numel(), device=u.device)
        _, losses = chunked_cross_entropy(self.hidden(u, m), *self.output_layer, self.ids.flatten(), everywhere, cap)
        return -(losses.view(self.ids.shape) * self.free).cpu().double().sum(1)


@torch.no_grad()
def _log_weights(flow: _Flow, seeds: list[int], m: float, num_steps: int, num_probes: int | None) -> Tensor:
    """log w of one draw of q(u | ids) at m for each sequence: (batch,) float64."""
    table, free, longest = flow.basis.left, flow.free[..., None], flow.model.config.max_position_embeddings
    mask = flow.attention_mask
    noise = white_noise(seeds, flow.ids.shape[1], table.shape[1], table.device, longest, mask)[0] * free
    u = m * table[flow.ids] * free + noise
    moving = flow.free.any(0).nonzero().flatten().tolist()
    trace = exact_trace(moving) if num_probes is None else probed_trace(seeds, num_probes, longest, mask)
    # Where clamped, u, its start and the noise are 0: that cancels between the two normal densities.
    return flow_log_density(flow.denoised, u, m, num_steps, trace) + flow.decoded(u, m) - log_normal(noise)


# -- averages and checks ----------------------------------------------------------------------------------------------


def _mean(weights: Tensor) -> Tensor:
    return weights.mean(1)


def _log_mean(weights: Tensor) -> Tensor:
    return weights.logsumexp(1) - math.log(weights.shape[1])


def _jackknife(average: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """Standard error (batch,) of an average of (batch, samples): that of the mean is the usual one. NaN for one."""
    count = weights.shape[1]
    if count == 1:
        return torch.full((len(weights),), torch.nan, dtype=weights.dtype)
    without = [average(torch.cat([weights[:, :i], weights[:, i + 1 :]], dim=1)) for i in range(count)]
    return torch.stack(without, dim=1).std(1) * (count - 1) / count**0.5


def _check(
    model: FLMModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    conditioning_mask: Tensor | None,
    end: float,
    num_steps: int,
    num_samples: int,
    batch_size: int,
) -> Tensor:
    """Which positions (batch, length) are scored."""
    if model.training:
        raise ValueError("the model is in training mode, where dropout makes its flow random: call `model.eval()`.")
    integers = isinstance(input_ids, Tensor) and not input_ids.is_floating_point() and input_ids.dtype != torch.bool
    if not integers or input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError("`input_ids` must be an integer tensor (batch, length) that is not empty.")
    vocab_size, longest = model.config.vocab_size, model.config.max_position_embeddings
    if input_ids.shape[1] > longest:
        raise ValueError(f"`input_ids` have {input_ids.shape[1]} positions, but the model's context is {longest}.")
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise ValueError(f"`input_ids` contain an id outside the vocabulary [0, {vocab_size}).")
    for name, mask in (("attention_mask", attention_mask), ("conditioning_mask", conditioning_mask)):
        if mask is not None and not (isinstance(mask, Tensor) and mask.shape == input_ids.shape):
            raise ValueError(f"`{name}` must be a tensor as `input_ids`, of shape {tuple(input_ids.shape)}.")
    if not 0 < end < 1:
        raise ValueError(f"`end` must lie in (0, 1) (it is a tau), but is {end!r}.")
    if num_steps < 2 or num_steps % 2:
        raise ValueError(f"`num_steps` must be even and at least 2 (Simpson's rule), but is {num_steps!r}.")
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1, but is {value!r}.")
    free = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        free &= attention_mask.bool()
    if conditioning_mask is not None:
        free &= ~conditioning_mask.bool()
    if not free.any(1).all():
        raise ValueError("a sequence has nothing to score: all of it is padding (attention_mask 0) or conditioning.")
    return free
