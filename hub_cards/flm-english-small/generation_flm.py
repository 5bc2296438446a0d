"""Text from a flow: `generate`, its configuration and its output.

Sampling integrates the probability flow from noise (tau = 0) to data (tau = 1) on a uniform grid of tau. The state
stays in the embedded space; every step re-embeds a prediction blockwise over the vocabulary, and the last one takes
its argmax.
"""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import ModelOutput

from .flow_flm import as_seeds, flow_map_step

SAMPLERS = ("euler", "flow_map")

# What `generate` makes use of; it refuses every other argument, so that none is ignored in silence.
_HONOURED = {
    "num_steps",
    "sampler",
    "do_sample",
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "return_dict_in_generate",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}


class FlowGenerationConfig(GenerationConfig):
    """How a flow language model generates; saved as `generation_config.json`.

    Args:
        num_steps (`int`, *optional*): evaluations of the network, >= 1. A model's own default is 1 for a flow map
            (FMLM) and 64 for a denoiser (FLM).
        sampler (`str`, *optional*): "euler", the Euler scheme of the probability flow (any model), or "flow_map",
            jumps of the flow map (FMLM), the default where there is one.
        max_length, max_new_tokens, num_return_sequences, return_dict_in_generate and the special ids mean what they
            mean in [`~transformers.GenerationConfig`].

    Raises:
        ValueError: a value is not allowed; the message names it.
    """

    def __init__(self, **kwargs):
        self.num_steps = kwargs.pop("num_steps", None)
        self.sampler = kwargs.pop("sampler", None)
        kwargs.setdefault("do_sample", True)  # noise makes every generation a sample
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        for name in ("num_steps", "num_return_sequences", "max_length", "max_new_tokens"):
            value = getattr(self, name)
            is_int = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_int and value >= 1):
                raise ValueError(f"`{name}` must be an integer >= 1, but is {value!r}.")
        if not self.do_sample:
            raise ValueError(
                "`do_sample=False` is not possible: a flow starts from noise. Fix `seed` for a repeatable text."
            )
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"`sampler` must be one of {', '.join(SAMPLERS)}, but is {self.sampler!r}.")

    @classmethod
    def from_model_config(cls, model_config) -> "FlowGenerationConfig":
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        ids = {name: values.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if values.get("model_type") == "fmlm":
            return cls(num_steps=1, sampler="flow_map", **ids)
        return cls(num_steps=64, sampler="euler", **ids)


@dataclass
class FlowGenerationOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Args:
        sequences (`Tensor`): (batch * num_return_sequences, length) int64 ids, prompt included.
        num_function_evaluations (`int`): forward passes of the network, each over the whole batch.
        tokens_per_forward (`float`): new tokens of a sequence per forward pass.
        seeds (`list[int]`): the seed of each sequence; `generate(seed=seeds)` writes the same sequences again.
    """

    sequences: Tensor | None = None
    num_function_evaluations: int | None = None
    tokens_per_forward: float | None = None
    seeds: list[int] | None = None


class FlowGenerationMixin(GenerationMixin):
    """`generate` for models with a clock, `embed_state`, `embed_noise`, `embed_prediction`, `decode_prediction`,
    `denoise`.
    """

    def adjust_generation_fn(
        self,
        generation_config,
        from_auto_class,
        from_pipeline,
        pretrained_model_name_or_path,
        cache_dir,
        force_download,
        proxies,
        local_files_only,
        token,
        revision,
        subfolder,
        trust_remote_code,
        **kwargs,
    ) -> None:
        """Called on loading: the stock version would read `generation_config.json` as a plain GenerationConfig."""
        if generation_config is not None:
            self.generation_config = FlowGenerationConfig(**_set_values(generation_config))
        elif pretrained_model_name_or_path is not None:
            try:
                self.generation_config = FlowGenerationConfig.from_pretrained(
                    pretrained_model_name_or_path,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    proxies=proxies,
                    local_files_only=local_files_only,
                    token=token,
                    revision=revision,
                    subfolder=subfolder,
                    **kwargs,
                )
            except OSError:  # the file is optional: the defaults of the model's type stay
                pass

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        conditioning_mask: Tensor | None = None,
        num_steps: int | None = None,
        sampler: str | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        num_return_sequences: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        return_dict_in_generate: bool | None = None,
        **kwargs,
    ) -> Tensor | FlowGenerationOutput:
        """Write sequences of ids in `num_steps` evaluations of the network.

        Call arguments win over `generation_config`, which wins over the model's own.

        Args:
            input_ids (`Tensor`, *optional*): (batch, P) prompts, kept as the first P ids of each sequence: clamped to
                their embedding at every state. The tokenizer's mask token is a blank, to be filled in. None to write
                from nothing.
            generation_config (`GenerationConfig`, *optional*): settings, usually a [`FlowGenerationConfig`].
            attention_mask (`Tensor`, *optional*): of the prompts, all ones: prompts of one batch have one length.
            conditioning_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, which of the `input_ids` to keep; the
                others are filled in. Default: all but the blanks.
            num_steps (`int`, *optional*): evaluations of the network, >= 1.
            sampler (`str`, *optional*): "euler" or "flow_map".
            max_length (`int`, *optional*): ids per sequence, prompt included; default and most: the model's
                `max_position_embeddings`.
            max_new_tokens (`int`, *optional*): ids per sequence after the prompt, instead of `max_length`.
            batch_size (`int`, *optional*): number of sequences without a prompt, default 1.
            num_return_sequences (`int`, *optional*): sequences per prompt (or per `batch_size`), default 1.
            seed (`int` or `list[int]`, *optional*): the i-th sequence takes `seed + i`, or `seed[i]`. A sequence
                depends on its seed alone, not on the batch around it. Default: drawn from `generator`.
            generator (`torch.Generator`, *optional*): source of the seeds; None for torch's global one.
            return_dict_in_generate (`bool`, *optional*): return a [`FlowGenerationOutput`] instead of the ids.

        Returns:
            int64 ids (batch * num_return_sequences, length), or a [`FlowGenerationOutput`].

        Raises:
            ValueError: an argument is unknown or not allowed, or the weights give non-finite predictions.
        """
        given = dict(
            num_steps=num_steps,
            sampler=sampler,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
            return_dict_in_generate=return_dict_in_generate,
            **kwargs,
        )
        config = self._merge_generation_config(generation_config, given)
        prompt, keep = self._check_prompt(input_ids, attention_mask, conditioning_mask, batch_size)
        length = self._output_length(prompt.shape[1], bool(keep.all()), config)
        repeats, rest = config.num_return_sequences or 1, length - prompt.shape[1]
        prompt, keep = (F.pad(x, (0, rest)).repeat_interleave(repeats, dim=0) for x in (prompt, keep))
        seeds = _spread_seeds(seed, generator, len(prompt))

        state = self.embed_noise(len(prompt), length, seeds=seeds)
        sequences = self._integrate(state, prompt, keep, config.num_steps, config.sampler)
        if not config.return_dict_in_generate:
            return sequences
        return FlowGenerationOutput(
            sequences=sequences,
            num_function_evaluations=config.num_steps,
            tokens_per_forward=(~keep).sum().item() / len(keep) / config.num_steps,
            seeds=seeds,
        )

    def _integrate(self, state: Tensor, prompt: Tensor, keep: Tensor, num_steps: int, sampler: str) -> Tensor:
        """From an embedded state (batch, length, d) at tau = 0 to ids (batch, length), those of `prompt` (batch,
        length) clamped where `keep` (batch, length)."""
        batch = len(state)
        clean = self.embed_state(prompt)
        tau = torch.linspace(0, 1, num_steps + 1, device=state.device)
        t = self.clock.t(tau)
        for step in range(num_steps):
            state = torch.where(keep[..., None], clean, state)
            target = tau[step + 1].expand(batch) if sampler == "flow_map" else None
            hidden = self.denoise(state, tau[step].expand(batch), target)
            if step < num_steps - 1:
                state = flow_map_step(state, self.embed_prediction(hidden), t[step], t[step + 1])
        sequences = torch.where(keep, prompt, self.decode_prediction(hidden))
        if (sequences < 0).any():
            raise ValueError("the network's output is not finite: look for NaN or infinite weights.")
        return sequences

    def _merge_generation_config(
        self, generation_config: GenerationConfig | None, given: dict
    ) -> FlowGenerationConfig:
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError(f"`generation_config` must be a GenerationConfig, but is {generation_config!r}.")
        own = {name: value for name, value in _set_values(self.generation_config).items() if name in _HONOURED}
        passed = {} if generation_config is None else _set_values(generation_config)
        given = {name: value for name, value in given.items() if value is not None}
        refused = sorted((passed.keys() | given.keys()) - _HONOURED)
        if refused:
            raise ValueError(
                f"generate() got arguments that it does not use: {', '.join(refused)}. It takes input_ids, "
                "generation_config, attention_mask, conditioning_mask, batch_size, seed, generator, "
                f"{', '.join(sorted(_HONOURED))}."
            )
        settings: dict = {}
        for layer in (own, passed, given):
            if "max_length" in layer:
                settings.pop("max_new_tokens", None)  # of a lower layer, which would go before it
            settings |= layer
        config = FlowGenerationConfig(**settings)
        default = FlowGenerationConfig.from_model_config(self.config)
        config.num_steps = config.num_steps or default.num_steps
        config.sampler = config.sampler or default.sampler
        if config.sampler == "flow_map" and self.config.model_type != "fmlm":
            raise ValueError(
                'sampler="flow_map" needs a two-time model (FMLM); this denoiser (FLM) samples with "euler".'
            )
        return config

    def _check_prompt(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        conditioning_mask: Tensor | None,
        batch_size: int | None,
    ) -> tuple[Tensor, Tensor]:
        """The prompts (batch, P) on the model's device, P = 0 without any; and where they are kept, bool."""
        is_int = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size is not None and not (is_int and batch_size >= 1):
            raise ValueError(f"`batch_size` must be an integer >= 1, but is {batch_size!r}.")
        masks = {"attention_mask": attention_mask, "conditioning_mask": conditioning_mask}
        if input_ids is None:
            for name, mask in masks.items():
                if mask is not None:
                    raise ValueError(f"`{name}` is that of the prompts, but there are no `input_ids`.")
            ids = torch.empty(batch_size or 1, 0, dtype=torch.long, device=self.device)
            return ids, ids.bool()
        is_ids = isinstance(input_ids, Tensor) and not input_ids.is_floating_point() and input_ids.dtype != torch.bool
        if not is_ids or input_ids.ndim != 2 or len(input_ids) == 0:
            raise ValueError("`input_ids` must be an integer tensor (batch, prompt length), batch >= 1.")
        if batch_size is not None and batch_size != len(input_ids):
            raise ValueError(f"`batch_size` is {batch_size}, but there are {len(input_ids)} prompts.")
        for name, mask in masks.items():
            if mask is not None and getattr(mask, "shape", None) != input_ids.shape:
                raise ValueError(f"`{name}` must be a tensor as `input_ids`, of shape {tuple(input_ids.shape)}.")
        if attention_mask is not None and not attention_mask.bool().all():
            raise ValueError(
                "`attention_mask` has padding, but prompts of different lengths cannot share a batch: "
                "generate for each length by itself."
            )
        ids = input_ids.to("cpu")  # one look at the values, where it costs no wait
        self._check_ids("input_ids", ids)
        blank = self.config.mask_token_id
        if conditioning_mask is not None:
            keep = conditioning_mask.bool()
        else:
            keep = torch.ones_like(ids, dtype=torch.bool) if blank is None else ids != blank
        return input_ids.to(self.device, torch.long), keep.to(self.device)

    def _output_length(self, prompt_length: int, all_kept: bool, config: FlowGenerationConfig) -> int:
        longest = self.config.max_position_embeddings
        if config.max_new_tokens is not None:
            length = prompt_length + config.max_new_tokens
        else:
            length = config.max_length or longest
        if length > longest:
            raise ValueError(
                f"{length} ids are asked for, but the model's context (max_position_embeddings) is {longest}: lower "
                "max_length or max_new_tokens, or shorten the prompt."
            )
        if prompt_length > length or (prompt_length == length and all_kept):
            raise ValueError(
                f"the prompt has {prompt_length} ids and the output {length}: nothing is left to generate. Shorten "
                "the prompt, raise max_length, or leave blanks in it."
            )
        return length


def _set_values(config: GenerationConfig) -> dict:
    """The values of a configuration that are set, without its bookkeeping."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }


def _spread_seeds(seed: int | Sequence[int] | None, generator: torch.Generator | None, count: int) -> list[int]:
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"`generator` must be a torch.Generator, but is {generator!r}.")
    if seed is None:
        device = None if generator is None else generator.device
        return torch.randint(2**32, (count,), generator=generator, device=device).tolist()
    if generator is not None:
        raise ValueError("give `seed` or `generator`, not both.")
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        seed = range(int(seed), int(seed) + count)
    return as_seeds("seed", seed, count)
