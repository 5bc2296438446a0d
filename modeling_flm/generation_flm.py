"""Text from a flow: `generate` and its output.

Sampling carries a state from noise (tau = 0) to data (tau = 1) on a grid of tau, uniform unless given, with one of
the samplers of `samplers_flm.py`. The state stays in the embedded space; every step re-embeds a prediction blockwise
over the vocabulary, and the last one takes its tokens.
"""

import difflib
import inspect
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import CompileConfig, GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .checks_flm import check_ids
from .configuration_flm import is_integer
from .generation_config_flm import HONOURED, FlowGenerationConfig, as_ids, set_values
from .guidance_flm import (
    ClassifierFree,
    DropoutGuided,
    Lookahead,
    ModelGuided,
    Predictor,
    reward_gradient,
)
from .noise_flm import as_seeds, step_seeds
from .samplers_flm import SAMPLERS, SETTINGS, Bridge, Sampler

logger = logging.get_logger(__name__)

_WINDOW = 1 << 32  # seeds of the windows after the first: beyond any number of steps


@dataclass
class FlowGenerationOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Args:
        sequences (`Tensor`): (batch * num_return_sequences, length) int64 ids, prompt included; shorter sequences are
            padded at their end.
        attention_mask (`Tensor`): of the same shape, int64: 1 where the sequence is, 0 at the padding after a shorter
            one. `model(labels=sequences, attention_mask=attention_mask)` takes both.
        num_function_evaluations (`int`): evaluations of the network that a sequence takes; the most of any of them,
            where some take fewer windows.
        tokens_per_forward (`float`): new tokens of a sequence per evaluation, on average.
        seeds (`list[int]`): the seed of each sequence; `generate(seed=seeds)` writes the same sequences again.
        conditioning_mask (`Tensor`): (batch * num_return_sequences, length) bool, which of the ids were given. Padding
            was not.
        trajectory (`Tensor`, with `output_trajectory`): (steps + refine_steps, batch, length) int64, the draft at each
            step: the likeliest tokens, and at the last one the sequences.
        confidence (`Tensor`, with `output_trajectory`): of the same shape, float32, the probability that the network
            gave each token of the drafts when it was written; 1 where it was given, and at padding.
    """

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    num_function_evaluations: int | None = None
    tokens_per_forward: float | None = None
    seeds: list[int] | None = None
    conditioning_mask: Tensor | None = None
    trajectory: Tensor | None = None
    confidence: Tensor | None = None


class FlowGenerationMixin(GenerationMixin):
    """`generate` for models with a clock, `embed_tokens`, `embed_noise`, `embed_prediction`, `lm_head`, `denoise`."""

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
            self.generation_config = FlowGenerationConfig(**set_values(generation_config))
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
        guidance_scale: float | None = None,
        guidance_dropout: float | None = None,
        guidance_model: torch.nn.Module | None = None,
        reward_fn: Callable[[Lookahead], Tensor] | None = None,
        reward_scale: float | None = None,
        refine_steps: int | None = None,
        refine_fraction: float | None = None,
        suppress_tokens: Sequence[int] | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
        compile_config: CompileConfig | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        window_overlap: int | None = None,
        pad_after_eos: bool | None = None,
        batch_size: int | None = None,
        num_return_sequences: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        return_dict_in_generate: bool | None = None,
        output_trajectory: bool = False,
        streamer: BaseStreamer | None = None,
        progress_bar: bool = False,
        **kwargs,
    ) -> Tensor | FlowGenerationOutput:
        """Write sequences of ids in `num_steps` evaluations of the network.

        Call arguments win over `generation_config`, which wins over the model's own.

        Args:
            input_ids (`Tensor`, *optional*): (batch, P) prompts, kept as the first P ids of each sequence: clamped to
                their embedding at every state. The mask token (`config.mask_token_id`) is a blank, to be filled in.
                None to write from nothing.
            generation_config (`GenerationConfig`, *optional*): settings, usually a [`FlowGenerationConfig`].
            attention_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, where 0 is padding of a shorter prompt, on
                either side: every prompt is put at the beginning of its sequence, which is written on from there as
                that of this prompt alone would be.
            conditioning_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, which of the `input_ids` to keep; the
                others are filled in. Default: all but the blanks.
            num_steps (`int`, *optional*): evaluations of the network, >= 1.
            timesteps, sampler, temperature, top_k, top_p, gamma, renoise (*optional*): see [`FlowGenerationConfig`].
                Naming another `sampler` drops the settings that the configuration has for its own.
            guidance_scale, guidance_dropout, reward_scale, refine_steps, refine_fraction, suppress_tokens,
                bad_words_ids, compile_config (*optional*): see [`FlowGenerationConfig`].
            guidance_model (`FLMModel`, *optional*): the weak network of `guidance_scale`: an earlier or smaller model
                of the same vocabulary, on the same device. Both see the same noise.
            reward_fn (`Callable`, *optional*): from a [`Lookahead`], the text that the present state leads to, to a
                reward per sequence (batch,), differentiable. After each step but the last the state moves by
                `reward_scale * grad_x reward_fn(X_{t,1}(x_t))`, for one more evaluation.
            max_length (`int`, *optional*): ids per sequence, prompt included; default, and most without
                `window_overlap`: the model's `max_position_embeddings`.
            max_new_tokens (`int`, *optional*): ids per sequence after its own prompt, instead of `max_length`. Of
                prompts of different lengths the shorter sequences are padded at their end (`pad_token_id`, or 0),
                which the network does not attend to; `attention_mask` of the output tells where.
            window_overlap, pad_after_eos (*optional*): see [`FlowGenerationConfig`].
            batch_size (`int`, *optional*): number of sequences without a prompt, default 1.
            num_return_sequences (`int`, *optional*): sequences per prompt (or per `batch_size`), default 1.
            seed (`int` or `list[int]`, *optional*): the i-th sequence takes `seed + i`, or `seed[i]`. A sequence
                depends on its seed alone, not on the batch around it. Default: drawn from `generator`.
            generator (`torch.Generator`, *optional*): source of the seeds; None for torch's global one.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): where the ids of mask, EOS and padding come from that
                the model's configuration lacks.
            return_dict_in_generate (`bool`, *optional*): return a [`FlowGenerationOutput`] instead of the ids.
            output_trajectory (`bool`): keep the draft of every step in the output, which then is a
                [`FlowGenerationOutput`].
            streamer (`BaseStreamer`, *optional*): is put the draft of every step, ids (batch, length) on the CPU, such
                as a [`DraftStreamer`].
            progress_bar (`bool`): show one on the standard error.

        Returns:
            int64 ids (batch * num_return_sequences, length), or a [`FlowGenerationOutput`].

        Raises:
            ValueError: an argument is unknown or not allowed, or the weights give non-finite predictions.
        """
        given = dict(
            num_steps=num_steps,
            timesteps=_as_list(timesteps),
            sampler=sampler,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            gamma=gamma,
            renoise=renoise,
            guidance_scale=guidance_scale,
            guidance_dropout=guidance_dropout,
            reward_scale=reward_scale,
            refine_steps=refine_steps,
            refine_fraction=refine_fraction,
            suppress_tokens=_as_list(suppress_tokens),
            bad_words_ids=_as_list(bad_words_ids),
            compile_config=compile_config,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            window_overlap=window_overlap,
            pad_after_eos=pad_after_eos,
            num_return_sequences=num_return_sequences,
            return_dict_in_generate=return_dict_in_generate,
            **kwargs,
        )
        if tokenizer is not None and not hasattr(tokenizer, "decode"):
            raise ValueError(f"`tokenizer` must be a tokenizer, but is {tokenizer!r}.")
        config = self._merge_generation_config(generation_config, given, tokenizer)
        blank = self.config.mask_token_id
        if blank is None:  # the plain Trainer copies the other special ids of its tokenizer into the config, not this
            blank = getattr(tokenizer, "mask_token_id", None)
        prompt, given_ids, lengths = self._check_prompt(
            input_ids, attention_mask, conditioning_mask, batch_size, blank
        )
        lengths = self._output_lengths(lengths, given_ids, config, blank)
        length, longest = int(lengths.max()), self.config.max_position_embeddings
        prompt, given_ids = (F.pad(x, (0, length - x.shape[1])) for x in (prompt, given_ids))
        text = torch.arange(length) < lengths[:, None]  # the rest is padding of the shorter sequences
        if not text.all():
            prompt = prompt.where(text, self._padding(config))
        prompt, given_ids, text = (
            x.repeat_interleave(config.num_return_sequences or 1, dim=0) for x in (prompt, given_ids, text)
        )
        keep = given_ids | ~text
        seeds = _spread_seeds(seed, generator, len(prompt))

        if length > longest and (output_trajectory or streamer is not None):
            raise ValueError("`output_trajectory` and `streamer` show one window: ask for a text within the context.")
        window_predictor = self._window_predictor(config, bool(given_ids.any()), guidance_model)
        self._check_reward(config, reward_fn)
        tokens = self._writable(config)
        ends = self._ends(config) if config.pad_after_eos else None
        jobs = self._jobs(keep, text.sum(1).tolist(), config)
        free = (~keep).sum().item()
        prompt, keep, given_ids, text = (x.to(self.device) for x in (prompt, keep, given_ids, text))
        call = self.denoise if config.compile_config is None else self._compiled(config.compile_config)

        passes = config.num_steps + (config.refine_steps or 0)  # of a window
        total = passes * sum(len(job.windows) for job in jobs)
        bar = logging.tqdm(total=total, disable=not progress_bar, desc="generate")
        watch = _Watch(streamer, bar, [] if output_trajectory else None)
        sequences = prompt.clone()
        with bar:
            for job in jobs:
                ids, known = prompt[job.rows], keep[job.rows]
                its_seeds = [seeds[row] for row in job.rows]
                for number, window in enumerate(job.windows):
                    window_seeds = its_seeds if number == 0 else step_seeds(its_seeds, _WINDOW + number)
                    predictor = window_predictor(
                        self, ids[:, window], known[:, window], window_seeds, tokens, call, job.lengths(window)
                    )
                    ids[:, window] = self._integrate(predictor, config, watch, job.told(reward_fn))
                    known[:, window] = True
                sequences[job.rows] = ids
        if ends is not None:
            written_ends = torch.isin(sequences, ends) & ~keep
            past = written_ends.cumsum(1) - written_ends.int() > 0
            sequences = sequences.masked_fill(past & ~keep, config.pad_token_id)
        if not config.return_dict_in_generate and not output_trajectory:
            return sequences
        of_window = passes * predictor.evaluations + (0 if reward_fn is None else config.num_steps - 1)
        trajectory, confidence = (
            (torch.stack(x) for x in zip(*watch.drafts, strict=True)) if watch.drafts else (None,) * 2
        )
        return FlowGenerationOutput(
            sequences=sequences,
            attention_mask=text.long(),
            num_function_evaluations=of_window * max(len(job.windows) for job in jobs),
            tokens_per_forward=free / (of_window * sum(len(job.rows) * len(job.windows) for job in jobs)),
            seeds=seeds,
            conditioning_mask=given_ids,
            trajectory=trajectory,
            confidence=confidence,
        )

    def _integrate(
        self,
        predictor: Predictor,
        config: FlowGenerationConfig,
        watch: "_Watch",
        reward_fn: Callable[[Lookahead], Tensor] | None,
    ) -> Tensor:
        """Ids (batch, length) of one window, those of its prompt clamped where they are kept."""
        prompt, keep, steps = predictor.prompt, predictor.keep, config.num_steps
        even = torch.arange(steps) / steps
        tau = torch.cat([torch.tensor(config.timesteps) if config.timesteps else even, torch.ones(1)])
        tau = tau.to(self.device, torch.float32)
        sampler = SAMPLERS[config.sampler](predictor, config, tau, predictor.fresh_noise())
        refinements, scale = config.refine_steps or 0, 1.0 if config.reward_scale is None else config.reward_scale
        state = predictor.start
        for step in range(steps):
            state = torch.where(keep[..., None], predictor.clean, state)
            prediction = predictor.predict(state, tau[step], sampler.target(step))
            last = step == steps - 1
            if last or watch.drafts_wanted:
                tokens = sampler.finish(prediction) if last else prediction.most_likely()
                draft, confidence = self._clamped(tokens, prompt, keep), None
                if watch.drafts is not None or (last and refinements):
                    confidence = prediction.confidence(draft).masked_fill(keep, 1)
                watch.show(draft, confidence)
            if not last:
                ahead = sampler.advance(state, prediction, step)
                if reward_fn is not None:
                    ahead = ahead + scale * reward_gradient(predictor, reward_fn, state, tau[step])
                state = ahead
            watch.bar.update()
        for _ in range(refinements):
            draft, confidence = self._refine(draft, confidence, predictor, sampler, config)
            watch.show(draft, confidence)
            watch.bar.update()
        watch.end()
        return draft

    def _refine(
        self, draft: Tensor, confidence: Tensor, predictor: Predictor, sampler: Sampler, config: FlowGenerationConfig
    ) -> tuple[Tensor, Tensor]:
        """The draft (batch, length) with its least certain tokens written anew, given the others, from fresh noise in
        one evaluation (after the idea of arXiv 2606.24773); and the confidence of all."""
        free = ~predictor.keep
        fraction = 0.25 if config.refine_fraction is None else config.refine_fraction
        count = (free.sum(1, keepdim=True) * fraction).ceil()
        place = confidence.masked_fill(~free, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        again = (place < count) & free
        noise, _ = next(sampler.noise)
        state = torch.where(again[..., None], noise, predictor.embed(draft))
        start = torch.zeros((), device=state.device)
        prediction = predictor.predict(state, start, torch.ones_like(start) if sampler.two_time else None)
        draft = self._clamped(sampler.finish(prediction), draft, ~again)
        return draft, torch.where(again, prediction.confidence(draft), confidence)

    @staticmethod
    def _clamped(tokens: Tensor, given: Tensor, keep: Tensor) -> Tensor:
        """`tokens`, and `given` where `keep`."""
        tokens = torch.where(keep, given, tokens)
        if (tokens < 0).any():
            raise ValueError("the network's output is not finite: look for NaN or infinite weights.")
        return tokens

    def _compiled(self, options: CompileConfig) -> Callable[..., Tensor]:
        denoise = torch.compile(self.denoise, **options.to_dict())
        # A CUDA graph writes into the same memory at each call, and two predictions of a step are needed at once.
        return lambda *args, **mask: denoise(*args, **mask).clone()

    def _merge_generation_config(
        self, generation_config: GenerationConfig | None, given: dict, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> FlowGenerationConfig:
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError(f"`generation_config` must be a GenerationConfig, but is {generation_config!r}.")
        own = {name: value for name, value in set_values(self.generation_config).items() if name in HONOURED}
        passed = {} if generation_config is None else set_values(generation_config)
        given = {name: value for name, value in given.items() if value is not None}
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
            # What a layer says goes before another name for it, and before the details of another choice, below.
            replaced = {"max_new_tokens"} if "max_length" in layer else set()
            if "num_steps" in layer or "timesteps" in layer:
                replaced |= {"num_steps", "timesteps"}
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
        if config.refine_fraction is not None and not config.refine_steps:
            raise ValueError("`refine_fraction` is that of `refine_steps`, but there are none.")

    def _window_predictor(
        self, config: FlowGenerationConfig, has_prompt: bool, guidance_model: torch.nn.Module | None
    ) -> Callable[..., Predictor]:
        """How to make the predictor of a window: guided by what, if at all."""
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
            return partial(ModelGuided, guidance_model, scale)
        if rate is not None:
            return partial(DropoutGuided, rate, scale)
        if not has_prompt:
            raise ValueError(
                "`guidance_scale` without a prompt needs a weak network: give `guidance_model` or `guidance_dropout`."
            )
        return partial(ClassifierFree, scale)

    def _check_guidance_model(self, weak: torch.nn.Module, config: FlowGenerationConfig) -> None:
        if not isinstance(weak, FlowGenerationMixin):
            raise ValueError(f"`guidance_model` must be a flow language model, but is {type(weak).__name__}.")
        if SAMPLERS[config.sampler].two_time and weak.config.model_type != "fmlm":
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
        """The ids that may be written, ascending; None for all."""
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
        blank: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts (batch, P), P = 0 without any, each before its padding; where they are kept, bool; and their
        lengths (batch,). On the CPU, where a look at their values costs no wait."""
        if batch_size is not None and not (is_integer(batch_size) and batch_size >= 1):
            raise ValueError(f"`batch_size` must be an integer >= 1, but is {batch_size!r}.")
        masks = {"attention_mask": attention_mask, "conditioning_mask": conditioning_mask}
        if input_ids is None:
            for name, mask in masks.items():
                if mask is not None:
                    raise ValueError(f"`{name}` is that of the prompts, but there are no `input_ids`.")
            ids = torch.empty(batch_size or 1, 0, dtype=torch.long)
            return ids, ids.bool(), ids.sum(1)
        is_ids = isinstance(input_ids, Tensor) and not input_ids.is_floating_point() and input_ids.dtype != torch.bool
        if not is_ids or input_ids.ndim != 2 or len(input_ids) == 0:
            raise ValueError("`input_ids` must be an integer tensor (batch, prompt length), batch >= 1.")
        if batch_size is not None and batch_size != len(input_ids):
            raise ValueError(f"`batch_size` is {batch_size}, but there are {len(input_ids)} prompts.")
        for name, mask in masks.items():
            if mask is not None and getattr(mask, "shape", None) != input_ids.shape:
                raise ValueError(f"`{name}` must be a tensor as `input_ids`, of shape {tuple(input_ids.shape)}.")
        ids = input_ids.to("cpu", torch.long)
        check_ids(self.config, "input_ids", ids)
        if conditioning_mask is not None:
            keep = conditioning_mask.to("cpu").bool()
        else:
            keep = torch.ones_like(ids, dtype=torch.bool) if blank is None else ids != blank
        padding = torch.zeros_like(keep) if attention_mask is None else attention_mask.to("cpu") == 0
        if padding.any():
            order = padding.int().argsort(dim=1, stable=True)  # what is no padding goes to the front of its row
            ids, keep = ids.gather(1, order), (keep & ~padding).gather(1, order)
        return ids, keep, (~padding).sum(1)

    def _output_lengths(
        self, prompts: Tensor, keep: Tensor, config: FlowGenerationConfig, blank: int | None
    ) -> Tensor:
        """How long each sequence becomes, of prompts of the given lengths: (batch,)."""
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
        """The id behind the shorter sequences."""
        padding = config.pad_token_id or 0
        check_ids(self.config, "pad_token_id", torch.tensor(padding))
        return padding

    def _ends(self, config: FlowGenerationConfig) -> Tensor:
        """The ids that end a text, if padding is to follow them."""
        ends = torch.tensor(as_ids(config.eos_token_id))
        check_ids(self.config, "eos_token_id", ends)
        self._padding(config)
        return ends.to(self.device)

    def _jobs(self, keep: Tensor, lengths: list[int], config: FlowGenerationConfig) -> list["_Job"]:
        """What is written together: all sequences if they fit the context, or else those of the same length that are
        open in the same windows, so that none depends on the others."""
        longest = self.config.max_position_embeddings
        if max(lengths) <= longest:
            return [_Job(range(len(lengths)), [slice(0, max(lengths))], lengths)]
        alike: dict[tuple, list[int]] = {}
        for row, length in enumerate(lengths):
            # Each window begins with the last ids of the one before, at least `window_overlap`, and the last one ends
            # with the sequence; none is where all is given.
            begins = [0]
            while begins[-1] + longest < length:
                begins.append(min(begins[-1] + longest - (config.window_overlap or 0), length - longest))
            spans = ((begin, min(begin + longest, length)) for begin in begins)
            open_spans = tuple(span for span in spans if not keep[row, slice(*span)].all())
            alike.setdefault((length, open_spans), []).append(row)
        jobs = (_Job(rows, [slice(*span) for span in spans], lengths) for (_, spans), rows in alike.items())
        return [job for job in jobs if job.windows]


@dataclass
class _Job:
    """Sequences, by their numbers, that are written together, window by window; and the lengths of all sequences."""

    rows: Sequence[int]
    windows: list[slice]
    all_lengths: list[int]

    def lengths(self, window: slice) -> list[int]:
        """Of the sequences within a window."""
        return [min(self.all_lengths[row], window.stop) - window.start for row in self.rows]

    def told(self, reward_fn: Callable[[Lookahead], Tensor] | None) -> Callable[[Lookahead], Tensor] | None:
        """A reward that is told the numbers of the sequences."""
        if reward_fn is None:
            return None
        numbers = torch.tensor(self.rows)
        return lambda ahead: reward_fn(replace(ahead, rows=numbers.to(ahead.rows.device)[ahead.rows]))


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The ids (1, P) of a prompt, whatever special tokens the tokenizer adds by itself: the text's own, after BOS if
    there is one, as training rows begin. Of an empty text there are none: P = 0, to write from nothing."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    if ids and bos is not None and ids[0] != bos:
        ids = [bos, *ids]
    return torch.tensor([ids], dtype=torch.long)


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


@dataclass
class _Watch:
    """What is told of the steps of a generation, while it goes on."""

    streamer: BaseStreamer | None
    bar: Any  # of tqdm
    drafts: list[tuple[Tensor, Tensor]] | None

    @property
    def drafts_wanted(self) -> bool:
        return self.drafts is not None or self.streamer is not None

    def show(self, draft: Tensor, confidence: Tensor | None) -> None:
        if self.drafts is not None:
            self.drafts.append((draft, confidence))
        if self.streamer is not None:
            self.streamer.put(draft.cpu())

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()


def _as_list(value):
    """A sequence as a list, to be saved as one; anything else as it is, to be refused."""
    return list(value) if isinstance(value, Sequence | Tensor) and not isinstance(value, str) else value


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
