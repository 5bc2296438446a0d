"""Soft-capped attention: scores s become c tanh(s / c) before the softmax."""

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

SOFTCAP_ATTENTION = "flm_softcap"


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
    """The reference: `softmax(c tanh(q k^T scaling / c) + mask) v`, all scores at once, in float32.

    Args:
        query, key, value (`Tensor`): (batch, heads, length, head_dim).
        attention_mask (`Tensor`, *optional*): additive, broadcastable to (batch, heads, length, length).

    Returns:
        output (batch, length, heads, head_dim), and the weights (batch, heads, length, length).
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


softcap_attention_forward = eager_attention_forward
AttentionInterface.register(SOFTCAP_ATTENTION, softcap_attention_forward)
AttentionMaskInterface.register(SOFTCAP_ATTENTION, eager_mask)
