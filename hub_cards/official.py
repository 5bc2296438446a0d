"""Converts weights and configurations of the official implementation (github.com/david3684/flm) to this package's.

Both have the same network. Only names of weights differ; the rotary frequencies are stored there, and computed here.
"""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_flm import FLMConfig, FMLMConfig

_NAMES = [
    (r"vocab_embed\.embedding", "embed_tokens.weight"),
    (r"sigma_map\.mlp\.0\.(\w+)", r"time_embedding.linear_1.\1"),
    (r"sigma_map\.mlp\.2\.(\w+)", r"time_embedding.linear_2.\1"),
    (r"sigma_map_prime\.mlp\.0\.(\w+)", r"target_time_embedding.linear_1.\1"),
    (r"sigma_map_prime\.mlp\.2\.(\w+)", r"target_time_embedding.linear_2.\1"),
    (r"blocks\.(\d+)\.norm1\.weight", r"layers.\1.attention_norm.weight"),
    (r"blocks\.(\d+)\.attn_qkv\.weight", r"layers.\1.attention.qkv_proj.weight"),
    (r"blocks\.(\d+)\.attn_out\.weight", r"layers.\1.attention.o_proj.weight"),
    (r"blocks\.(\d+)\.norm2\.weight", r"layers.\1.mlp_norm.weight"),
    (r"blocks\.(\d+)\.mlp\.0\.(\w+)", r"layers.\1.mlp.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.2\.(\w+)", r"layers.\1.mlp.down_proj.\2"),
    (r"blocks\.(\d+)\.adaLN_modulation\.(\w+)", r"layers.\1.modulation.\2"),
    (r"output_layer\.norm_final\.weight", "norm.weight"),
    (r"output_layer\.adaLN_modulation\.(\w+)", r"modulation.\1"),
    (r"output_layer\.linear\.(\w+)", r"lm_head.\1"),
    (r"learnable_loss_weighting\.s_embed\.mlp\.0\.(\w+)", r"loss_weighting.time_embedding.linear_1.\1"),
    (r"learnable_loss_weighting\.s_embed\.mlp\.2\.(\w+)", r"loss_weighting.time_embedding.linear_2.\1"),
    (r"learnable_loss_weighting\.mlp\.0\.(\w+)", r"loss_weighting.linear_1.\1"),
    (r"learnable_loss_weighting\.mlp\.2\.(\w+)", r"loss_weighting.linear_2.\1"),
]
COMPUTED = "rotary_emb.inv_freq"  # a stored constant of the official network, which ours computes


def convert_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official state dict as this package does. The stored rotary frequencies are dropped.

    Raises:
        ValueError: if a key is not one of the official network. The message names it.
    """
    converted = {_convert_name(name): tensor for name, tensor in official.items() if name != COMPUTED}
    weighting = "loss_weighting.time_embedding"
    if f"{weighting}.linear_1.weight" in converted and "target_time_embedding.linear_1.weight" in converted:
        # The official loss weight ignores the second time. Ours gets an embedding of it, whose last layer is zero.
        for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
            like = converted[f"{weighting}.{name}"]
            added = like.clone() if name.startswith("linear_1") else torch.zeros_like(like)
            converted[f"loss_weighting.target_time_embedding.{name}"] = added
    return converted


def _convert_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise ValueError(f"{name!r} is not a weight of the official network.")


def official_name(name: str) -> str:
    """The official name of a weight, by its name in this package.

    Raises:
        ValueError: if the official network has no such weight.
    """
    for pattern, replacement in _NAMES:
        ours = re.sub(r"\\\\\d", r"(\\w+)", re.escape(replacement))
        if match := re.fullmatch(ours, name):
            for group in match.groups():
                pattern = re.sub(r"\(.*?\)", group, pattern, count=1)
            return pattern.replace("\\.", ".")
    raise ValueError(f"the official network has no weight {name}.")


def convert_config(
    official: Mapping, weights: Mapping[str, Tensor], final_logit_softcapping: float | None = 30.0
) -> FLMConfig:
    """The configuration of an official model, from its `config.json` and the shapes of its weights.

    The model is a flow map (FMLM) if its weights have a second time embedding, else a flow (FLM).

    Args:
        official (`Mapping`): the `config.json` of the official export, with `vocab_size`, and with `n_heads`, `length`
            and `dropout` in `model`.
        weights (`Mapping[str, Tensor]`): the official state dict, with its own names.
        final_logit_softcapping (`float`, *optional*): 30 for the second published version, None for the first.

    Raises:
        ValueError: if a value or weight that decides a size is missing, or a value contradicts the weights.
    """
    model = official.get("model") or {}
    for section, names in ((official, ("vocab_size", "model")), (model, ("n_heads", "length", "dropout"))):
        for name in names:
            if name not in section:
                raise ValueError(f"the official configuration has no {name}.")
    for name in ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "blocks.0.mlp.0.weight"):
        if name not in weights:
            raise ValueError(f"the weight {name} is missing.")
    if COMPUTED in weights:
        _check_angles(weights[COMPUTED], weights["vocab_embed.embedding"].shape[1], model["n_heads"])
    config_class = FMLMConfig if any(name.startswith("sigma_map_prime.") for name in weights) else FLMConfig
    vocab_size, hidden_size = weights["vocab_embed.embedding"].shape
    conditioning_size, time_embedding_size = weights["sigma_map.mlp.0.weight"].shape
    for name, said, found in (
        ("vocab_size", official["vocab_size"], vocab_size),
        ("hidden_size", model.get("hidden_size", hidden_size), hidden_size),
        ("cond_dim", model.get("cond_dim", conditioning_size), conditioning_size),
    ):
        if said != found:
            raise ValueError(f"the official configuration says {name} {said}, but the weights have {found}.")
    return config_class(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=sum(name.endswith("attn_qkv.weight") for name in weights),
        num_attention_heads=model["n_heads"],
        intermediate_size=weights["blocks.0.mlp.0.weight"].shape[0],
        max_position_embeddings=model["length"],
        conditioning_size=conditioning_size,
        time_embedding_size=time_embedding_size,
        final_logit_softcapping=final_logit_softcapping,
        hidden_dropout=model["dropout"],
        loss_weighting=any(name.startswith("learnable_loss_weighting.") for name in weights),
    )


def _check_angles(frequencies: Tensor, hidden_size: int, num_heads: int) -> None:
    """Only the rotary frequencies tell the number of heads: all other shapes fit any."""
    half = hidden_size // num_heads // 2
    if len(frequencies) != half:
        raise ValueError(
            f"the official configuration says n_heads {num_heads}, but the weights have "
            f"{hidden_size / 2 / len(frequencies):g}."
        )
    if not torch.allclose(frequencies.float(), 10000 ** (-torch.arange(half) / half), rtol=1e-2):
        raise ValueError(
            "the rotary frequencies of the weights are not those of the base 10,000, which the model has."
        )


@torch.no_grad()
def official_logits(
    weights: Mapping[str, Tensor],
    num_heads: int,
    state: Tensor,
    tau: Tensor,
    target_tau: Tensor | None = None,
    final_logit_softcapping: float | None = None,
) -> Tensor:
    """The logits of the official network, computed by its equations from its own weights in float32.

    A conversion is checked against them. The code shares nothing with this package's model, and is written to be read.

    Args:
        weights (`Mapping[str, Tensor]`): the official state dict, with its own names.
        num_heads (`int`): number of attention heads.
        state (`Tensor`): (B, L, V), states that are not embedded.
        tau (`Tensor`): (B,), the time, in [0, 1].
        target_tau (`Tensor`, *optional*): (B,), the second time of a flow map.
        final_logit_softcapping (`float`, *optional*): cap on the logits; None for no cap.

    Returns:
        logits (B, L, V).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        bias = weights.get(f"{name}.bias")
        return F.linear(x, weights[f"{name}.weight"].float(), None if bias is None else bias.float())

    def embed_time(name: str, time: Tensor) -> Tensor:
        half = weights[f"{name}.mlp.0.weight"].shape[1] // 2
        angles = time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        return linear(f"{name}.mlp.2", F.silu(linear(f"{name}.mlp.0", torch.cat([angles.cos(), angles.sin()], -1))))

    def norm(name: str, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].float()) * (1 + scale) + shift

    def modulation(name: str, pieces: int) -> tuple[Tensor, ...]:
        return linear(f"{name}.adaLN_modulation", condition)[:, None].chunk(pieces, dim=-1)

    hidden = state.float() @ weights["vocab_embed.embedding"].float()
    batch, length, width = hidden.shape
    time = embed_time("sigma_map", tau)
    if target_tau is not None:
        time = time + embed_time("sigma_map_prime", target_tau)
    condition = F.silu(time)
    half = width // num_heads // 2
    angles = torch.arange(length)[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    for i in range(sum(name.endswith("attn_qkv.weight") for name in weights)):
        block = f"blocks.{i}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(block, 6)
        projected = linear(f"{block}.attn_qkv", norm(f"{block}.norm1", hidden, shift_1, scale_1))
        query, key, value = projected.view(batch, length, 3, num_heads, 2 * half).permute(2, 0, 3, 1, 4)
        query, key = (
            torch.cat([x[..., :half] * angles.cos() - x[..., half:] * angles.sin(),
                       x[..., half:] * angles.cos() + x[..., :half] * angles.sin()], -1)
            for x in (query, key)
        )  # fmt: skip
        scores = 50 * torch.tanh(query @ key.mT / math.sqrt(2 * half) / 50)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + gate_1 * linear(f"{block}.attn_out", attended)
        inner = linear(f"{block}.mlp.0", norm(f"{block}.norm2", hidden, shift_2, scale_2))
        hidden = hidden + gate_2 * linear(f"{block}.mlp.2", F.gelu(inner, approximate="tanh"))
    logits = linear("output_layer.linear", norm("output_layer.norm_final", hidden, *modulation("output_layer", 2)))
    cap = final_logit_softcapping
    return logits if cap is None else cap * torch.tanh(logits / cap)
