"""The networks of flow language models: the denoiser (FLM) and the flow map (FMLM).

A denoiser is told one time, that of its input. A flow map is told a second one, the time to jump to. Both are the
transformer of arXiv 2602.16813, section 5: a linear map (the embedding table) embeds the state of each token, the
time modulates every block (adaLN), and attention is bidirectional, with rotary positions and soft-capped scores.
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
from .checks_flm import (
    check_ids,
    check_labels,
    check_shapes,
    check_target,
    check_task,
    check_times,
    check_trainer,
    check_unknown,
    checkable,
)
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
from .noise_flm import seeds_of, to_where_text_begins
from .saving_flm import LoadingAndSaving


@dataclass
class FLMOutput(ModelOutput):
    """The output of a flow language model: the losses if `labels` are given, the prediction if not.

    Args:
        loss (`Tensor`, *optional*): the training objective, a scalar; with `labels`.
        logits (`Tensor`, *optional*): the soft-capped logits (batch, length, V); without `labels`.
        token_losses (`Tensor`, *optional*): the cross entropy of each token in nats, float32 (batch, length),
            detached, and 0 at positions that are not scored; with `labels`.
        scored (`Tensor`, *optional*): 1 at the scored positions and 0 elsewhere, int64 (batch, length); with `labels`.
            A Trainer that joins batches of different lengths pads them with -100, as it does `token_losses`. So select
            by `scored == 1`; as a bool, that padding would count as scored.
        timesteps (`Tensor`, *optional*): (batch,) the time tau at which each row's loss was taken; with `labels`.
        hidden_states (`tuple[Tensor]`, *optional*): the hidden states (batch, length, d) that each block sees, in each
            loop, and the last; with `output_hidden_states`.
        last_hidden_state (`Tensor`, *optional*): the input (batch, length, d) of the output layer; returned instead of
            the logits with `output_logits=False`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    token_losses: Tensor | None = None
    scored: Tensor | None = None
    timesteps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None


class FLMPreTrainedModel(LoadingAndSaving, PreTrainedModel):
    """Base class of the networks: loading, saving, initialisation and the choice of the attention implementation."""

    config_class = FLMConfig
    base_model_prefix = ""
    generation_config_class = FlowGenerationConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["FLMBlock"]
    # These modules stay in float32 when the rest is loaded in half precision, and are not quantised. The first list
    # is read by all quantisers of transformers, the second by what loads weights in bfloat16.
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
    """The denoiser of a flow language model: it predicts the clean tokens of a noised text.

    Its prediction is the posterior `D_t(x) = p(x1 | x_t = x)`, a distribution over the vocabulary at each position.

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
        gates = (FLMZeroLinear(config.conditioning_size, config.hidden_size) for _ in range(config.num_loops - 1))
        self.loop_gates = nn.ModuleList(gates)
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.modulation = FLMZeroLinear(config.conditioning_size, 2 * config.hidden_size)
        self.lm_head = FLMZeroLinear(config.hidden_size, config.vocab_size)
        self.loss_weighting = FLMLossWeighting(config) if config.loss_weighting else None
        self._clock = Clock(config.vocab_size)
        self.post_init()

    @property
    def device(self) -> torch.device:
        """The device of states: the one that the embedding table computes on, also in a model with a `device_map`."""
        return place_of(self.embed_tokens)

    @property
    def clock(self) -> Clock:
        """The time change tau <-> t of this vocabulary."""
        if self._clock.vocab_size != self.config.vocab_size:  # `resize_token_embeddings` has changed it
            self._clock = Clock(self.config.vocab_size)
        return self._clock

    def add_loss_weighting(self) -> None:
        """Add a learned loss weight w(tau), which starts at zero, unless the model has one already."""
        if self.loss_weighting is None:
            self.config.loss_weighting = True
            self.loss_weighting = FLMLossWeighting(self.config).to(self.device)
            self.loss_weighting.apply(self._init_weights)

    def pipeline(self, tokenizer: PreTrainedTokenizerBase, **kwargs):
        """A text-generation pipeline with this model, an [`FLMPipeline`]; `kwargs` are its default arguments."""
        from .pipeline_flm import FLMPipeline  # this line also tells transformers to load the file with the model

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
        """The backbone: from an embedded state (batch, length, d) at tau (batch,) to the last hidden state, of the
        same shape. A list `all_hidden` gets the hidden states that each block sees, in each loop, and the last."""
        batch, length, _ = state.shape
        hidden = state.to(self.dtype)
        condition = F.silu(self._time_condition(timesteps, target_timesteps)).to(hidden.dtype)
        if self.position_embedding is not None:
            positions = self.position_embedding(torch.arange(length, device=state.device)).to(state.device)
            hidden = hidden + to_where_text_begins(positions.expand(batch, -1, -1), attention_mask)
        rotary = self._rotary(length, state.device)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)

        def through_blocks(hidden: Tensor) -> Tensor:
            for layer in self.layers:
                if all_hidden is not None:
                    all_hidden.append(hidden)
                hidden = layer(hidden, condition, rotary, mask)
            return hidden

        hidden = through_blocks(hidden)
        for gate in self.loop_gates:
            opened = gate(condition)[:, None].to(hidden.device)
            hidden = torch.addcmul(hidden, opened, through_blocks(hidden) - hidden)
        if all_hidden is not None:
            all_hidden.append(hidden)
        # With a `device_map` the last block may be on another device: return to that of the state.
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
        timesteps: Tensor | Sequence[float] | float | None = None,
        target_timesteps: Tensor | Sequence[float] | float | None = None,
        attention_mask: Tensor | None = None,
        conditioning_mask: Tensor | None = None,
        noise_seed: Tensor | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_logits: bool = True,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> FLMOutput | tuple:
        """Compute the training loss of `labels`, or predict the clean tokens of a given state.

        ```python
        loss = model(labels=ids).loss                                   # noise the ids, and predict them
        logits = model(inputs_embeds=state, timesteps=0.5).logits       # predict from a state at tau = 0.5
        ```

        With labels, the data x1 is noised to `x_t = (1-t) x0 + t x1` at a time that is uniform in tau. The loss is the
        mean cross entropy `-log D_t(x_t)[x1]` over the scored positions (L_FLM of the paper): those that are not
        padding, not labelled -100 and not in `conditioning_mask`. A position labelled -100 whose token is known from
        `input_ids` stays clean, so that the model is conditioned on it, as on a prompt.

        In training, noise and times are drawn anew in each call. In evaluation (`model.eval()`) they are fixed, unless
        `noise_seed` or `generator` is given: the seed of a row is a hash of its tokens without padding, so that its
        loss is the same in any batch and on any process. A flow map cannot be trained by `labels`, which would
        leave its jumps untrained.

        Args:
            input_ids (`Tensor`, *optional*): (batch, length) clean ids; default: `labels`. Without labels they are the
                state at `timesteps`, as one-hots.
            inputs_embeds (`Tensor`, *optional*): (batch, length, d) an embedded state (see `embed_state`), which is
                not noised; needs `timesteps`. With labels, the loss of this state is returned.
            labels (`Tensor`, *optional*): (batch, length) ids to predict; -100 where nothing is scored.
            timesteps (`Tensor`, *optional*): (batch,) tau in [0, 1], or a number for all rows. Default with labels:
                drawn, from each row's seed if there are seeds, and evenly spread over the batch if not.
            target_timesteps (`Tensor`, *optional*): (batch,) tau in [timesteps, 1], or a number: the time to jump to;
                FMLM only. Default: `timesteps`, the diagonal, where the map's prediction is the denoiser's.
            attention_mask (`Tensor`, *optional*): (batch, length), 0 at padding, which is neither attended to nor
                scored.
            conditioning_mask (`Tensor`, *optional*): (batch, length) bool, True where the token is kept clean.
            noise_seed (`Tensor` or `list[int]`, *optional*): (batch,) a seed for the noise and the time of each
                sequence, which then do not depend on the batch or the padding. Default in evaluation: from the ids.
            generator (`torch.Generator`, *optional*): source of noise and times where there is no `noise_seed`. They
                are then random in evaluation, too.
            output_hidden_states (`bool`, *optional*): whether to return all hidden states. Default: the config's.
            output_logits (`bool`): whether to return logits when there are no labels. False returns the last hidden
                state instead, which `embed_prediction` and the losses take, and makes no tensor (batch, length, V).
            return_dict (`bool`, *optional*): False returns a plain tuple. Default: the config's.
            num_items_in_batch (`int`, *optional*): number of labels other than -100 in all micro-batches of a step,
                as the Trainer counts them (gradient accumulation). The loss is then the mean of this micro-batch times
                its share of those labels. The sum over the micro-batches is the mean over all scored positions if
                only these have labels; otherwise (`labels = input_ids` with padding) a weighted mean of means.

        Raises:
            ValueError: if arguments contradict each other, would go unused or have wrong shapes, or if a flow map gets
                `labels` in training. Values (ids, times, labels that differ from `input_ids`, nothing to score) are
                checked on a CPU only, and not in compiled code: on an accelerator each check would make the host wait.
            TypeError: if an argument is unknown.
        """
        check_unknown(type(self).__name__, kwargs)
        check_trainer(self, labels, num_items_in_batch)
        batch = check_shapes(self.config, input_ids, inputs_embeds, labels, attention_mask, conditioning_mask)
        training = self.training and torch.is_grad_enabled()
        check_task(self.config, labels, inputs_embeds, timesteps, noise_seed, generator, training)
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
            state, timesteps = self._corrupt(clean, timesteps, keep, attention_mask, noise_seed, generator)
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

    @torch.compiler.disable  # generators cannot be compiled, and every new seed would mean a new compilation
    def _corrupt(
        self,
        clean: Tensor,
        timesteps: Tensor | None,
        keep: Tensor | None,
        attention_mask: Tensor | None,
        noise_seed: Tensor | Sequence[int] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Noise clean ids (batch, length), but those where `keep` is True, at `timesteps` or at times drawn here.

        Returns:
            the embedded state (batch, length, d), and its times tau (batch,).
        """
        if noise_seed is None and generator is None and not self.training:
            noise_seed = seeds_of(clean, attention_mask)
        batch, length = clean.shape
        noise, uniform = self._embed_noise_and_uniform(batch, length, generator, noise_seed, attention_mask)
        tau = uniform if timesteps is None else timesteps
        data = self.embed_tokens(clean)
        state = interpolate(noise, data, self.clock.t(tau))
        if keep is not None:
            state = torch.where(keep[..., None].bool(), data, state)
        return state, tau

    def loss_weights(
        self, scored: Tensor, timesteps: Tensor, target_timesteps: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """Weights (batch, length) of the tokens' losses l, and what is added to their sum: together exp(-w) l + w with
        the learned w in training, otherwise l alone."""
        if self.loss_weighting is None or not self.training:
            return scored.float(), 0.0
        log_weight = self.loss_weighting(timesteps, target_timesteps)[:, None]
        return scored * torch.exp(-log_weight), (log_weight * scored).sum()

    def _loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        scored: Tensor,
        timesteps: Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, Tensor]:
        """The training loss (see `forward`), a scalar, and the cross entropy of each scored token (batch, length)."""
        weights, offset = self.loss_weights(scored, timesteps)
        total, losses = chunked_cross_entropy(
            hidden.flatten(0, 1),
            *self.output_layer(),
            labels.flatten().clamp(min=0).long(),
            weights.flatten(),
            self.config.final_logit_softcapping,
        )
        count = scored.sum()
        if num_items_in_batch is not None:
            # The Trainer counts labels, perhaps those of padding, too, but the mean is over scored positions only.
            of_labels = count.clamp(min=1) / (labels != -100).sum().clamp(min=1)
            divisor = num_items_in_batch * of_labels
            # A mean over nothing is NaN. A Trainer leaves it out of an evaluation; in training the loss is 0 instead.
            count = divisor.where(count > 0, 1 if self.training else torch.nan)
        elif checkable(labels) and count == 0:
            raise ValueError(
                "there is no position to score: all `labels` are -100, padding (attention_mask 0) or conditioning."
            )
        return (total + offset) / count, losses.view(labels.shape) * scored


class FMLMModel(FLMModel):
    """The flow map of a flow language model: the two-time denoiser delta_{s,t}(x) of every token.

    `X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_{s,t}(x)` jumps from time s to time t in one evaluation of the
    network, so that `model.generate(num_steps=1)` writes a text in one.

    The network is [`FLMModel`] with an embedding of the second time, added to that of the first. This embedding starts
    at zero: an FMLM that starts from the weights of an FLM first predicts what that FLM does.
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
    """Where a loss is taken, bool (batch, length); None without labels."""
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

# This tells transformers' own pipeline that the models generate text, also when a repository's code is loaded.
AutoModelForCausalLM.register(FLMConfig, FLMModel, exist_ok=True)
AutoModelForCausalLM.register(FMLMConfig, FMLMModel, exist_ok=True)
