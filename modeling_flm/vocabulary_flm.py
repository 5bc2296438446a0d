"""Operations on predictions that read the vocabulary in blocks: predictions are embedded, decoded and drawn from
without a tensor of size tokens x V."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .clock_flm import finest

_BLOCK, _CPU_BLOCK = 1 << 22, 1 << 20  # logits held at a time; on a CPU so few that they stay in the cache
_COLUMNS = 256  # smallest block of the vocabulary: products with fewer columns would be slow


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Soft-capped logits, `cap tanh(logits / cap)`; unchanged if `cap` is None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def softcap_(logits: Tensor, cap: float | None) -> Tensor:
    """[`softcap`] that overwrites the logits."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def expected_embedding(
    hidden: Tensor, weight: Tensor, bias: Tensor, table: Tensor, cap: float | None = None
) -> Tensor:
    """The embedding of a prediction, `softmax(softcap(hidden W^T + b)) @ E`, which is attention over the vocabulary.

    It is differentiable once, and with respect to `hidden` alone.

    Args:
        hidden (`Tensor`): (tokens, d) hidden states, the queries.
        weight, bias (`Tensor`): (V, d) and (V,), the output layer, the keys.
        table (`Tensor`): (V, width), the embedding table, the values.
        cap (`float`, *optional*): soft cap of the logits. Exponentials of capped logits cannot overflow float32, so
            that one pass without a running maximum is exact.

    Returns:
        float32 (tokens, width).
    """
    return _ExpectedEmbedding.apply(hidden, weight.detach(), bias.detach(), table.detach(), cap)


class _ExpectedEmbedding(torch.autograd.Function):
    """The output is y = p @ E, with the softmax p of the capped logits z. So dL/dz = p * (E dL/dy - <y, dL/dy>)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, table, cap):
        tokens = len(hidden)
        total = torch.zeros(tokens, 1, device=hidden.device, dtype=torch.float32)
        mean = torch.zeros(tokens, table.shape[1], device=hidden.device, dtype=torch.float32)
        highest = torch.full_like(total, -torch.inf if cap is None else 0.0)
        for block in _vocabulary_blocks(hidden, len(weight)):
            scores = softcap_(torch.addmm(bias[block], hidden, weight[block].T).float(), cap)
            if cap is None:
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
        of_hidden = torch.zeros(hidden.shape, device=hidden.device, dtype=torch.float32)
        for block in _vocabulary_blocks(hidden, len(weight)):
            scores = softcap(torch.addmm(bias[block], hidden, weight[block].T).float(), ctx.cap)
            change = (scores - normaliser).exp() * (gradient @ table[block].float().T - along_mean)
            if ctx.cap is not None:
                change *= 1 - (scores / ctx.cap).square()
            of_hidden.addmm_(change, weight[block].float())
        return of_hidden.to(hidden.dtype), None, None, None, None


@torch.no_grad()
def most_likely_token(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The likeliest token `argmax(hidden W^T + b)`, which a soft cap would not change: (tokens,) int64.

    Of equal logits it is the first. It is -1 where the largest logit is not finite.
    """

    def logits(block: slice) -> Tensor:
        return torch.addmm(bias[block], hidden, weight[block].T)

    return _argmax_by_blocks(logits, hidden, len(weight))


@torch.no_grad()
def most_likely_of_mixture(
    parts: Sequence[tuple[float, Tensor, Tensor, Tensor, float | None]],
) -> Tensor:
    """The largest entry of a mixture of predictions, `argmax(sum_i share_i softmax(softcap(hidden_i W_i^T + b_i)))`:
    (tokens,) int64. Of equal entries it is the first, and it is -1 where they are not finite.

    Args:
        parts: tuples (share, hidden (tokens, d_i), W_i (V, d_i), b_i (V,), soft cap). Shares may be negative.
    """
    normalisers = [_log_normaliser(*part[1:]) for part in parts]
    _, first, vocabulary, _, _ = parts[0]

    def mixture(block: slice) -> Tensor:
        entries = torch.zeros(len(first), block.stop - block.start, device=first.device, dtype=torch.float32)
        for (share, hidden, weight, bias, cap), normaliser in zip(parts, normalisers, strict=True):
            scores = softcap(torch.addmm(bias[block], hidden, weight[block].T).float(), cap)
            entries.add_((scores - normaliser[:, None]).exp_(), alpha=share)
        return entries

    return _argmax_by_blocks(mixture, first, len(vocabulary))


def _argmax_by_blocks(entries: Callable[[slice], Tensor], hidden: Tensor, vocab_size: int) -> Tensor:
    """The token with the largest entry, (tokens,); -1 where it is not finite. `entries` gives those of a block of the
    vocabulary, for all `hidden` states (tokens, d)."""
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device, dtype=torch.float32)
    token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for block in _vocabulary_blocks(hidden, vocab_size):
        value, index = entries(block).max(dim=1)
        better = value > best
        best = torch.maximum(best, value)  # a NaN stays
        token = torch.where(better, index + block.start, token)
    return torch.where(best.isfinite(), token, -1)


@torch.no_grad()
def token_probability(hidden: Tensor, token: Tensor, weight: Tensor, bias: Tensor, cap: float | None = None) -> Tensor:
    """The probability of a given `token` (tokens,) in `softmax(softcap(hidden W^T + b))`, float32 (tokens,)."""
    own = softcap(((hidden * weight[token]).sum(1) + bias[token]).float(), cap)
    return (own - _log_normaliser(hidden, weight, bias, cap)).exp()


def _log_normaliser(hidden: Tensor, weight: Tensor, bias: Tensor, cap: float | None) -> Tensor:
    """`logsumexp(softcap(hidden W^T + b))`, float32 (tokens,), summed block by block of the vocabulary."""
    normaliser = torch.full((len(hidden),), -torch.inf, device=hidden.device, dtype=torch.float32)
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
    """Draw a token from each `softmax(softcap(hidden W^T + b) / temperature)`, by inverting its distribution function.

    It works on a chunk of the tokens at a time, with the whole vocabulary.

    Args:
        hidden (`Tensor`): (tokens, d) hidden states.
        weight, bias (`Tensor`): (V, d) and (V,), the output layer.
        uniform (`Tensor`): (tokens,) numbers in [0, 1], one for each draw.
        cap (`float`, *optional*): soft cap of the logits.
        temperature (`float`): divisor of the logits, > 0.
        top_k (`int`, *optional*): draw only from that many likeliest tokens.
        top_p (`float`, *optional*): draw only from the fewest likeliest tokens with this total probability, in (0, 1].

    Returns:
        (tokens,) int64, -1 where the distribution is not finite.
    """
    parts, exact = [], finest(hidden.device)
    rows = max(1, _logits_at_a_time(hidden.device) // len(weight))
    filtered = top_p is not None or (top_k is not None and top_k < len(weight))
    for some, number in zip(hidden.split(rows), uniform.split(rows), strict=True):
        logits = softcap(torch.addmm(bias, some, weight.T).float(), cap) / temperature
        probability = logits.softmax(-1)
        if filtered:
            probability, order = probability.topk(min(top_k or len(weight), len(weight)), dim=-1)
            if top_p is not None:
                before = (probability.to(exact) / probability.to(exact).sum(-1, keepdim=True)).cumsum(-1).roll(1, -1)
                before[:, 0] = 0
                probability = probability.where(before < top_p, 0)
        total = probability.to(exact).cumsum(-1)
        goal = number.to(exact)[:, None] * total[:, -1:]
        # The first token whose cumulated probability exceeds the goal. If none does, the last of positive probability.
        place = torch.searchsorted(total, goal, right=True)
        last = torch.searchsorted(total, total[:, -1:].contiguous())
        place = torch.minimum(place, last)
        token = order.gather(1, place) if filtered else place
        parts.append(torch.where(total[:, -1:].isfinite(), token, -1).squeeze(1))
    return torch.cat(parts)


def _vocabulary_blocks(hidden: Tensor, vocab_size: int) -> Iterator[slice]:
    """Blocks of the vocabulary, each small enough to hold its logits of the hidden states (tokens, d)."""
    size = max(_COLUMNS, _logits_at_a_time(hidden.device) // max(len(hidden), 1))
    return (slice(start, min(start + size, vocab_size)) for start in range(0, vocab_size, size))


def _logits_at_a_time(device: torch.device) -> int:
    return _CPU_BLOCK if device.type == "cpu" else _BLOCK
