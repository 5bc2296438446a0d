"""Soft-capped attention: scores s become c tanh(s / c) before the softmax.

    u = scaling q k^T / c,   y = tanh(u),   P = exp(c y + mask),   output = P v / (P 1)

Capped scores lie in [-c, c], so their exponentials need no running maximum: sums of e^50 = 5e21 are far inside
float32.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

SOFTCAP_ATTENTION = "flm_softcap"

# Scores are made slab by slab: some heads x some query rows x all keys. On a CPU a slab stays in the cache, where an
# elementwise pass costs a third of what it costs in memory; on an accelerator it is large, so that few kernels start.
_CPU_SLAB, _CPU_ROWS = 1 << 18, 128
_ACCELERATOR_SLAB = 1 << 26


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float = 1.0,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The reference: all scores at once, in float32, differentiable as often as one likes.

    Args:
        query, key, value (`Tensor`): (batch, heads, length, head_dim).
        attention_mask (`Tensor`, *optional*): additive, or bool (True: attend), broadcastable to (batch, heads,
            length, length).

    Returns:
        output (batch, length, heads, head_dim), and the weights (batch, heads, length, length).
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + _additive(attention_mask)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


def softcap_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float = 1.0,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The same values as the reference, without a tensor of size length x length per head: see `_SoftcapAttention`.

    Args:
        query, key, value (`Tensor`): (batch, heads, length, head_dim).
        attention_mask (`Tensor`, *optional*): as the reference's. Padding, (batch or 1, 1, 1, length), is what this is
            fast for; a mask that has a row per query goes to the reference.
        softcap (`float`, *optional*): c; without it this is transformers' `sdpa`.

    Returns:
        output (batch, length, heads, head_dim), and None.
    """
    if softcap is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    a_row_per_query = attention_mask is not None and attention_mask.shape[-2] > 1
    if a_row_per_query or torch.compiler.is_compiling():  # the compiler fuses the plain formula
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, softcap)
    batch, heads, _, _ = query.shape
    mask = None
    if attention_mask is not None:
        mask = _additive(attention_mask).float().expand(batch, heads, 1, -1).flatten(0, 1)
    return _SoftcapAttention.apply(query, key, value, mask, scaling, softcap), None


def _without_autocast(function):
    """Autocast would round the scores that forward and backward pass both compute, and each in its own way."""

    @functools.wraps(function)
    def in_own_dtype(ctx, x: Tensor, *args):
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *args)

    return in_own_dtype


class _SoftcapAttention(torch.autograd.Function):
    """P v / l with l = P 1, in slabs. Kept for the backward pass are inputs, output and 1 / l; P is made again:

    g = dO / l,   dv = P^T g,   dS = P (g v^T - rowsum(g O)) (1 - y^2),   dq = scaling dS k,   dk = scaling dS^T q
    """

    @staticmethod
    @_without_autocast
    def forward(ctx, query, key, value, mask, scaling, softcap):
        q, k, v = _flat(query) * (scaling / softcap), _flat(key), _flat(value)
        out, total = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
        for heads, rows in _slabs(q, k):
            p = torch.bmm(q[heads, rows], k[heads].mT).tanh_().mul_(softcap)
            if mask is not None:
                p += mask[heads]
            p.exp_()
            total[heads, rows] = p.sum(-1, keepdim=True)
            out[heads, rows] = p @ v[heads]
        inverse = torch.where(total > 0, 1 / total, 0)  # nothing to attend to gives zeros
        out = (out * inverse).view(query.shape).transpose(1, 2).to(query.dtype, memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, mask, out, inverse)
        ctx.scaling, ctx.softcap = scaling, softcap
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_without_autocast
    def backward(ctx, grad):
        query, key, value, mask, out, inverse = ctx.saved_tensors
        q, k, v = _flat(query) * (ctx.scaling / ctx.softcap), _flat(key), _flat(value)
        g = _flat(grad.transpose(1, 2)) * inverse
        shift = (g * _flat(out.transpose(1, 2))).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for heads, rows in _slabs(q, k):
            y = torch.bmm(q[heads, rows], k[heads].mT).tanh_()
            p = y * ctx.softcap
            if mask is not None:
                p += mask[heads]
            p.exp_()
            dv[heads].baddbmm_(p.mT, g[heads, rows])
            ds = torch.baddbmm(shift[heads, rows], g[heads, rows], v[heads].mT, beta=-1).mul_(p)
            ds.addcmul_(ds, y.square_(), value=-1)
            dq[heads, rows] = ds @ k[heads]
            dk[heads].baddbmm_(ds.mT, q[heads, rows])
        dq *= ctx.scaling
        dk *= ctx.softcap  # q carries scaling / softcap
        gradients = (dx.view(x.shape).to(x.dtype) for dx, x in ((dq, query), (dk, key), (dv, value)))
        return *gradients, None, None, None


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, length, d) to (batch * heads, length, d) in the dtype of the arithmetic, at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1)


def _slabs(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of query rows that make up all scores of q (heads, queries, d) and k (heads, keys, d)."""
    (heads, queries, _), keys = q.shape, k.shape[1]
    on_cpu = q.device.type == "cpu"
    rows = min(queries, _CPU_ROWS) if on_cpu else queries
    together = max(1, (_CPU_SLAB if on_cpu else _ACCELERATOR_SLAB) // (rows * keys))
    for head in range(0, heads, together):
        for row in range(0, queries, rows):
            yield slice(head, head + together), slice(row, row + rows)


def _additive(mask: Tensor) -> Tensor:
    """A bool mask (True: attend) as one to add to scores; any other as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def padding_mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs
) -> Tensor | None:
    """The additive mask of padding, with a single row for all queries: (batch, 1, 1, kv_length)."""
    if attention_mask is not None and attention_mask.device.type != "cpu":
        kwargs["allow_is_bidirectional_skip"] = False  # to see that nothing is masked, the host would have to wait
    return eager_mask(batch_size, 1, kv_length, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(SOFTCAP_ATTENTION, softcap_attention_forward)
AttentionMaskInterface.register(SOFTCAP_ATTENTION, padding_mask)

# In some per mille of fresh processes the first tanh on several threads is wrong by 5e-5 in half of its elements
# (seen with torch 2.13 and MKL); a first one on a single element prevents it.
torch.zeros(1).tanh()
