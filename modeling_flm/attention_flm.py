"""Soft-capped attention, in which a score s becomes c tanh(s / c) before the softmax.

    u = scaling q k^T / c,   y = tanh(u),   P = exp(c y + mask),   output = P v / (P 1)

Capped scores lie in [-c, c], so the softmax needs no running maximum: with c = 50, sums of e^50 = 5e21 are far from
overflowing float32.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

SOFTCAP_ATTENTION = "flm_softcap"

# Scores are computed slab by slab: some heads x some query rows x all keys. On a CPU a slab fits the cache, where an
# elementwise pass takes a third of the time it takes in memory. On an accelerator slabs are large, for few kernels.
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
    """The reference implementation: all scores at once, in float32. It can be differentiated any number of times.

    Args:
        query, key, value (`Tensor`): (batch, heads, length, head_dim).
        attention_mask (`Tensor`, *optional*): added to the scores, or bool with True to attend; broadcastable to
            (batch, heads, length, length).
        scaling (`float`): factor of the scores, before the cap.
        softcap (`float`, *optional*): the soft cap c; None for no cap.

    Returns:
        the output (batch, length, heads, head_dim), and the weights (batch, heads, length, length).
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
    """The values of the reference, without a tensor of size length x length per head (see `_SoftcapAttention`).

    Args:
        query, key, value (`Tensor`): (batch, heads, length, head_dim).
        attention_mask (`Tensor`, *optional*): as for the reference. A mask of padding, (batch or 1, 1, 1, length), is
            fast. One with a row per query is passed to the reference.
        softcap (`float`, *optional*): the soft cap c. Without one, transformers' `sdpa` is called.

    Returns:
        the output (batch, length, heads, head_dim), and None.
    """
    if softcap is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    a_row_per_query = attention_mask is not None and attention_mask.shape[-2] > 1
    if a_row_per_query or torch.compiler.is_compiling():  # a compiler fuses the plain formula itself
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, softcap)
    batch, heads, _, _ = query.shape
    mask = None
    if attention_mask is not None:
        mask = _additive(attention_mask).float().expand(batch, heads, 1, -1).flatten(0, 1)
    return _SoftcapAttention.apply(query, key, value, mask, scaling, softcap), None


def _without_autocast(function):
    """Turn autocast off, which would round the scores of the forward and the backward pass in different ways."""

    @functools.wraps(function)
    def in_own_dtype(ctx, x: Tensor, *args):
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *args)

    return in_own_dtype


class _SoftcapAttention(torch.autograd.Function):
    """The output P v / l with l = P 1, in slabs. For the backward pass inputs, output and 1 / l are kept, and P is
    computed again:

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
        inverse = torch.where(total > 0, 1 / total, 0)  # a query with no key to attend to gives zeros
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
        dk *= ctx.softcap  # q contains the factor scaling / softcap
        gradients = (dx.view(x.shape).to(x.dtype) for dx, x in ((dq, query), (dk, key), (dv, value)))
        return *gradients, None, None, None


def _flat(x: Tensor) -> Tensor:
    """From (batch, heads, length, d) to (batch * heads, length, d), in at least float32, in which sums are taken."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1)


def _slabs(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """The slabs of the scores of q (heads, queries, d) and k (heads, keys, d): slices of heads and of query rows."""
    (heads, queries, _), keys = q.shape, k.shape[1]
    on_cpu = q.device.type == "cpu"
    rows = min(queries, _CPU_ROWS) if on_cpu else queries
    together = max(1, (_CPU_SLAB if on_cpu else _ACCELERATOR_SLAB) // (rows * keys))
    for head in range(0, heads, together):
        for row in range(0, queries, rows):
            yield slice(head, head + together), slice(row, row + rows)


def _additive(mask: Tensor) -> Tensor:
    """The additive form of a bool mask (True to attend); any other mask as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def padding_mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs
) -> Tensor | None:
    """The additive mask of padding, with one row for all queries: (batch, 1, 1, kv_length)."""
    if attention_mask is not None and attention_mask.device.type != "cpu":
        kwargs["allow_is_bidirectional_skip"] = False  # to find that nothing is masked the host would wait
    return eager_mask(batch_size, 1, kv_length, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(SOFTCAP_ATTENTION, softcap_attention_forward)
AttentionMaskInterface.register(SOFTCAP_ATTENTION, padding_mask)

# In a few of a thousand fresh processes the first tanh on several threads is wrong by 5e-5 in half of its elements
# (seen with torch 2.13 and MKL: https://github.com/pytorch/pytorch/issues/188792). A tanh of a single element before
# it prevents this.
torch.zeros(1).tanh()
