"""Text from a flow: `generate`, its configuration and its output.

Sampling carries a state from noise (tau = 0) to data (tau = 1) on a grid of tau, uniform unless given, with one of
the samplers of `samplers_flm.py`. The state stays in the embedded space; every step re-embeds a prediction blockwise
over the vocabulary, and the last one takes its tokens.
"""

import itertools
import numbers
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput

from .flow_flm import as_seeds, step_seeds, white_noise
from .samplers_flm import SAMPLERS, SETTINGS, Noise

_WINDOW = 1 << 32  # seeds of the windows after the first: beyond any number of steps

# What `generate` makes use of; it refuses every other argument, so that none is ignored in silence.
_HONOURED = {
    "num_steps",
    "timesteps",
    "sampler",
    *SETTINGS,
    "window_overlap",
    "pad_after_eos",
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
        timesteps (`list[float]`, *optional*): tau of each evaluation instead of an even grid of `num_steps`:
            ascending, from 0, below 1.
        sampler (`str`, *optional*): of any model "euler", the Euler scheme of the probability flow; "multistep", a
            second-order scheme at the same cost; "bridge", which draws tokens and takes a temperature. Of a flow map
            (FMLM) "flow_map", its jumps, the default where there is one.
        temperature (`float`, *optional*): of "bridge": of the drawn tokens, >= 0, where 0 takes the likeliest.
            Default 1.
        top_k (`int`, *optional*): of "bridge": draw among the so many likeliest tokens, >= 1.
        top_p (`float`, *optional*): of "bridge": draw among the likeliest tokens of this probability together, in
            (0, 1].
        gamma (`float`, *optional*): of "flow_map": strength of the noise put back after each jump, in [0, 1]. Default
            0, none.
        renoise (`str`, *optional*): of "flow_map" with gamma: "official", as published, the default, or "markov",
            which keeps the marginals for every gamma.
        window_overlap (`int`, *optional*): write texts longer than the model's context window by window, each with at
            least so many ids of the one before as its beginning, >= 0.
        pad_after_eos (`bool`, *optional*): after the first EOS that was written, put padding. Rows of packed documents
            go on after one.
        max_length, max_new_tokens, num_return_sequences, return_dict_in_generate and the special ids mean what they
            mean in [`~transformers.GenerationConfig`].

    Raises:
        ValueError: a value is not allowed; the message names it.
    """

    def __init__(self, **kwargs):
        self.num_steps = kwargs.pop("num_steps", None)
        self.timesteps = kwargs.pop("timesteps", None)
        self.sampler = kwargs.pop("sampler", None)
        self.gamma = kwargs.pop("gamma", None)
        self.renoise = kwargs.pop("renoise", None)
        self.window_overlap = kwargs.pop("window_overlap", None)
        self.pad_after_eos = kwargs.pop("pad_after_eos", None)
        kwargs.setdefault("do_sample", True)  # noise makes every generation a sample
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        least = dict(num_steps=1, num_return_sequences=1, max_length=1, max_new_tokens=1, top_k=1, window_overlap=0)
        for name, lowest in least.items():
            value = getattr(self, name)
            is_int = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_int and value >= lowest):
                raise ValueError(f"`{name}` must be an integer >= {lowest}, but is {value!r}.")
        if self.pad_after_eos and (self.eos_token_id is None or self.pad_token_id is None):
            raise ValueError("`pad_after_eos` needs `eos_token_id` and `pad_token_id`, but there are not both.")
        if not self.do_sample:
            raise ValueError(
                "`do_sample=False` is not possible: a flow starts from noise. Fix `seed` for a repeatable text."
            )
        for name, names in (("sampler", tuple(SAMPLERS)), ("renoise", ("official", "markov"))):
            value = getattr(self, name)
            if value is not None and value not in names:
                raise ValueError(f"`{name}` must be one of {', '.join(names)}, but is {value!r}.")
        for name, rule, allowed in (
            ("temperature", ">= 0", lambda x: 0 <= x < float("inf")),
            ("top_p", "in (0, 1]", lambda x: 0 < x <= 1),
            ("gamma", "in [0, 1]", lambda x: 0 <= x <= 1),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and allowed(value)):
                raise ValueError(f"`{name}` must be a number {rule}, but is {value!r}.")
        if self.timesteps is not None:
            grid = self.timesteps
            if not (
                isinstance(grid, list | tuple)
                and all(_is_number(tau) for tau in grid)
                and len(grid) > 0
                and grid[0] == 0
                and all(now < then for now, then in itertools.pairwise([*grid, 1]))
            ):
                raise ValueError(f"`timesteps` must ascend from 0 and stay below 1 (tau), but is {grid!r}.")

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
        conditioning_mask (`Tensor`): (batch * num_return_sequences, length) bool, which of the ids were given.
        trajectory (`Tensor`, with `output_trajectory`): (steps, batch, length) int64, the draft at each evaluation:
            the likeliest tokens, and at the last one the sequences.
        confidence (`Tensor`, with `output_trajectory`): (steps, batch, length) float32, the probability that the
            network gave each token of the drafts; 1 where it was given.
    """

    sequences: Tensor | None = None
    num_function_evaluations: int | None = None
    tokens_per_forward: float | None = None
    seeds: list[int] | None = None
    conditioning_mask: Tensor | None = None
    trajectory: Tensor | None = None
    confidence: Tensor | None = None


class FlowGenerationMixin(GenerationMixin):
    """`generate` for models with a clock, `embed_tokens`, `embed_state`, `embed_noise`, `embed_prediction`,
    `decode_prediction`, `confidence`, `denoise`.
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
        timesteps: Sequence[float] | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        gamma: float | None = None,
        renoise: str | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        window_overlap: int | None = None,
        pad_after_eos: bool | None = None,
        batch_size: int | None = None,
        num_return_sequences: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        return_dict_in_generate: bool | None = None,
        output_trajectory: bool = False,
        streamer: BaseStreamer | None = None,
        **kwargs,
    ) -> Tensor | FlowGenerationOutput:
        """Write sequences of ids in `num_steps` evaluations of the network.

        Call arguments win over `generation_config`, which wins over the model's own.

        Args:
            input_ids (`Tensor`, *optional*): (batch, P) prompts, kept as the first P ids of each sequence: clamped to
                their embedding at every state. The tokenizer's mask token is a blank, to be filled in. None to write
                from nothing.
            generation_config (`GenerationConfig`, *optional*): settings, usually a [`FlowGenerationConfig`].
            attention_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, where 0 is padding of a shorter prompt, on
                either side: every prompt is put at the beginning of its sequence, which is written on from there.
            conditioning_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, which of the `input_ids` to keep; the
                others are filled in. Default: all but the blanks.
            num_steps (`int`, *optional*): evaluations of the network, >= 1.
            timesteps, sampler, temperature, top_k, top_p, gamma, renoise (*optional*): see [`FlowGenerationConfig`].
                Naming another `sampler` drops the settings that the configuration has for its own.
            max_length (`int`, *optional*): ids per sequence, prompt included; default, and most without
                `window_overlap`: the model's `max_position_embeddings`.
            max_new_tokens (`int`, *optional*): ids per sequence after the prompt, instead of `max_length`.
            window_overlap, pad_after_eos (*optional*): see [`FlowGenerationConfig`].
            batch_size (`int`, *optional*): number of sequences without a prompt, default 1.
            num_return_sequences (`int`, *optional*): sequences per prompt (or per `batch_size`), default 1.
            seed (`int` or `list[int]`, *optional*): the i-th sequence takes `seed + i`, or `seed[i]`. A sequence
                depends on its seed alone, not on the batch around it. Default: drawn from `generator`.
            generator (`torch.Generator`, *optional*): source of the seeds; None for torch's global one.
            return_dict_in_generate (`bool`, *optional*): return a [`FlowGenerationOutput`] instead of the ids.
            output_trajectory (`bool`): keep the draft of every step in the output, which then is a
                [`FlowGenerationOutput`].
            streamer (`BaseStreamer`, *optional*): is put the draft of every step, ids (batch, length) on the CPU, such
                as a [`DraftStreamer`].

        Returns:
            int64 ids (batch * num_return_sequences, length), or a [`FlowGenerationOutput`].

        Raises:
            ValueError: an argument is unknown or not allowed, or the weights give non-finite predictions.
        """
        given = dict(
            num_steps=num_steps,
            timesteps=None if timesteps is None else list(timesteps),
            sampler=sampler,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            gamma=gamma,
            renoise=renoise,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            window_overlap=window_overlap,
            pad_after_eos=pad_after_eos,
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

        drafts: list[tuple[Tensor, Tensor]] | None = [] if output_trajectory else None
        windows = self._windows(keep, config)
        if len(windows) > 1 and (output_trajectory or streamer is not None):
            raise ValueError("`output_trajectory` and `streamer` show one window: ask for a text within the context.")
        sequences, known = prompt, keep.clone()
        for number, window in enumerate(windows):
            own_seeds = seeds if number == 0 else step_seeds(seeds, _WINDOW + number)
            part = self._integrate(sequences[:, window], known[:, window], own_seeds, config, drafts, streamer)
            sequences[:, window], known[:, window] = part, True
        if config.pad_after_eos:
            written_eos = (sequences == config.eos_token_id) & ~keep
            past = written_eos.cumsum(1) - written_eos.int() > 0
            sequences = sequences.masked_fill(past & ~keep, config.pad_token_id)
        if not config.return_dict_in_generate and not output_trajectory:
            return sequences
        trajectory, confidence = (torch.stack(kept) for kept in zip(*drafts, strict=True)) if drafts else (None, None)
        return FlowGenerationOutput(
            sequences=sequences,
            num_function_evaluations=config.num_steps * len(windows),
            tokens_per_forward=(~keep).sum().item() / len(keep) / (config.num_steps * len(windows)),
            seeds=seeds,
            conditioning_mask=keep,
            trajectory=trajectory,
            confidence=confidence,
        )

    def _integrate(
        self,
        prompt: Tensor,
        keep: Tensor,
        seeds: list[int],
        config: FlowGenerationConfig,
        drafts: list[tuple[Tensor, Tensor]] | None,
        streamer: BaseStreamer | None,
    ) -> Tensor:
        """Ids (batch, length), those of `prompt` (batch, length) clamped where `keep` (batch, length). The draft of
        each step and its confidence are added to `drafts`, if there are any, and put to the streamer."""
        batch, length = prompt.shape
        steps = config.num_steps
        even = torch.arange(steps) / steps
        tau = torch.cat([torch.tensor(config.timesteps) if config.timesteps else even, torch.ones(1)])
        tau = tau.to(self.device, torch.float32)
        sampler = SAMPLERS[config.sampler](self, config, tau, self._fresh_noise(seeds, length))
        clean = self.embed_state(prompt)
        state = self.embed_noise(batch, length, seeds=seeds)
        for step in range(steps):
            state = torch.where(keep[..., None], clean, state)
            target = sampler.target(step)
            hidden = self.denoise(state, tau[step].expand(batch), None if target is None else target.expand(batch))
            last = step == steps - 1
            if last or drafts is not None or streamer is not None:
                tokens = sampler.finish(hidden) if last else self.decode_prediction(hidden)
                draft = torch.where(keep, prompt, tokens)
                if (draft < 0).any():
                    raise ValueError("the network's output is not finite: look for NaN or infinite weights.")
                if drafts is not None:
                    drafts.append((draft, self.confidence(hidden, draft).masked_fill(keep, 1)))
                if streamer is not None:
                    streamer.put(draft.cpu())
            if not last:
                state = sampler.advance(state, hidden, step)
        if streamer is not None:
            streamer.end()
        return draft

    def _fresh_noise(self, seeds: list[int], length: int) -> Noise:
        """Embedded noise and uniform numbers for one step after the other, of each sequence's own seed."""
        vocab_size, width = self.config.vocab_size, self.config.hidden_size
        size, longest = min(vocab_size, width), self.config.max_position_embeddings
        # Noise is linear in the white noise that it is made of: the factor is worked out once for all steps.
        factor = self.embed_tokens(torch.eye(size, device=self.device), white=vocab_size > width)
        for step in itertools.count(1):
            white, _ = white_noise(step_seeds(seeds, step), length, size + 1, self.device, longest)
            yield white[..., :size] @ factor, torch.special.ndtr(white[..., size])

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
        default = FlowGenerationConfig.from_model_config(self.config)
        settings: dict = {"sampler": default.sampler}
        for layer in (own, passed, given):
            # What a layer says goes before another name for it, and before the details of another choice, below.
            replaced = {"max_new_tokens"} if "max_length" in layer else set()
            if "num_steps" in layer or "timesteps" in layer:
                replaced |= {"num_steps", "timesteps"}
            if layer.get("sampler", settings["sampler"]) != settings["sampler"]:
                replaced |= set(SETTINGS)
            settings = {name: value for name, value in settings.items() if name not in replaced} | layer
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

    def _check_sampler(self, config: FlowGenerationConfig) -> None:
        """That the sampler can work with this model, and has a use for every setting."""
        chosen = SAMPLERS[config.sampler]
        if chosen.two_time and self.config.model_type != "fmlm":
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
        ids = input_ids.to("cpu", torch.long)  # one look at the values, where it costs no wait
        self._check_ids("input_ids", ids)
        blank = self.config.mask_token_id
        if conditioning_mask is not None:
            keep = conditioning_mask.to("cpu").bool()
        else:
            keep = torch.ones_like(ids, dtype=torch.bool) if blank is None else ids != blank
        if attention_mask is not None:
            padding = attention_mask.to("cpu") == 0
            order = padding.int().argsort(dim=1, stable=True)  # what is no padding goes to the front of its row
            ids, keep = ids.gather(1, order), (keep & ~padding).gather(1, order)
        return ids.to(self.device), keep.to(self.device)

    def _output_length(self, prompt_length: int, all_kept: bool, config: FlowGenerationConfig) -> int:
        longest = self.config.max_position_embeddings
        if config.max_new_tokens is not None:
            length = prompt_length + config.max_new_tokens
        else:
            length = config.max_length or longest
        overlap = config.window_overlap
        if length > longest and overlap is None:
            raise ValueError(
                f"{length} ids are asked for, but the model's context (max_position_embeddings) is {longest}: lower "
                "max_length or max_new_tokens, shorten the prompt, or give `window_overlap` to write it in windows."
            )
        if overlap is not None and overlap >= longest:
            raise ValueError(f"`window_overlap` must be less than the model's context, {longest}, but is {overlap}.")
        if prompt_length > length or (prompt_length == length and all_kept):
            raise ValueError(
                f"the prompt has {prompt_length} ids and the output {length}: nothing is left to generate. Shorten "
                "the prompt, raise max_length, or leave blanks in it."
            )
        return length

    def _windows(self, keep: Tensor, config: FlowGenerationConfig) -> list[slice]:
        """Where the network is put to write a sequence (batch, length): each window begins with the last ids of the
        one before, at least `window_overlap`, and the last one ends with the sequence; none is where all is given."""
        length, longest = keep.shape[1], self.config.max_position_embeddings
        begins = [0]
        while begins[-1] + longest < length:
            begins.append(min(begins[-1] + longest - (config.window_overlap or 0), length - longest))
        windows = [slice(begin, min(begin + longest, length)) for begin in begins]
        given = keep.all(dim=0)
        return [window for window in windows if not given[window].all()]


class DraftStreamer(BaseStreamer):
    """Shows the whole draft of every sequence at each step of `generate(streamer=...)`, one in place of the other.

    ```python
    model.generate(num_steps=16, num_return_sequences=2, streamer=DraftStreamer(tokenizer))
    ```

    Args:
        tokenizer (`PreTrainedTokenizerBase`): that of the model.
        file (`TextIO`, *optional*): where to; default: standard output. In a terminal each draft takes the place of
            the one before; elsewhere they follow one another.
        decode_kwargs: for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None, **decode_kwargs):
        self.tokenizer, self.file, self.decode_kwargs = tokenizer, file or sys.stdout, decode_kwargs
        self._in_place = self.file.isatty()
        self._step = 0

    def put(self, value: Tensor) -> None:
        """Show drafts, ids (batch, length)."""
        self._step += 1
        if self._in_place:
            self.file.write("\x1b[2J\x1b[H")  # clears the screen, and to its upper left corner
        self.file.write(f"step {self._step}\n\n")
        for ids in value:
            self.file.write(f"{self.tokenizer.decode(ids, **self.decode_kwargs)}\n\n")
        self.file.flush()

    def end(self) -> None:
        """The next text begins at step 1 again."""
        self._step = 0


def _set_values(config: GenerationConfig) -> dict:
    """The values of a configuration that are set, without its bookkeeping."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


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
