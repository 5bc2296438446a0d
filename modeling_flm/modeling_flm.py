"""Flow language models: the one-time denoiser (FLM) and the two-time denoiser or flow map (FMLM).

Both are the transformer of arXiv 2602.16813, section 5: token states enter through one linear map (the embedding
table), time modulates every block (adaLN), attention is bidirectional with rotary positions and soft-capped scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from .attention_flm import SOFTCAP_ATTENTION
from .checks_flm import check_ids, check_labels, check_shapes, check_target, check_times, check_unknown, checkable
from .clock_flm import Clock
from .configuration_flm import FLMConfig, FMLMConfig
from .embedding_flm import EmbeddedSpace
from .flow_flm import interpolate
from .generation_config_flm import FlowGenerationConfig
from .generation_flm import FlowGenerationMixin
from .layers_flm import (
    FLMBlock,
    FLMEmbedding,
    FLMLossWeighting,
    FLMTimeEmbedding,
    FLMZeroLinear,
    FLMZeroTimeLinear,
    modulate,
)
from .losses_flm import chunked_cross_entropy
from .matrices_flm import place_of
from .noise_flm import NoiseLaw, seeds_of
from .saving_flm import LoadingAndSaving


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


class FLMPreTrainedModel(LoadingAndSaving, PreTrainedModel):
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


class FLMModel(FLMPreTrainedModel, EmbeddedSpace, FlowGenerationMixin):
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
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where states are: the device that the embedding table computes on. To others of a `device_map` they go."""
        return place_of(self.embed_tokens)

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
        return modulate(self.norm(hidden).to(state.device), shift, scale)

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
                logits: `embed_prediction` and the losses take it from there.
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
        check_unknown(type(self).__name__, kwargs)
        if labels is None and num_items_in_batch is not None:
            raise ValueError(
                "the Trainer kept the `labels`, which are to be noised here, to itself: leave out "
                "`label_smoothing_factor` and `compute_loss_func`; the loss is the model's own."
            )
        batch = check_shapes(self.config, input_ids, inputs_embeds, labels, attention_mask, conditioning_mask)
        noised = inputs_embeds is None and labels is not None
        if noised and self.config.two_times and self.training and torch.is_grad_enabled():
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
        timesteps = check_times("timesteps", timesteps, batch, self.device)
        target_timesteps = check_times("target_timesteps", target_timesteps, batch, self.device)
        if target_timesteps is not None:
            check_target(labels, timesteps, target_timesteps)

        scored = _scored_positions(labels, attention_mask, conditioning_mask)
        if labels is not None:
            check_labels(self.config, labels, input_ids, inputs_embeds, attention_mask, scored)
        if inputs_embeds is not None:
            state = inputs_embeds
        elif labels is None:
            check_ids(self.config, "input_ids", input_ids)
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
            output = FLMOutput(logits=self.logits(hidden), hidden_states=hidden_states)
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
        elif checkable(labels) and count == 0:
            raise ValueError(
                "there is no position to score: all `labels` are -100, padding (attention_mask 0) or conditioning."
            )
        return (total + offset) / count, losses.view(labels.shape) * scored


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


def _union(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask.bool() | other


FLMModel.register_for_auto_class("AutoModel")
FMLMModel.register_for_auto_class("AutoModel")

# Where a model is loaded by its repository's code, too: transformers' own pipeline asks whether it generates text.
AutoModelForCausalLM.register(FLMConfig, FLMModel, exist_ok=True)
AutoModelForCausalLM.register(FMLMConfig, FMLMModel, exist_ok=True)
