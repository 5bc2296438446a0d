"""The mathematics of the flow over one-hot tokens; no parameters live here.

Time runs from noise (t = 0) to data (t = 1) along the interpolant `x_t = (1 - t) x0 + t x1` with Gaussian noise x0 and
one-hot data x1. The network is conditioned on tau(t), the clock of section 3.2 of arXiv 2602.16813; t itself appears
nowhere outside this file and its callers' calls into it. Because the network sees a state only through `x @ E` (E the
V x d embedding table), states live in the embedded space: tensors (batch, length, d) instead of (batch, length, V).
"""

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# ---------------------------------------------------------------------------------------------------------------------
# The clock
# ---------------------------------------------------------------------------------------------------------------------

_KNOTS = 2048  # cells of the table per unit of t: interpolation error about 1e-10
_TAIL = 1e-12  # the table ends where 1 - tau falls below this; a straight line leads from there to (1, 1)


@functools.lru_cache(maxsize=16)
def _clock_table(vocab_size: int) -> np.ndarray:
    """Cubic pieces of tau(t) as (cells, 4) float64: in cell k, tau = c0 + w (c1 + w (c2 + w c3)), w = t - k / _KNOTS.

    With m = t / (1 - t) and F = Phi^(V-1), the decoding error is `1 - P = int phi(w - m) (1 - F(w)) dw`, an analytic
    integrand for which the trapezoid rule converges exponentially. Working with 1 - F keeps both tau and 1 - tau
    accurate. Values and exact derivatives at the knots give the cubic Hermite interpolant.
    """
    knots = np.arange(int(_KNOTS * 0.95)) / _KNOTS
    m = knots / (1 - knots)
    step = 1 / 64
    w = np.arange(-14.0, m[-1] + 14.0, step)
    tail = np.array([math.erfc(v) for v in np.abs(w) / math.sqrt(2)]) / 2  # 1 - Phi(|w|)
    with np.errstate(divide="ignore"):
        log_phi = np.where(w > 0, np.log1p(-tail), np.log(tail))
    miss = -np.expm1((vocab_size - 1) * log_phi)  # 1 - F(w)
    shifted = w[None, :] - m[:, None]
    density = np.exp(-0.5 * shifted**2) * (step / math.sqrt(2 * math.pi))
    error = density @ miss
    slope_in_m = -(density * shifted) @ miss
    scale = vocab_size / (vocab_size - 1)
    tau = 1 - scale * error
    slope = scale * slope_in_m / (1 - knots) ** 2
    tau[0] = 0.0
    last = int(np.argmax(1 - tau < _TAIL))
    tau, slope, knots = tau[: last + 1], slope[: last + 1], knots[: last + 1]

    h = 1 / _KNOTS
    secant = np.diff(tau) / h
    pieces = np.zeros((last + 1, 4))
    pieces[:, 0] = tau
    pieces[:-1, 1] = slope[:-1]
    pieces[:-1, 2] = (3 * secant - 2 * slope[:-1] - slope[1:]) / h
    pieces[:-1, 3] = (slope[:-1] + slope[1:] - 2 * secant) / h**2
    pieces[-1, 1] = (1 - tau[-1]) / (1 - knots[-1])
    return pieces


class Clock:
    """The time change tau(t) of a vocabulary: 1 - tau is the (normalised) error of decoding x_t by argmax.

        P(t) = E_{z ~ N(0,1)}[ Phi(z + t / (1 - t))^(V-1) ],   tau(t) = (V P(t) - 1) / (V - 1)

    Both directions, and the derivative, are evaluated on the device of their argument from a table of 60 kB: no host
    synchronisation, exact at 0 and 1, within 1e-9 of the closed form. The table is neither parameter nor buffer (a
    copy per device is kept here), so casting a model or loading it on the meta device cannot touch it.

    Args:
        vocab_size (`int`): V >= 2.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._pieces = _clock_table(vocab_size)
        self._on_device: dict[torch.device, Tensor] = {}

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
            self._on_device[device] = torch.from_numpy(self._pieces).to(device, dtype)
        return self._on_device[device]

    def tau(self, t: Tensor) -> Tensor:
        """tau of interpolation times t in [0, 1]; same shape, at least float32. Differentiable."""
        table = self._table(t.device)
        cell, w = self._locate(table, t)
        c0, c1, c2, c3 = table[cell].unbind(-1)
        tau = c0 + w * (c1 + w * (c2 + w * c3))
        return torch.where(t >= 1, 1, tau).to(_at_least_float32(t))

    def dtau_dt(self, t: Tensor) -> Tensor:
        """The derivative of tau at t in [0, 1]; same shape, at least float32."""
        table = self._table(t.device)
        cell, w = self._locate(table, t)
        _, c1, c2, c3 = table[cell].unbind(-1)
        return (c1 + w * (2 * c2 + w * (3 * c3))).to(_at_least_float32(t))

    def t(self, tau: Tensor) -> Tensor:
        """The interpolation time t of tau in [0, 1], the inverse of `tau`; same shape, at least float32.
        Differentiable.
        """
        table = self._table(tau.device)
        goal = tau.to(table.dtype)
        knots = table[:, 0].contiguous()
        cell = (torch.searchsorted(knots, goal.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 1)
        c0, c1, c2, c3 = table[cell].unbind(-1)
        start = cell.to(table.dtype) / _KNOTS
        width = torch.where(cell == len(knots) - 1, 1 - start, 1 / _KNOTS)

        def newton(w: Tensor, target: Tensor) -> Tensor:
            value = c0 + w * (c1 + w * (c2 + w * c3))
            return w - (value - target) / (c1 + w * (2 * c2 + w * (3 * c3)))

        w = torch.zeros_like(start)
        for _ in range(4):  # a cubic that is nearly straight within its cell
            w = newton(w, goal.detach()).clamp(min=torch.zeros_like(w), max=width)
        w = newton(w, goal)  # carries the derivative dt/dtau
        t = torch.where(goal >= 1, 1, torch.where(goal < 0, 0, start + w))
        return t.to(_at_least_float32(tau))

    @staticmethod
    def _locate(table: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(table.dtype)
        cell = (t.detach() * _KNOTS).long().clamp(0, len(table) - 1)
        return cell, t - cell.to(table.dtype) / _KNOTS


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The interpolant and the flow map. `t`, `s`, `u` are interpolation times (batch,) or scalars; states and predictions
# are (batch, length, width) in any space that is linear in the one-hots.
# ---------------------------------------------------------------------------------------------------------------------


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The state `x_t = (1 - t) noise + t data`."""
    return torch.lerp(noise, data, _like_state(t, noise))


def velocity(state: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """The probability-flow velocity `b_t(x) = (D_t(x) - x) / (1 - t)`, for t < 1."""
    return (denoised - state) / (1 - _like_state(t, state))


def flow_map_step(state: Tensor, prediction: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """`X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta`, for s <= t and s < 1.

    With the flow map's own prediction delta_{s,t} it is exact. With the denoiser D_s in its place it is the Euler step
    of the probability flow (and also its exponential integrator).
    """
    weight = (t - s) / (1 - s)
    return torch.lerp(state, prediction, _like_state(weight, state))


def bridge_step(state: Tensor, end: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A draw of `x_t` given `x_s` and the clean end x_1, for s < t < 1 (the Gaussian bridge of arXiv 2605.13681):

    x_t = a x_s + b x_1 + sqrt(v) noise,        q = (t - s)(t + s - 2 s t),
    a = s (1-t)^2 / (t (1-s)^2),    b = q / (t (1-s)^2),    v = (1-t)^2 q / (t^2 (1-s)^2).
    """
    q = (t - s) * (t + s - 2 * s * t)
    a = s * (1 - t) ** 2 / (t * (1 - s) ** 2)
    b = q / (t * (1 - s) ** 2)
    spread = (1 - t) * q.sqrt() / (t * (1 - s))
    return _like_state(a, state) * state + _like_state(b, state) * end + _like_state(spread, state) * noise


def renoise(state: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A draw of `x_t` given `x_s` at a later time s, 0 < t <= s: the Markov noising with the interpolant's marginals,

    x_t = (t/s) x_s + sqrt((1-t)^2 - (t/s)^2 (1-s)^2) noise.
    """
    kept = t / s
    spread = ((1 - t) ** 2 - (kept * (1 - s)) ** 2).clamp(min=0).sqrt()
    return _like_state(kept, state) * state + _like_state(spread, state) * noise


def semigroup_weight(s: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """The weight g of the first leg in `delta_{s,t} = g delta_{s,u} + (1 - g) delta_{u,t}(X_{s,u})`, s < u < t."""
    return (1 - t) * (u - s) / ((1 - u) * (t - s))


def _like_state(t: Tensor, state: Tensor) -> Tensor:
    t = t.to(state.dtype)
    return t.reshape(t.shape + (1,) * (state.ndim - t.ndim)) if t.ndim else t


# ---------------------------------------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------------------------------------


def as_seeds(name: str, seeds: Tensor | Sequence[int], count: int) -> list[int]:
    """`count` seeds as a list of integers.

    Raises:
        ValueError: they are anything else; the message calls them `name`.
    """
    try:
        numbers = [operator.index(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]
    except TypeError:
        raise ValueError(f"`{name}` must be integers, one per sequence, but is {seeds!r}.") from None
    if len(numbers) != count:
        raise ValueError(f"`{name}` has {len(numbers)} entries for {count} sequences: one each is needed.")
    if not all(-(2**63) <= number < 2**64 for number in numbers):
        raise ValueError(f"`{name}` must lie in [-2**63, 2**64), but is {seeds!r}.")
    return numbers


def seeds_of(ids: Tensor, attention_mask: Tensor | None = None) -> list[int]:
    """A seed in [0, 2**63) for each row of `ids` (batch, length): a hash of its tokens but for padding
    (`attention_mask` 0), the same in any batch and for any padding, dtype and device. The host waits for the device.
    """
    rows = ids.detach().cpu().numpy().astype("<i8")
    real = np.ones(rows.shape, bool) if attention_mask is None else attention_mask.bool().cpu().numpy()
    digests = (
        hashlib.blake2b(row[here].tobytes(), digest_size=8).digest() for row, here in zip(rows, real, strict=True)
    )
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def step_seeds(seeds: Sequence[int], step: int) -> list[int]:
    """Seeds for the `step`-th draw of sequences that have one seed each: the seeds themselves at step 0, numbers
    unrelated to them and to one another (SplitMix64) after it.
    """
    if step == 0:
        return list(seeds)
    return [_mix((_mix(seed % 2**64) + step * 0x9E3779B97F4A7C15) % 2**64) for seed in seeds]


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def white_noise(
    seeds: Sequence[int], length: int, width: int, device: torch.device, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """Standard normal noise (batch, length, width) and a uniform number (batch,) of each seed, float32.

    Each sequence has a generator of its own: what a seed gives does not depend on the batch around it. With `longest`,
    so many positions are drawn and the first `length` kept: then it does not depend on the padding either.
    """
    noise = torch.empty(len(seeds), length, width, device=device)
    uniform = torch.empty(len(seeds), device=device)
    drawn = torch.empty(max(length, longest or 0), width, device=device)
    generator = torch.Generator(device)
    for row, number, seed in zip(noise, uniform, seeds, strict=True):
        generator.manual_seed(seed)
        row.copy_(drawn.normal_(generator=generator)[:length])
        number.uniform_(generator=generator)
    return noise, uniform


def to_where_text_begins(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Rows of `x` (batch, length, ...) moved right, round the end, by the padding (`attention_mask` 0) on their left:
    what was drawn for a text goes with its tokens, not with the columns of the batch."""
    if attention_mask is None:
        return x
    first = attention_mask.bool().int().argmax(1, keepdim=True)
    place = (torch.arange(x.shape[1], device=x.device) - first.to(x.device)) % x.shape[1]
    return x.gather(1, place.reshape(*place.shape, *(1,) * (x.ndim - 2)).expand_as(x))


_TABLE_ROWS = 1 << 13  # of embedding tables, copied at a time where they are needed in another precision


class NoiseLaw:
    """The law of the noise that [`embedded_noise`] draws for some tables, worked out at the first use and kept: one
    object serves for as long as those tables stay as they are, over the micro-batches of a step, say.
    """

    def __init__(self):
        self._known: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def of(self, *tables: Tensor) -> tuple[Tensor, Tensor]:
        """E^T E of the tables side by side, E (V, d), and its Cholesky factor C: both (d, d)."""
        if self._known is None:
            gram = functools.reduce(torch.add, (rows.T @ rows for rows in _rows(tables)))
            # The Gram matrix is only known to rounding: the ridge lifts it above that, and changes the law as little.
            ridge = 10 * torch.finfo(gram.dtype).eps * gram.diagonal().mean()
            # The factor itself is taken in float64, without the host synchronisation of an error check.
            square = gram.double() + ridge * torch.eye(len(gram), device=gram.device, dtype=torch.float64)
            self._known = gram, torch.linalg.cholesky_ex(square)[0].to(gram.dtype)
        return self._known


class _Gram(torch.autograd.Function):
    """Ebar^T E with Ebar = stopgrad(E), its value being known: the gradient in E is Ebar times that of the value."""

    @staticmethod
    def forward(ctx, value, *tables):
        ctx.save_for_backward(*tables)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradients: list[Tensor | None] = []
        parts = gradient.split([table.shape[1] for table in ctx.saved_tensors], dim=1)
        for table, part, wanted in zip(ctx.saved_tensors, parts, ctx.needs_input_grad[1:], strict=True):
            of_table = torch.empty_like(table) if wanted else None
            if of_table is not None:
                for some, rows in zip(of_table.split(_TABLE_ROWS), _rows(ctx.saved_tensors), strict=True):
                    some.copy_(rows @ part)
            gradients.append(of_table)
        return None, *gradients


def _rows(tables: Sequence[Tensor]) -> Iterator[Tensor]:
    """Some rows at a time of the tables side by side: of one at least in float32, of several in float64."""
    for some in zip(*(table.split(_TABLE_ROWS) for table in tables), strict=True):
        yield some[0].to(_at_least_float32(some[0])) if len(some) == 1 else torch.cat(some, dim=1).double()


def embedded_noise(white: Tensor, *tables: Tensor, law: NoiseLaw | None = None) -> tuple[Tensor, ...]:
    """What `x0 @ E` is for x0 ~ N(0, I_V), drawn without x0: the same law, at a cost independent of V per token.

    For one table E (V, d), and white noise xi ~ N(0, I_d),

        noise = (xi C^-1) @ (Ebar^T E),     C C^T = Ebar^T Ebar,     Ebar = stopgrad(E).

    Its value xi C^T is N(0, E^T E) per token, the exact law of `x0 @ E`. Its gradient is E[x0 | x0 E]^T g, the
    conditional expectation (Rao-Blackwellisation) of the dense gradient x0^T g: the same mean, never a larger
    variance.

    Several tables E_1 (V, d_1), E_2 (V, d_2), ... get the embeddings of the SAME noise x0, with the exact joint law:
    the construction is that of the concatenated table, in float64, since similar tables make its Gram matrix singular.

    Args:
        white (`Tensor`): (..., d_1 + d_2 + ...) standard normal.
        tables (`Tensor`): (V, d_i).
        law (`NoiseLaw`, *optional*): of these tables, where it has been used with them before or is to be again.

    Returns:
        one tensor (..., d_i) per table, at least float32.
    """
    gram, factor = (law or NoiseLaw()).of(*tables)
    if torch.is_grad_enabled():
        gram = _Gram.apply(gram, *tables)
    whitened = torch.linalg.solve_triangular(factor, white.to(gram.dtype), upper=False, left=False)
    noise = (whitened @ gram).to(_at_least_float32(tables[0]))
    return noise.split([table.shape[1] for table in tables], dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Reading the vocabulary in blocks: nothing of size tokens x V is ever held
# ---------------------------------------------------------------------------------------------------------------------

_BLOCK, _CPU_BLOCK = 1 << 22, 1 << 20  # logits held at a time; on a CPU so few that they stay in the cache
_COLUMNS = 256  # but of no fewer tokens of the vocabulary: the products would be slow


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """`cap tanh(logits / cap)`; unchanged without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def expected_embedding(
    hidden: Tensor, weight: Tensor, bias: Tensor, table: Tensor, cap: float | None = None
) -> Tensor:
    """`softmax(softcap(hidden W^T + b)) @ E`, the embedding of a prediction: attention over the vocabulary.
    Differentiable with respect to `hidden` alone, and once.

    Args:
        hidden (`Tensor`): (tokens, d), the queries.
        weight, bias (`Tensor`): (V, d) and (V,), the output layer: the keys.
        table (`Tensor`): (V, width), the embedding table: the values.
        cap (`float`, *optional*): soft cap of the logits. With one, exponentials cannot overflow float32, so that one
            pass without a running maximum is exact.

    Returns:
        float32 (tokens, width).
    """
    return _ExpectedEmbedding.apply(hidden, weight.detach(), bias.detach(), table.detach(), cap)


class _ExpectedEmbedding(torch.autograd.Function):
    """With p the softmax, y = p @ E and z the capped logits: dL/dz = p * (E dL/dy - <y, dL/dy>)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, table, cap):
        tokens = len(hidden)
        total = torch.zeros(tokens, 1, device=hidden.device)
        mean = torch.zeros(tokens, table.shape[1], device=hidden.device)
        highest = torch.full((tokens, 1), -torch.inf if cap is None else 0.0, device=hidden.device)
        for block in _vocabulary_blocks(hidden, len(weight)):
            scores = torch.addmm(bias[block], hidden, weight[block].T).float()
            if cap is not None:
                scores.div_(cap).tanh_().mul_(cap)
            else:
                before, highest = highest, torch.maximum(highest, scores.amax(1, keepdim=True))
                decay = (before - highest).exp()
                total, mean = total * decay, mean * decay
                scores -= highest
            scores.exp_()
            total += scores.sum(1, keepdim=True)
            mean.addmm_(scores, table[block].float())
        mean /= total
        ctx.save_for_backward(hidden, weight, bias, table, mean, highest + total.log())
        ctx.cap = cap
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, bias, table, mean, normaliser = ctx.saved_tensors
        along_mean = (mean * gradient).sum(1, keepdim=True)
        of_hidden = torch.zeros(hidden.shape, device=hidden.device)
        for block in _vocabulary_blocks(hidden, len(weight)):
            scores = softcap(torch.addmm(bias[block], hidden, weight[block].T).float(), ctx.cap)
            change = (scores - normaliser).exp() * (gradient @ table[block].float().T - along_mean)
            if ctx.cap is not None:
                change *= 1 - (scores / ctx.cap).square()
            of_hidden.addmm_(change, weight[block].float())
        return of_hidden.to(hidden.dtype), None, None, None, None


@torch.no_grad()
def most_likely_token(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`argmax(hidden W^T + b)` as (tokens,) int64: of equal logits the first, and -1 where a largest logit is not
    finite. A soft cap would not change it.
    """

    def logits(block: slice) -> Tensor:
        return torch.addmm(bias[block], hidden, weight[block].T)

    return _argmax_by_blocks(logits, hidden, len(weight))


@torch.no_grad()
def most_likely_of_mixture(
    parts: Sequence[tuple[float, Tensor, Tensor, Tensor, float | None]],
) -> Tensor:
    """`argmax(sum_i share_i softmax(softcap(hidden_i W_i^T + b_i)))` as (tokens,) int64: of equal entries the first,
    and -1 where they are not finite. Shares may be negative.

    Args:
        parts: share, hidden (tokens, d_i), W_i (V, d_i), b_i (V,) and the soft cap of each.
    """
    normalisers = [_log_normaliser(*part[1:]) for part in parts]
    _, first, vocabulary, _, _ = parts[0]

    def mixture(block: slice) -> Tensor:
        entries = torch.zeros(len(first), block.stop - block.start, device=first.device)
        for (share, hidden, weight, bias, cap), normaliser in zip(parts, normalisers, strict=True):
            scores = softcap(torch.addmm(bias[block], hidden, weight[block].T).float(), cap)
            entries.add_((scores - normaliser[:, None]).exp_(), alpha=share)
        return entries

    return _argmax_by_blocks(mixture, first, len(vocabulary))


def _argmax_by_blocks(entries: Callable[[slice], Tensor], hidden: Tensor, vocab_size: int) -> Tensor:
    """The place (tokens,) of the largest of `entries` of the `hidden` states (tokens, d), which are given by blocks of
    the vocabulary; -1 where it is not finite."""
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for block in _vocabulary_blocks(hidden, vocab_size):
        value, index = entries(block).max(dim=1)
        better = value > best
        best = torch.maximum(best, value)  # which keeps a NaN
        token = torch.where(better, index + block.start, token)
    return torch.where(best.isfinite(), token, -1)


@torch.no_grad()
def token_probability(hidden: Tensor, token: Tensor, weight: Tensor, bias: Tensor, cap: float | None = None) -> Tensor:
    """The probability of `token` (tokens,) in `softmax(softcap(hidden W^T + b))`, float32 (tokens,), blockwise."""
    own = softcap(((hidden * weight[token]).sum(1) + bias[token]).float(), cap)
    return (own - _log_normaliser(hidden, weight, bias, cap)).exp()


def _log_normaliser(hidden: Tensor, weight: Tensor, bias: Tensor, cap: float | None) -> Tensor:
    """`logsumexp(softcap(hidden W^T + b))`, float32 (tokens,), blockwise."""
    normaliser = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    for block in _vocabulary_blocks(hidden, len(weight)):
        scores = softcap(torch.addmm(bias[block], hidden, weight[block].T).float(), cap)
        normaliser = torch.logaddexp(normaliser, scores.logsumexp(1))
    return normaliser


@torch.no_grad()
def draw_token(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    uniform: Tensor,
    cap: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """A token from each `softmax(softcap(hidden W^T + b) / temperature)`, by inversion of its distribution function.

    Rows are taken in chunks, with the whole vocabulary each.

    Args:
        hidden (`Tensor`): (tokens, d).
        weight, bias (`Tensor`): (V, d) and (V,), the output layer.
        uniform (`Tensor`): (tokens,) numbers in [0, 1], one for each draw.
        cap (`float`, *optional*): soft cap of the logits.
        temperature (`float`): > 0.
        top_k (`int`, *optional*): only the so many likeliest tokens.
        top_p (`float`, *optional*): only the fewest likeliest tokens that have this probability together, in (0, 1].

    Returns:
        (tokens,) int64, -1 where the distribution is not finite.
    """
    parts = []
    rows = max(1, _logits_at_a_time(hidden.device) // len(weight))
    filtered = top_p is not None or (top_k is not None and top_k < len(weight))
    for some, number in zip(hidden.split(rows), uniform.split(rows), strict=True):
        logits = softcap(torch.addmm(bias, some, weight.T).float(), cap) / temperature
        probability = logits.softmax(-1)
        if filtered:
            probability, order = probability.topk(min(top_k or len(weight), len(weight)), dim=-1)
            if top_p is not None:
                before = (probability.double() / probability.double().sum(-1, keepdim=True)).cumsum(-1).roll(1, -1)
                before[:, 0] = 0
                probability = probability.where(before < top_p, 0)
        total = probability.double().cumsum(-1)
        goal = number.double()[:, None] * total[:, -1:]
        # The first token whose cumulated probability exceeds the goal; at the very end of it, the last that has any.
        place = torch.searchsorted(total, goal, right=True)
        last = torch.searchsorted(total, total[:, -1:].contiguous())
        place = torch.minimum(place, last)
        token = order.gather(1, place) if filtered else place
        parts.append(torch.where(total[:, -1:].isfinite(), token, -1).squeeze(1))
    return torch.cat(parts)


def _vocabulary_blocks(hidden: Tensor, vocab_size: int) -> Iterator[slice]:
    """Of the vocabulary, for the logits of hidden states (tokens, d)."""
    size = max(_COLUMNS, _logits_at_a_time(hidden.device) // max(len(hidden), 1))
    return (slice(start, min(start + size, vocab_size)) for start in range(0, vocab_size, size))


def _logits_at_a_time(device: torch.device) -> int:
    return _CPU_BLOCK if device.type == "cpu" else _BLOCK
