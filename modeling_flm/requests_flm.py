"""The arguments of `generate`: settings, prompts and lengths are merged and checked before the network runs."""

import difflib
import inspect
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationConfig
from transformers.utils import logging

from .checks_flm import check_ids
from .configuration_flm import is_integer
from .generation_config_flm import HONOURED, FlowGenerationConfig, as_ids, set_values
from .guidance_flm import ClassifierFree, DropoutGuided, Lookahead, ModelGuided, Predictor
from .noise_flm import NoiseLaw, as_seeds
from .samplers_flm import SAMPLERS, SETTINGS, Bridge

logger = logging.get_logger(__name__)


class FlowRequests:
    """The part of `generate` that reads its arguments. It raises a ValueError for one that is unknown, not allowed, or
    would go unused."""

    def _merge_generation_config(
        self,
        generation_config: GenerationConfig | None,
        given: dict,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_model: torch.nn.Module | None = None,
    ) -> FlowGenerationConfig:
        """The settings of a call: `given` arguments override `generation_config`, which overrides the model's own."""
        if tokenizer is not None and not hasattr(tokenizer, "decode"):
            raise ValueError(f"`tokenizer` must be a tokenizer, but is {tokenizer!r}.")
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError(f"`generation_config` must be a GenerationConfig, but is {generation_config!r}.")
        own = {name: value for name, value in set_values(self.generation_config).items() if name in HONOURED}
        if guidance_model is not None:  # which takes the place of the model's own weak network
            own.pop("guidance_dropout", None)
        passed = {} if generation_config is None else set_values(generation_config)
        given = {name: as_list(value) for name, value in given.items() if value is not None}
        self._check_names((passed.keys() | given.keys()) - HONOURED)
        default = FlowGenerationConfig.from_model_config(self.config)
        settings: dict = {"sampler": default.sampler}
        for source in (tokenizer, self.config):
            ids = {name: getattr(source, name, None) for name in ("eos_token_id", "pad_token_id")}
            settings |= {name: value for name, value in ids.items() if value is not None}
        named, implied = False, None
        for layer in (own, passed, given):
            named |= layer is not own and "sampler" in layer
            asked = next((name for name in Bridge.settings if name in layer), None)
            if layer is not own and asked and not named and settings["sampler"] != "bridge":
                layer, implied = layer | {"sampler": "bridge"}, (asked, settings["sampler"])
            # A layer also drops settings of the layers below that say the same by another name, or that belong to
            # another sampler than its own.
            replaced = {"max_new_tokens"} if "max_length" in layer else set()
            if "num_steps" in layer or "timesteps" in layer:
                replaced |= {"num_steps", "timesteps"}
            if layer.get("refine_steps") == 0:
                replaced.add("refine_fraction")
            if layer.get("sampler", settings["sampler"]) != settings["sampler"]:
                replaced |= set(SETTINGS)
            settings = {name: value for name, value in settings.items() if name not in replaced} | layer
        if implied and not named:
            logger.warning_once(
                f'`{implied[0]}` is a setting of sampler="bridge", which writes instead of "{implied[1]}" where no '
                "`sampler` is named."
            )
        config = FlowGenerationConfig(**settings)
        if config.timesteps is not None:
            if config.num_steps not in (None, len(config.timesteps)):
                raise ValueError(
                    f"`num_steps` is {config.num_steps}, but `timesteps` has {len(config.timesteps)} entries: one is "
                    "enough."
                )
            config.num_steps = len(config.timesteps)
        config.num_steps = config.num_steps or default.num_steps
        self._check_sampler(config)
        return config

    def _check_names(self, unknown: set[str]) -> None:
        """Refuse arguments with unknown names, and propose similar ones."""
        if not unknown:
            return
        taken = HONOURED | set(inspect.signature(self.generate).parameters)
        described = []
        for name in sorted(unknown):
            close = difflib.get_close_matches(name, taken, n=1, cutoff=0.75)
            described.append(f"{name} (did you mean {close[0]}?)" if close else name)
        raise ValueError(
            f"generate() got arguments that it does not use: {', '.join(described)}. `help(model.generate)` and "
            "FlowGenerationConfig say what it takes."
        )

    def _check_sampler(self, config: FlowGenerationConfig) -> None:
        """Check that the sampler works with this model, and uses every setting that is given."""
        chosen = SAMPLERS[config.sampler]
        if chosen.two_time and not self.config.two_times:
            others = ", ".join(f'"{name}"' for name, sampler in SAMPLERS.items() if not sampler.two_time)
            raise ValueError(
                f'sampler="{config.sampler}" needs a two-time model (FMLM); this denoiser (FLM) samples with {others}.'
            )
        for name in SETTINGS:
            if getattr(config, name) is not None and name not in chosen.settings:
                owner = next(sampler for sampler, its in SAMPLERS.items() if name in its.settings)
                raise ValueError(f'`{name}` is a setting of sampler="{owner}"; "{config.sampler}" has no use for it.')
        if config.renoise is not None and config.gamma is None:
            raise ValueError("`renoise` says how noise of strength `gamma` is put back, but there is no `gamma`.")
        if config.refine_fraction is not None and not config.refine_steps:
            raise ValueError("`refine_fraction` is that of `refine_steps`, but there are none.")

    def _window_predictor(
        self, config: FlowGenerationConfig, has_prompt: bool, guidance_model: torch.nn.Module | None
    ) -> Callable[..., Predictor]:
        """Choose the class of predictor, plain or guided; it is called with the arguments of [`Predictor`]."""
        scale, rate = config.guidance_scale, config.guidance_dropout
        if scale is None:
            for name, value in (("guidance_model", guidance_model), ("guidance_dropout", rate)):
                if value is not None:
                    raise ValueError(f"`{name}` is to be guided by, but there is no `guidance_scale`.")
            return Predictor
        if config.sampler == "bridge":
            raise ValueError('`guidance_scale` leads beyond distributions, which sampler="bridge" cannot draw from.')
        if guidance_model is not None:
            if rate is not None:
                raise ValueError("give `guidance_model` or `guidance_dropout`, not both: there is one weak network.")
            self._check_guidance_model(guidance_model, config)
            return partial(ModelGuided, guidance_model, scale, law=NoiseLaw())
        if rate is not None:
            return partial(DropoutGuided, rate, scale)
        if not has_prompt:
            raise ValueError(
                "`guidance_scale` without a prompt needs a weak network: give `guidance_model` or `guidance_dropout`."
            )
        return partial(ClassifierFree, scale)

    def _check_guidance_model(self, weak: torch.nn.Module, config: FlowGenerationConfig) -> None:
        # Not by its class: the code of another repository is another module, with classes of its own.
        if not all(hasattr(weak, name) for name in ("denoise", "embed_tokens", "vocabulary_table")):
            raise ValueError(f"`guidance_model` must be a flow language model, but is {type(weak).__name__}.")
        if SAMPLERS[config.sampler].two_time and not weak.config.two_times:
            raise ValueError(
                f'sampler="{config.sampler}" asks `guidance_model` for jumps too, but it is a denoiser (FLM).'
            )
        for name in ("vocab_size", "max_position_embeddings"):
            own, other = getattr(self.config, name), getattr(weak.config, name)
            if other != own:
                raise ValueError(f"`guidance_model` has {name} {other}, but the model has {own}: they must agree.")
        if weak.device != self.device:
            raise ValueError(f"`guidance_model` is on {weak.device}, but the model on {self.device}.")

    @staticmethod
    def _check_reward(config: FlowGenerationConfig, reward_fn: Callable[[Lookahead], Tensor] | None) -> None:
        if reward_fn is None:
            if config.reward_scale is not None:
                raise ValueError("`reward_scale` is that of a `reward_fn`, but there is none.")
            return
        if not callable(reward_fn):
            raise ValueError(f"`reward_fn` must be a function of a Lookahead, but is {reward_fn!r}.")
        if config.num_steps < 2:
            raise ValueError("`reward_fn` acts between two steps: raise `num_steps` to 2 or more.")

    def _writable(self, config: FlowGenerationConfig) -> Tensor | None:
        """The ids that may be written, in ascending order; None if all may be."""
        suppressed = config.suppressed
        if not suppressed:
            return None
        allowed = torch.ones(self.config.vocab_size, dtype=torch.bool)
        check_ids(self.config, "suppress_tokens", torch.tensor(suppressed))
        allowed[suppressed] = False
        if not allowed.any():
            raise ValueError("`suppress_tokens` and `bad_words_ids` leave no token to write.")
        return allowed.nonzero().squeeze(1).to(self.device)

    def _check_prompt(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        conditioning_mask: Tensor | None,
        batch_size: int | None,
        config: FlowGenerationConfig,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Check the prompts, and move each before its padding: ids (batch, P), P = 0 without a prompt; which are kept,
        bool; and the lengths (batch,) of the prompts. On the CPU, where reading values makes nothing wait."""
        if batch_size is not None and not (is_integer(batch_size) and batch_size >= 1):
            raise ValueError(f"`batch_size` must be an integer >= 1, but is {batch_size!r}.")
        masks = {"attention_mask": attention_mask, "conditioning_mask": conditioning_mask}
        if input_ids is None:
            for name, mask in masks.items():
                if mask is not None:
                    raise ValueError(f"`{name}` is that of the prompts, but there are no `input_ids`.")
            ids = torch.empty(batch_size or 1, 0, dtype=torch.long, device="cpu")
            return ids, ids.bool(), ids.sum(1)
        is_ids = isinstance(input_ids, Tensor) and not input_ids.is_floating_point() and input_ids.dtype != torch.bool
        if not is_ids or input_ids.ndim != 2 or len(input_ids) == 0:
            raise ValueError("`input_ids` must be an integer tensor (batch, prompt length), batch >= 1.")
        if batch_size is not None and batch_size != len(input_ids):
            raise ValueError(f"`batch_size` is {batch_size}, but there are {len(input_ids)} prompts.")
        for name, mask in masks.items():
            if mask is not None and not (isinstance(mask, Tensor) and mask.shape == input_ids.shape):
                raise ValueError(f"`{name}` must be a tensor as `input_ids`, of shape {tuple(input_ids.shape)}.")
        ids = input_ids.to("cpu", torch.long)
        check_ids(self.config, "input_ids", ids)
        blank = self._blank(tokenizer)
        if conditioning_mask is not None:
            keep = conditioning_mask.to("cpu").bool()
        else:
            keep = torch.ones_like(ids, dtype=torch.bool) if blank is None else ids != blank
        if attention_mask is not None:
            padding = attention_mask.to("cpu") == 0
            if (padding & ~_at_either_end(padding)).any():
                raise ValueError(
                    "`attention_mask` is 0 between ids of a prompt, but padding is at either end. (For a blank to "
                    "fill in: `conditioning_mask`.)"
                )
        elif conditioning_mask is None and self._pads_only(config, blank):
            padding = _at_either_end(ids == config.pad_token_id)
        else:
            padding = torch.zeros_like(keep)
        if padding.any():
            order = padding.int().argsort(dim=1, stable=True)  # text to the front of its row, padding behind it
            ids, keep = ids.gather(1, order), (keep & ~padding).gather(1, order)
        return ids, keep, (~padding).sum(1)

    def _blank(self, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
        """The id of a blank; None if it is not known. The tokenizer is asked, too: the plain Trainer copies its other
        special ids into the configuration, but not this one."""
        own = self.config.mask_token_id
        return getattr(tokenizer, "mask_token_id", None) if own is None else own

    def _pads_only(self, config: FlowGenerationConfig, blank: int | None) -> bool:
        """Whether there is a padding token that is nothing else."""
        others = (*as_ids(config.eos_token_id), self.config.bos_token_id, blank)
        return config.pad_token_id is not None and config.pad_token_id not in others

    def _laid_out(
        self,
        prompts: Tensor,
        keep: Tensor,
        lengths: Tensor,
        config: FlowGenerationConfig,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The n = batch * num_return_sequences sequences to be written, prompts (batch, P) at their beginning: ids
        (n, length); which of them are given, bool; which are text, not padding of a shorter sequence, bool."""
        lengths = self._output_lengths(lengths, keep, config, self._blank(tokenizer))
        length = int(lengths.max())
        prompts, keep = (F.pad(x, (0, length - x.shape[1])) for x in (prompts, keep))
        text = torch.arange(length, device=lengths.device) < lengths[:, None]
        if not text.all():
            prompts = prompts.where(text, self._padding(config))
        copies = config.num_return_sequences or 1
        prompts, keep, text = (x.repeat_interleave(copies, dim=0) for x in (prompts, keep, text))
        return prompts, keep, text

    def _output_lengths(
        self, prompts: Tensor, keep: Tensor, config: FlowGenerationConfig, blank: int | None
    ) -> Tensor:
        """The length of each sequence (batch,), given the lengths (batch,) of the prompts."""
        longest, overlap = self.config.max_position_embeddings, config.window_overlap
        if config.max_new_tokens is not None:
            lengths = prompts + config.max_new_tokens
        else:
            lengths = torch.full_like(prompts, config.max_length or longest)
        length = int(lengths.max())
        if length > longest and overlap is None:
            raise ValueError(
                f"{length} ids are asked for, but the model's context (max_position_embeddings) is {longest}: lower "
                "max_length or max_new_tokens, shorten the prompt, or give `window_overlap` to write it in windows."
            )
        if overlap is not None and overlap >= longest:
            raise ValueError(f"`window_overlap` must be less than the model's context, {longest}, but is {overlap}.")
        if (prompts > lengths).any() or (keep.sum(1) == lengths).all():
            unknown = (
                " Which token is a blank is not known: `config.mask_token_id` is not set. Set it, or give `tokenizer` "
                "or `conditioning_mask`."
            )
            raise ValueError(
                f"the prompt has {int(prompts.max())} ids and the output {length}: nothing is left to generate. "
                "Shorten the prompt, raise max_length, or leave blanks in it." + (unknown if blank is None else "")
            )
        return lengths

    def _padding(self, config: FlowGenerationConfig) -> int:
        """The id that fills up shorter sequences at their end."""
        padding = config.pad_token_id or 0
        check_ids(self.config, "pad_token_id", torch.tensor(padding))
        return padding

    def _ends(self, config: FlowGenerationConfig) -> Tensor | None:
        """The ids that end a text, with `pad_after_eos`; None without it."""
        if not config.pad_after_eos:
            return None
        if config.eos_token_id is None or config.pad_token_id is None:
            raise ValueError(
                "`pad_after_eos` needs `eos_token_id` and `pad_token_id`, but there are not both: set them, or give "
                "`tokenizer`."
            )
        ends = torch.tensor(as_ids(config.eos_token_id))
        check_ids(self.config, "eos_token_id", ends)
        self._padding(config)
        return ends.to(self.device)

    def _jobs(self, keep: Tensor, lengths: list[int], config: FlowGenerationConfig) -> list["Job"]:
        """Group the sequences that are written together. All are if they fit the context. Longer ones are grouped by
        their length and the windows in which something is to be written, so that none depends on the others."""
        longest = self.config.max_position_embeddings
        if max(lengths) <= longest:
            return [Job(range(len(lengths)), [slice(0, max(lengths))], lengths)]
        alike: dict[tuple, list[int]] = {}
        for row, length in enumerate(lengths):
            # A window begins with the last ids of the one before, at least `window_overlap` of them. The last window
            # ends with the sequence. Windows in which all ids are given are left out.
            begins = [0]
            while begins[-1] + longest < length:
                begins.append(min(begins[-1] + longest - (config.window_overlap or 0), length - longest))
            spans = ((begin, min(begin + longest, length)) for begin in begins)
            open_spans = tuple(span for span in spans if not keep[row, slice(*span)].all())
            alike.setdefault((length, open_spans), []).append(row)
        jobs = (Job(rows, [slice(*span) for span in spans], lengths) for (_, spans), rows in alike.items())
        return [job for job in jobs if job.windows]


@dataclass
class Job:
    """Sequences that are written together, window by window."""

    rows: Sequence[int]  # their numbers within the generation
    windows: list[slice]  # of positions
    all_lengths: list[int]  # those of all sequences of the generation

    def lengths(self, window: slice) -> list[int]:
        """How many positions of a window each of the sequences fills."""
        return [min(self.all_lengths[row], window.stop) - window.start for row in self.rows]

    def told(self, reward_fn: Callable[[Lookahead], Tensor] | None) -> Callable[[Lookahead], Tensor] | None:
        """The reward function with `rows` of its [`Lookahead`] counted in the whole generation instead of this job."""
        if reward_fn is None:
            return None
        numbers = torch.tensor(self.rows)
        return lambda ahead: reward_fn(replace(ahead, rows=numbers.to(ahead.rows.device)[ahead.rows]))


def _at_either_end(padding: Tensor) -> Tensor:
    """Where `padding` (batch, length), bool, is True from there to the beginning or to the end of its row."""
    text = ~padding
    return (text.cumsum(1) == 0) | (text.flip(1).cumsum(1).flip(1) == 0)


def as_list(value):
    """A sequence, tensor or array as a list, as a configuration saves it; a tensor or array without dimensions as a
    number; any other value as it is, to be refused later."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def spread_seeds(seed: int | Sequence[int] | None, generator: torch.Generator | None, count: int) -> list[int]:
    """A seed for each of `count` sequences: `seed + i`, `seed[i]`, or drawn from `generator` if `seed` is None."""
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
