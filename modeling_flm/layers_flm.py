"""The layers of the transformer of arXiv 2602.16813: time embeddings, attention and blocks modulated by the time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_flm import eager_attention_forward
from .configuration_flm import FLMConfig


class FLMZeroLinear(nn.Linear):
    """A linear layer that is zero at initialisation, so that what it adds or modulates has no effect at first."""


class FLMEmbedding(nn.Embedding):
    """The embedding table, from ids (...) to float32 embeddings (..., d)."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.long()).float()


class FLMTimeLinear(nn.Linear):
    """A linear layer that computes in at least float32, whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class FLMZeroTimeLinear(FLMTimeLinear, FLMZeroLinear):
    """A linear layer that computes in at least float32, and is zero at initialisation."""


class FLMTimeEmbedding(nn.Module):
    """The embedding of times tau (batch,) in [0, 1]: a two-layer MLP of cosines and sines of tau 10000^(-k / n).

    It computes in float32, under autocast too: bfloat16 could not tell times apart that differ by 1/1000.
    """

    def __init__(self, config: FLMConfig, last: type[nn.Linear] = FLMTimeLinear):
        super().__init__()
        self.num_frequencies = config.time_embedding_size // 2
        self.linear_1 = FLMTimeLinear(config.time_embedding_size, config.conditioning_size)
        self.linear_2 = last(config.conditioning_size, config.conditioning_size)

    def forward(self, tau: Tensor) -> Tensor:
        with torch.autocast(tau.device.type, enabled=False):
            steps = torch.arange(self.num_frequencies, device=tau.device, dtype=torch.float32)
            angles = tau.float()[:, None] * 10000.0 ** (-steps / self.num_frequencies)
            features = torch.cat([angles.cos(), angles.sin()], dim=-1)
            return self.linear_2(F.silu(self.linear_1(features)))


class FLMAttention(nn.Module):
    """Bidirectional multi-head attention with rotary positions and soft-capped scores."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: FLMConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention_mask: Tensor | None) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv_proj(hidden).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = attend(
            self,
            _rotate(query, *rotary),
            _rotate(key, *rotary),
            value,
            attention_mask,
            dropout=0.0,
            scaling=self.head_dim**-0.5,
            softcap=self.config.attn_logit_softcapping,
            is_causal=False,
        )
        return self.o_proj(output.reshape(batch, length, width))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (batch, heads, length, head_dim), where entries i and i + head_dim / 2 are a pair."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class FLMMLP(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them."""

    def __init__(self, config: FLMConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden), approximate="tanh"))


class FLMBlock(GradientCheckpointingLayer):
    """A transformer block in which the time condition shifts, scales and gates attention and MLP (adaLN)."""

    def __init__(self, config: FLMConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.attention = FLMAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.mlp = FLMMLP(config)
        self.modulation = FLMZeroLinear(config.conditioning_size, 6 * config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor], attention_mask: Tensor | None
    ) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=-1)
        branch = self.attention(modulate(self.attention_norm(hidden), shift_a, scale_a), rotary, attention_mask)
        hidden = torch.addcmul(hidden, gate_a, self.dropout(branch))
        branch = self.mlp(modulate(self.mlp_norm(hidden), shift_m, scale_m))
        return torch.addcmul(hidden, gate_m, self.dropout(branch))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x (1 + scale) + shift`, as adaLN modulates a normalised input."""
    return torch.addcmul(shift, x, 1 + scale)


class FLMLossWeighting(nn.Module):
    """The learned loss weight w(tau), for a flow map w(tau_s, tau_t), by which a loss l becomes exp(-w) l + w. It is
    computed in float32, of shape (batch,)."""

    def __init__(self, config: FLMConfig):
        super().__init__()
        self.time_embedding = FLMTimeEmbedding(config)
        two_times = config.two_times
        self.target_time_embedding = FLMTimeEmbedding(config, last=FLMZeroTimeLinear) if two_times else None
        self.linear_1 = FLMTimeLinear(config.conditioning_size, 128)
        self.linear_2 = FLMZeroTimeLinear(128, 1)

    def forward(self, tau: Tensor, target: Tensor | None = None) -> Tensor:
        embedding = self.time_embedding(tau)
        if self.target_time_embedding is not None:
            embedding = embedding + self.target_time_embedding(tau if target is None else target)
        with torch.autocast(tau.device.type, enabled=False):
            return self.linear_2(F.gelu(self.linear_1(embedding))).squeeze(-1).float()


@contextmanager
def without_dropout(*models: nn.Module) -> Iterator[None]:
    """A context in which the models are in evaluation mode."""
    in_training = [module for model in models for module in model.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
