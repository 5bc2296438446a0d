"""Flow language models: the one-time denoiser (FLM) and the two-time denoiser or flow map (FMLM).

Both are the transformer of arXiv 2602.16813, section 5: token states enter through one linear map (the embedding
table), time modulates every block (adaLN), attention is bidirectional with rotary positions and soft-capped scores.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .attention_flm import SOFTCAP_ATTENTION, eager_attention_forward
from .configuration_flm import FLMConfig, FMLMConfig
from .flow_flm import (
    Clock,
    NoiseLaw,
    as_seeds,
    embedded_noise,
    expected_embedding,
    interpolate,
    most_likely_token,
    seeds_of,
    softcap,
    to_where_text_begins,
    white_noise,
)
from .generation_config_flm import FlowGenerationConfig
from .generation_flm import FlowGenerationMixin
from .losses_flm import chunked_cross_entropy


@dataclass
class FLMOutput(ModelOutput):
    """What a flow language model returns.

    Args:
        loss (`Tensor`, *optional*): scalar, the training objective; with `labels`.
        logits (`Tensor`, *optional*): (batch, length, V), soft-capped; without `labels`.
        token_losses (`Tensor`, *optional*): (batch, length) float32 cross entropy in nats, detached, 0 where nothing
            is scored; with `labels`.
        scored (`Tensor`, *optional*): (batch, length) int64, 1 at the positions that count and 0 elsewhere; with
            `labels`. Where a Trainer joins batches of different lengths it fills up with -100, in `token_losses` too:
            `scored == 1` is right there as well, and would not be of a bool.
        timesteps (`Tensor`, *optional*): (batch,) the times tau the loss was taken at; with `labels`.
        hidden_states (`tuple[Tensor]`, *optional*): (batch, length, d) after the embedding and after each block.
        last_hidden_state (`Tensor`, *optional*): (batch, length, d), what the output layer reads; in place of logits
            with `output_logits=False`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None
    scored: Tensor | None = None
    timesteps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


class FLMZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it adds or modulates is absent at first."""


class FLMEmbedding(nn.Embedding):
    """The embedding table: ids (...) to float32 (..., d)."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.long()).float()


class FLMTimeLinear(nn.Linear):
    """A linear layer that computes in at least float32, whatever its weights are kept in."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class FLMZeroTimeLinear(FLMTimeLinear, FLMZeroLinear):
    """One that starts at zero."""


class FLMTimeEmbedding(nn.Module):
    """Features of a time tau in [0, 1]: cosines and sines of tau 10000^(-k / n), through a two-layer MLP.

    It computes in float32, under autocast too: bfloat16 would round away the difference of times 1/1000 apart.
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
    """Rotary positions on (batch, heads, length, head_dim): a head's two halves are the two axes of its planes."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class FLMMLP(nn.Module):
    def __init__(self, config: FLMConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden), approximate="tanh"))


class FLMBlock(GradientCheckpointingLayer):
    """A transformer block whose two branches are shifted, scaled and gated by the time condition (adaLN)."""

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
        branch = self.attention(_modulate(self.attention_norm(hidden), shift_a, scale_a), rotary, attention_mask)
        hidden = torch.addcmul(hidden, gate_a, self.dropout(branch))
        branch = self.mlp(_modulate(self.mlp_norm(hidden), shift_m, scale_m))
        return torch.addcmul(hidden, gate_m, self.dropout(branch))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class FLMLossWeighting(nn.Module):
    """The learned loss weight w(tau), of a flow map w(tau_s, tau_t): exp(-w) l + w, (batch,). In float32."""

    def __init__(self, config: FLMConfig):
        super().__init__()
        self.time_embedding = FLMTimeEmbedding(config)
        two_times = config.model_type == "fmlm"
        self.target_time_embedding = FLMTimeEmbedding(config, last=FLMZeroTimeLinear) if two_times else None
        self.linear_1 = FLMTimeLinear(config.conditioning_size, 128)
        self.linear_2 = FLMZeroTimeLinear(128, 1)

    def forward(self, tau: Tensor, target: Tensor | None = None) -> Tensor:
        embedding = self.time_embedding(tau)
        if self.target_time_embedding is not None:
            embedding = embedding + self.target_time_embedding(tau if target is None else target)
        with torch.autocast(tau.device.type, enabled=False):
            return self.linear_2(F.gelu(self.linear_1(embedding))).squeeze(-1).float()


# ---------------------------------------------------------------------------------------------------------------------
# The weights of the vocabulary's two layers. The network calls them as layers; but noise, losses and samplers need the
# table and the output layer as matrices. What may stand in a layer's place has no such weight to read, or another than
# it computes with: a PEFT adapter, a quantised layer, one whose weights an offloading hook brings for the time of a
# call. So the matrices are read off the layer's own calls, which is exact for what is linear in its input, gives every
# adapter its gradient, and costs V d and V d^2. Of a layer as it was made they are its parameters, at no cost.
# ---------------------------------------------------------------------------------------------------------------------

_PROBE = 256.0  # so that a bias is small beside it, whose rounding the weights would get; a power of 2 rounds none


def _is_plain(layer: nn.Module, forward: Callable) -> bool:
    """Whether calls of `layer` are `forward` on its own parameters, and nothing else."""
    if getattr(layer.forward, "__func__", None) is not forward or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    # A tensor made of others is quantised or sharded.
    return not any(hasattr(weight, "__tensor_flatten__") or weight.is_meta for weight in layer.parameters())


def _place_of(layer: nn.Module) -> torch.device:
    """The device that a layer computes on: that of its weights, but where a hook of accelerate's brings them."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for own in getattr(hook, "hooks", [hook]):
            if (place := getattr(own, "execution_device", None)) is not None:
                return torch.device(place)
    return next(layer.parameters()).device


def _table_of(layer: nn.Module, vocab_size: int) -> Tensor:
    """The table (V, d) of an embedding layer."""
    if _is_plain(layer, FLMEmbedding.forward):
        return layer.weight
    device = _place_of(layer)
    with torch.autocast(device.type, enabled=False):
        return layer(torch.arange(vocab_size, device=device))


def _matrix_of(layer: nn.Module, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W (V, d) and b (V,) of a layer that computes `x W^T + b` of x (..., d) in `dtype`."""
    if _is_plain(layer, nn.Linear.forward):
        return layer.weight, layer.bias
    device = _place_of(layer)
    with torch.autocast(device.type, enabled=False):
        zero_and_axes = torch.eye(1 + width, width, device=device, dtype=dtype).roll(1, 0)
        bias, rows = layer(_PROBE * zero_and_axes).split([1, width])
        return ((rows - bias) / _PROBE).T, bias[0]


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


class FLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of flow language models."""

    config_class = FLMConfig
    base_model_prefix = ""
    generation_config_class = FlowGenerationConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["FLMBlock"]
    # Float32 where the rest is loaded in half precision, and left out of quantisation: all quantisers of transformers
    # heed the first list, what loads weights in bfloat16 the second.
    _keep_in_fp32_modules = ["time_embedding", "target_time_embedding", "loss_weighting"]
    _keep_in_fp32_modules_strict = _keep_in_fp32_modules
    _input_embed_layer = "embed_tokens"
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def _supports_sdpa(self) -> bool:
        return self.config.attn_logit_softcapping is None  # sdpa cannot cap scores

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention is None and self.config.attn_logit_softcapping is not None:
            return SOFTCAP_ATTENTION
        if requested_attention == "sdpa" and self.config.attn_logit_softcapping is not None:
            raise ValueError(
                '`attn_implementation="sdpa"` cannot cap attention scores, and `attn_logit_softcapping` is '
                f'{self.config.attn_logit_softcapping}: use "{SOFTCAP_ATTENTION}" (the default), "eager", '
                '"flex_attention" or "flash_attention_2".'
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FLMZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = None, **kwargs):
        """[`~PreTrainedModel.from_pretrained`] of safetensors alone: pickled weights are not read.

        Raises:
            ValueError: `use_safetensors` is False, the file of the weights is damaged, or they are those of a flow map
                and this is the class of a flow, which would leave out its second time.
        """
        if use_safetensors is False:
            raise ValueError("`use_safetensors=False`: pickled weights are not read, convert them to safetensors.")
        name = pretrained_model_name_or_path
        with_info = kwargs.pop("output_loading_info", False)
        try:
            loaded: Any = super().from_pretrained(
                name, *args, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(f"the weights of {name} are damaged ({error}): download or write them again.") from error
        if any(key.startswith("target_time_embedding.") for key in loaded[1]["unexpected_keys"]):
            raise ValueError(f"{name} is a flow map (FMLM), and {cls.__name__} is no class for it: use AutoModel.")
        return loaded if with_info else loaded[0]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """[`~PreTrainedModel.save_pretrained`] that cannot spoil what is already there.

        Everything is written beside its place first and moved there when all of it is complete: a save that fails (a
        full disk, say) leaves an earlier model in the same folder as it was. With `push_to_hub` it is not so.
        """
        kwargs |= {"is_main_process": is_main_process, "variant": variant}
        if push_to_hub:
            return super().save_pretrained(save_directory, push_to_hub=True, **kwargs)
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=".saving-") as staging:
            super().save_pretrained(staging, **kwargs)
            written = os.listdir(staging)
            for name in written:
                os.replace(os.path.join(staging, name), os.path.join(save_directory, name))
        of = "" if variant is None else re.escape(f".{variant}")
        weights = rf"model{of}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{of}\.json"
        if any(re.fullmatch(weights, name) for name in written):  # shards of an earlier save would be loaded as well
            for name in os.listdir(save_directory):
                if re.fullmatch(weights, name) and name not in written:
                    os.remove(os.path.join(save_directory, name))


class FLMModel(FLMPreTrainedModel, FlowGenerationMixin):
    """The denoiser of a flow language model: the posterior D_t(x) = p(x1 | x_t = x) of every token.

    ```python
    model = AutoModel.from_pretrained("org/flm", trust_remote_code=True)
    ids = model.generate(num_steps=64, num_return_sequences=4)   # sample
    loss = model(labels=ids).loss                                # train
    ```
    """

    def __init__(self, config: FLMConfig):
        super().__init__(config)
        self.embed_tokens = FLMEmbedding(config.vocab_size, config.hidden_size)
        self.position_embedding = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if config.learned_positions else None
        )
        self.time_embedding = FLMTimeEmbedding(config)
        self.layers = nn.ModuleList(FLMBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.modulation = FLMZeroLinear(config.conditioning_size, 2 * config.hidden_size)
        self.lm_head = FLMZeroLinear(config.hidden_size, config.vocab_size)
        self.loss_weighting = FLMLossWeighting(config) if config.loss_weighting else None
        self._clock = Clock(config.vocab_size)
        self._kept_law: tuple[Tensor, NoiseLaw] | None = None
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where states are: the device that the embedding table computes on. To others of a `device_map` they go."""
        return _place_of(self.embed_tokens)

    @property
    def clock(self) -> Clock:
        """The time change tau <-> t of this vocabulary."""
        if self._clock.vocab_size != self.config.vocab_size:  # after resize_token_embeddings
            self._clock = Clock(self.config.vocab_size)
        return self._clock

    def add_loss_weighting(self) -> None:
        """Give the model a learned loss weight w(tau), zero at first; does nothing if it has one."""
        if self.loss_weighting is None:
            self.config.loss_weighting = True
            self.loss_weighting = FLMLossWeighting(self.config).to(self.device)
            self.loss_weighting.apply(self._init_weights)

    # -- the weights of the vocabulary: all that needs them as matrices takes them from here --------------------------

    def vocabulary_table(self) -> Tensor:
        """The embedding table E (V, d): the parameter itself, or what an adapted, quantised or offloaded layer
        computes with, differentiable. To be asked for where it is needed: it is as the weights are now."""
        return _table_of(self.embed_tokens, self.config.vocab_size).to(self.device)

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """W (V, d) and b (V,) of the logits `hidden W^T + b`, as [`vocabulary_table`] gives the table; for what is not
        the parameters themselves at V d^2 of work a call."""
        weight, bias = _matrix_of(self.lm_head, self.config.hidden_size, self.dtype)
        return weight.to(self.device), bias.to(self.device)

    # -- the ways into the embedded space and out of it ---------------------------------------------------------------

    def embed_state(self, state: Tensor) -> Tensor:
        """Embed ids (batch, length), as one-hots, or a dense state (batch, length, V): float32 (batch, length, d)."""
        if not state.is_floating_point():
            self._check_ids("state", state)
            return self.embed_tokens(state)
        if state.shape[-1] != self.config.vocab_size:
            raise ValueError(
                f"a dense state has one entry per token of the vocabulary: expected (batch, length, "
                f"{self.config.vocab_size}), got {tuple(state.shape)}."
            )
        with torch.autocast(state.device.type, enabled=False):
            return state.float() @ self.vocabulary_table().float()

    def embed_noise(
        self,
        batch_size: int,
        length: int,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Embedded Gaussian noise `x0 @ E`, x0 ~ N(0, I_V): float32 (batch, length, d).

        Drawn from `generator` (None: the global one), or from one seed per sequence, which makes a sequence's noise
        independent of the batch around it. The dense product is formed where it is the cheaper way (V <= d, or,
        without seeds, no more tokens than d), the equal law of [`embedded_noise`] is used otherwise.
        """
        return self._embed_noise_and_uniform(batch_size, length, generator, seeds)[0]

    def _embed_noise_and_uniform(
        self,
        batch_size: int,
        length: int,
        generator: torch.Generator | None,
        seeds: Sequence[int] | None,
        law: NoiseLaw | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embedded noise, and a number in [0, 1) per sequence: independent with seeds, else evenly spread (batch,).

        What a seed gives is counted from the first token that is not padding.
        """
        vocab_size, width = self.config.vocab_size, self.config.hidden_size
        device = self.device
        dense = vocab_size <= width or (seeds is None and batch_size * length <= width)
        size = vocab_size if dense else width
        if seeds is not None:
            if generator is not None:
                raise ValueError("give seeds (`noise_seed`) or `generator`, not both.")
            seeds = as_seeds("noise_seed", seeds, batch_size)
            noise, uniform = white_noise(seeds, length, size, device, self.config.max_position_embeddings)
            noise = to_where_text_begins(noise, attention_mask)
        else:
            noise = torch.randn(batch_size, length, size, generator=generator, device=device)
            spread = torch.arange(batch_size, device=device) / batch_size
            uniform = (torch.rand((), generator=generator, device=device) + spread) % 1
        return self.embed_white_noise(noise, law), uniform

    def embed_white_noise(self, white: Tensor, law: NoiseLaw | None = None) -> Tensor:
        """The embedding of noise over the vocabulary: float32 (..., d).

        Args:
            white (`Tensor`): standard normal: (..., V), that noise itself; or, where V > d, (..., d), from which
                [`embedded_noise`] makes the embedding of one.
            law (`NoiseLaw`, *optional*): of the table, for the latter.
        """
        if white.shape[-1] == self.config.vocab_size:
            return self.embed_state(white)
        with torch.autocast(white.device.type, enabled=False):
            table = self.vocabulary_table()
            if law is None and not torch.is_grad_enabled():
                law = self._law(table)
            return embedded_noise(white, table, law=law)[0].float()

    def _law(self, table: Tensor) -> NoiseLaw:
        """The law of the noise, kept from call to call while the table stays as it is: it costs V d^2.

        What tells is a weighted sum of its rows, at V d: versions and addresses miss a change through `.data`.
        """
        rows = torch.arange(1, len(table) + 1, device=table.device)
        mark = rows.sin().to(table.dtype) @ table
        kept = self._kept_law
        if kept is None or kept[0].device != mark.device or not torch.equal(kept[0], mark):
            self._kept_law = kept = mark, NoiseLaw()
        return kept[1]

    def embed_prediction(self, hidden: Tensor) -> Tensor:
        """Embed the prediction of `hidden` (batch, length, d): `softmax(logits) @ E`, float32, blockwise over V."""
        embedding = expected_embedding(
            hidden.flatten(0, 1), *self.output_layer(), self.vocabulary_table(), self.config.final_logit_softcapping
        )
        return embedding.view(hidden.shape)

    def decode_prediction(self, hidden: Tensor) -> Tensor:
        """The most likely token of each position of `hidden` (batch, length, d), -1 where its logit is not finite:
        int64 (batch, length), blockwise."""
        return most_likely_token(hidden.flatten(0, 1), *self.output_layer()).view(hidden.shape[:2])

    def pipeline(self, tokenizer: PreTrainedTokenizerBase, **kwargs):
        """The text-generation pipeline of this model, a [`FLMPipeline`]; `kwargs` are its defaults."""
        from .pipeline_flm import FLMPipeline  # here it also tells transformers that this file belongs to the model's

        return FLMPipeline(model=self, tokenizer=tokenizer, **kwargs)

    # -- the network --------------------------------------------------------------------------------------------------

    def denoise(
        self,
        state: Tensor,
        timesteps: Tensor,
        target_timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        all_hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """The backbone: embedded state (batch, length, d) at tau (batch,) to the last hidden state, same shape."""
        batch, length, _ = state.shape
        hidden = state.to(self.dtype)
        condition = F.silu(self._time_condition(timesteps, target_timesteps)).to(hidden.dtype)
        if self.position_embedding is not None:
            positions = self.position_embedding(torch.arange(length, device=state.device))
            hidden = hidden + positions.to(state.device)
        rotary = self._rotary(length, state.device)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        for layer in self.layers:
            if all_hidden is not None:
                all_hidden.append(hidden)
            hidden = layer(hidden, condition, rotary, mask)
        if all_hidden is not None:
            all_hidden.append(hidden)
        # Of several devices the state's is where the rest goes on.
        shift, scale = self.modulation(condition)[:, None].to(state.device).chunk(2, dim=-1)
        return _modulate(self.norm(hidden).to(state.device), shift, scale)

    def _time_condition(self, timesteps: Tensor, target_timesteps: Tensor | None) -> Tensor:
        if target_timesteps is not None:
            raise ValueError("`target_timesteps` needs a two-time model (FMLM); this is a one-time denoiser (FLM).")
        return self.time_embedding(timesteps)

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequency = self.config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
        return angles.cos(), angles.sin()

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        timesteps: Tensor | None = None,
        target_timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        conditioning_mask: Tensor | None = None,
        noise_seed: Tensor | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise_law: NoiseLaw | None = None,
        output_hidden_states: bool | None = None,
        output_logits: bool = True,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> FLMOutput | tuple:
        """The training loss of `labels`, or, without labels, the logits of a state.

        With labels, data is noised to x_t = (1-t) x0 + t x1 at a time that is uniform in tau, and the loss is the mean
        cross entropy `-log D_t(x_t)[x1]` over the scored positions (L_FLM of the paper). Scored is what is neither
        padding, nor labelled -100, nor conditioning. Positions labelled -100 are kept clean when `input_ids` give
        their token (a prompt, say): they condition.

        In training noise and times are drawn anew in each call. In evaluation (`model.eval()`) they are fixed: unless
        `noise_seed` or `generator` is given, a row's seed is a hash of its tokens without the padding, so that its
        loss is the same again, in any batch and on any process. A flow map is not trained by `labels`, which leave its
        jumps unattended to.

        Args:
            input_ids (`Tensor`, *optional*): (batch, length) clean ids; default: `labels`. Without labels, and with
                `timesteps`, they are the state itself, as one-hots.
            inputs_embeds (`Tensor`, *optional*): (batch, length, d) an embedded state (see `embed_state`) to be taken
                as it is; needs `timesteps`. With labels, the loss of this state.
            labels (`Tensor`, *optional*): (batch, length) ids to predict; -100 where nothing is scored.
            timesteps (`Tensor`, *optional*): (batch,) tau in [0, 1]; default, with labels: drawn, evenly spread over
                the batch or, where noise comes from seeds, from each row's own.
            target_timesteps (`Tensor`, *optional*): (batch,) tau in [timesteps, 1], FMLM only; default: `timesteps`,
                the diagonal, where the flow map's denoiser is the flow's.
            attention_mask (`Tensor`, *optional*): (batch, length), 0 at padding: neither attended to nor scored.
            conditioning_mask (`Tensor`, *optional*): (batch, length) bool, True where the token is kept clean.
            noise_seed (`Tensor` or `list[int]`, *optional*): (batch,) a seed per sequence for its noise and time: the
                same example gets the same noise whatever the batch layout and padding. Default in evaluation: from
                the ids.
            generator (`torch.Generator`, *optional*): source of noise and times without `noise_seed`; in evaluation,
                too, they are then random.
            noise_law (`NoiseLaw`, *optional*): one object for all calls between two changes of the weights, such as
                the micro-batches of a step: what the noise needs of the embedding table is then worked out once.
            output_hidden_states (`bool`, *optional*): also return all hidden states.
            output_logits (`bool`): without labels, False returns the last hidden state in place of (batch, length, V)
                logits: `embed_prediction`, `decode_prediction` and the losses take it from there.
            return_dict (`bool`, *optional*): False for a plain tuple. Its default, and that of `output_hidden_states`,
                are the config's.
            num_items_in_batch (`int`, *optional*): the number of labels other than -100 in all micro-batches of a
                step (gradient accumulation). The loss is then the mean here times the share of them that is here: all
                micro-batches together give the mean over what is scored if no other position has a label, and a
                weighted mean of their means otherwise (`labels = input_ids` with padding).

        Raises:
            ValueError: arguments that contradict each other or would go unused, wrong shapes, or `labels` for a flow
                map in training. Values (ids, times,
                labels that are not the `input_ids`, nothing to score) are checked on a CPU only, and not in compiled
                code: on an accelerator the check would make the host wait for every step.
        """
        unknown = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
        if unknown:
            hint = " Rows joined by DataCollatorWithFlattening would see each other: pad them." * (
                "position_ids" in unknown
            )
            raise TypeError(f"{type(self).__name__}.forward() got unexpected arguments {unknown}.{hint}")
        if labels is None and num_items_in_batch is not None:
            raise ValueError(
                "the Trainer kept the `labels`, which are to be noised here, to itself: leave out "
                "`label_smoothing_factor` and `compute_loss_func`; the loss is the model's own."
            )
        batch = self._check_shapes(input_ids, inputs_embeds, labels, attention_mask, conditioning_mask)
        noised = inputs_embeds is None and labels is not None
        if noised and self.config.model_type == "fmlm" and self.training and torch.is_grad_enabled():
            raise ValueError(
                "`labels` train the diagonal of a flow map alone, which spoils its jumps: use FMLMTrainer, with a "
                "flow as its teacher or, to learn from the data, without one. (To evaluate: `model.eval()`.)"
            )
        if not noised and not (noise_seed is None and generator is None):
            raise ValueError("`noise_seed` and `generator` noise `labels`, but here the state is given.")
        if not noised and timesteps is None:
            raise ValueError(
                "`timesteps` is missing: the time tau in [0, 1] of the given state, shape (batch,). (To train, give "
                "`labels`.)"
            )
        timesteps = self._check_times("timesteps", timesteps, batch)
        target_timesteps = self._check_times("target_timesteps", target_timesteps, batch)
        if target_timesteps is not None:
            self._check_target(labels, timesteps, target_timesteps)

        scored = _scored_positions(labels, attention_mask, conditioning_mask)
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds, attention_mask, scored)
        if inputs_embeds is not None:
            state = inputs_embeds
        elif labels is None:
            self._check_ids("input_ids", input_ids)
            state = self.embed_tokens(input_ids)
        else:
            clean = labels.clamp(min=0) if input_ids is None else input_ids
            keep = conditioning_mask if input_ids is None else _union(conditioning_mask, labels == -100)
            state, timesteps = self._corrupt(clean, timesteps, keep, attention_mask, noise_seed, generator, noise_law)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        all_hidden: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.denoise(state, timesteps, target_timesteps, attention_mask, all_hidden)

        hidden_states = None if all_hidden is None else tuple(all_hidden)
        if labels is None and not output_logits:
            output = FLMOutput(hidden_states=hidden_states, last_hidden_state=hidden)
        elif labels is None:
            logits = softcap(self.lm_head(hidden), self.config.final_logit_softcapping)
            output = FLMOutput(logits=logits, hidden_states=hidden_states)
        else:
            loss, losses = self._loss(hidden, labels, scored, timesteps, num_items_in_batch)
            output = FLMOutput(loss, None, losses, scored.long(), timesteps, hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @torch.compiler.disable  # generators cannot be compiled, and each new seed would be compiled for anew
    def _corrupt(
        self,
        clean: Tensor,
        timesteps: Tensor | None,
        keep: Tensor | None,
        attention_mask: Tensor | None,
        noise_seed: Tensor | Sequence[int] | None,
        generator: torch.Generator | None,
        law: NoiseLaw | None,
    ) -> tuple[Tensor, Tensor]:
        """The state at tau (drawn when not given) of ids (batch, length), clean where `keep`: embedded; and tau."""
        if noise_seed is None and generator is None and not self.training:
            noise_seed = seeds_of(clean, attention_mask)
        batch, length = clean.shape
        noise, uniform = self._embed_noise_and_uniform(batch, length, generator, noise_seed, law, attention_mask)
        tau = uniform if timesteps is None else timesteps
        data = self.embed_tokens(clean)
        state = interpolate(noise, data, self.clock.t(tau))
        if keep is not None:
            state = torch.where(keep[..., None].bool(), data, state)
        return state, tau

    def _loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        scored: Tensor,
        timesteps: Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, Tensor]:
        weights, offset = scored.float(), 0.0
        if self.loss_weighting is not None and self.training:
            log_weight = self.loss_weighting(timesteps)[:, None]
            offset = (log_weight * scored).sum()
            weights = weights * torch.exp(-log_weight)
        total, losses = chunked_cross_entropy(
            hidden.flatten(0, 1),
            *self.output_layer(),
            labels.flatten().clamp(min=0).long(),
            weights.flatten(),
            self.config.final_logit_softcapping,
        )
        count = scored.sum()
        if num_items_in_batch is not None:
            # What was counted is labels, of padding, too, perhaps: the mean is over what is scored all the same.
            of_labels = count.clamp(min=1) / (labels != -100).sum().clamp(min=1)
            divisor = num_items_in_batch * of_labels
            # Of nothing the mean is no number, which a Trainer leaves out of evaluation; in training it must not be.
            count = divisor.where(count > 0, 1) if self.training else divisor
        elif _checkable(labels) and count == 0:
            raise ValueError(
                "there is no position to score: all `labels` are -100, padding (attention_mask 0) or conditioning."
            )
        return (total + offset) / count, losses.view(labels.shape) * scored

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_shapes(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        labels: Tensor | None,
        attention_mask: Tensor | None,
        conditioning_mask: Tensor | None,
    ) -> int:
        """The batch size."""
        width = self.config.hidden_size
        if input_ids is None and inputs_embeds is None and labels is None:
            raise ValueError(
                "give `labels` (to train), or `input_ids` or `inputs_embeds` with `timesteps` (to predict)."
            )
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("give `input_ids` or `inputs_embeds`, not both: either is the state.")
        if conditioning_mask is not None and labels is None:
            raise ValueError("`conditioning_mask` keeps clean what `labels` are noised, but there are no `labels`.")
        if inputs_embeds is not None and inputs_embeds.shape[2:] != (width,):
            raise ValueError(
                f"`inputs_embeds` has shape {tuple(inputs_embeds.shape)}, but an embedded state is (batch, length, "
                f"{width}); a dense state (batch, length, V) goes through `embed_state` first."
            )
        for name, ids in (("input_ids", input_ids), ("labels", labels)):
            if ids is None:
                continue
            if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim != 2:
                found = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
                raise ValueError(
                    f"`{name}` must be an integer tensor (batch, length), but is {found}; a dense state (batch, "
                    "length, V) goes through `embed_state` into `inputs_embeds`."
                )
        state = inputs_embeds if inputs_embeds is not None else input_ids if input_ids is not None else labels
        batch, length = state.shape[:2]
        if batch * length == 0:
            raise ValueError(f"the input is empty: it has shape {tuple(state.shape)}.")
        beside = {"labels": labels, "attention_mask": attention_mask, "conditioning_mask": conditioning_mask}
        for name, given in beside.items():
            if given is not None and not (isinstance(given, Tensor) and given.shape == (batch, length)):
                found = f"has shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"is {given!r}"
                raise ValueError(f"`{name}` {found}, but the input is (batch, length) = {(batch, length)}.")
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"the input has {length} positions, more than the model's max_position_embeddings = "
                f"{self.config.max_position_embeddings}: cut it."
            )
        return batch

    def _check_times(self, name: str, tau: Tensor | Sequence[float] | float | None, batch: int) -> Tensor | None:
        """Times as float32 (batch,), from one time per sequence or one for all."""
        if tau is None:
            return None
        try:
            times = torch.as_tensor(tau)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"`{name}` must be times in [0, 1], but is {tau!r}.") from None
        if times.shape not in ((), (batch,)):
            raise ValueError(f"`{name}` has shape {tuple(times.shape)}, but must be ({batch},), a time per sequence.")
        if _checkable(times) and not ((times >= 0) & (times <= 1)).all():
            raise ValueError(f"`{name}` must lie in [0, 1] (times are tau), but reach {_furthest(times)}.")
        return times.to(self.device, torch.float32).expand(batch)

    def _check_target(self, labels: Tensor | None, timesteps: Tensor, target_timesteps: Tensor) -> None:
        if labels is not None:
            raise ValueError(
                "`labels` train the denoiser, on the diagonal of the flow map; `target_timesteps` is for prediction."
            )
        if _checkable(timesteps) and (target_timesteps < timesteps - 1e-6).any():
            raise ValueError("`target_timesteps` must not be less than `timesteps`: the flow runs from noise to data.")

    def _check_labels(
        self,
        labels: Tensor,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        scored: Tensor,
    ) -> None:
        if not _checkable(labels):
            return
        unlabelled = labels == -100
        self._check_ids("labels", labels.masked_fill(unlabelled, 0))
        if input_ids is not None:
            self._check_ids("input_ids", input_ids)
            if ((labels != input_ids) & scored).any():
                raise ValueError(
                    "`labels` must be the `input_ids` or -100 (neither shifted nor masked): the data is noised here."
                )
        elif inputs_embeds is None:
            unknown = unlabelled if attention_mask is None else unlabelled & attention_mask.bool()
            if unknown.any():
                raise ValueError(
                    "`labels` of -100 leave a token unknown: give `input_ids` too, or hide it (attention_mask 0)."
                )

    def _check_ids(self, name: str, ids: Tensor) -> None:
        if not _checkable(ids) or ids.numel() == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"`{name}` contain the id {low if low < 0 else high}, outside the vocabulary [0, "
                f"{self.config.vocab_size})."
            )


class FMLMModel(FLMModel):
    """The flow map of a flow language model: the two-time denoiser delta_{s,t}(x) of every token.

    `X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_{s,t}(x)` jumps from time s to time t in one evaluation, so that
    `model.generate(num_steps=1)` writes text in one. It is [`FLMModel`] with an embedding of the second time, added to
    that of the first and zero at first: an FMLM that starts from an FLM's weights starts as that FLM.
    """

    config_class = FMLMConfig

    def __init__(self, config: FMLMConfig):
        super().__init__(config)
        self.target_time_embedding = FLMTimeEmbedding(config, last=FLMZeroTimeLinear)
        self.post_init()

    def _time_condition(self, timesteps: Tensor, target_timesteps: Tensor | None) -> Tensor:
        target = timesteps if target_timesteps is None else target_timesteps
        first = self.time_embedding(timesteps)
        return first + self.target_time_embedding(target).to(first.device)


def _scored_positions(
    labels: Tensor | None, attention_mask: Tensor | None, conditioning_mask: Tensor | None
) -> Tensor | None:
    if labels is None:
        return None
    scored = labels != -100
    if attention_mask is not None:
        scored = scored & attention_mask.bool()
    if conditioning_mask is not None:
        scored = scored & ~conditioning_mask.bool()
    return scored


def _checkable(x: Tensor) -> bool:
    """Whether a look at the values of `x` costs no wait for a device and no break of a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _union(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask.bool() | other


def _furthest(tau: Tensor) -> float:
    """The value furthest outside [0, 1] (a NaN counts as furthest)."""
    return float(tau.flatten()[(tau - 0.5).abs().nan_to_num(torch.inf).argmax()])


FLMModel.register_for_auto_class("AutoModel")
FMLMModel.register_for_auto_class("AutoModel")

# Where a model is loaded by its repository's code, too: transformers' own pipeline asks whether it generates text.
AutoModelForCausalLM.register(FLMConfig, FLMModel, exist_ok=True)
AutoModelForCausalLM.register(FMLMConfig, FMLMModel, exist_ok=True)
