"""`generate`, which writes text with a flow language model, and its output.

Sampling carries a state from noise (tau = 0) to data (tau = 1) on a grid of tau, which is even unless given, with one
of the samplers of `samplers_flm.py`. The state stays in the embedded space: every step embeds the network's
prediction, block by block of the vocabulary, and the last step takes its tokens instead.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import CompileConfig, GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .drafts_flm import Watch
from .generation_config_flm import REFINE_FRACTION, FlowGenerationConfig, set_values
from .guidance_flm import Lookahead, Predictor, reward_gradient
from .layers_flm import without_dropout
from .noise_flm import step_seeds
from .requests_flm import FlowRequests, Job, spread_seeds
from .samplers_flm import SAMPLERS, Sampler

_WINDOW = 1 << 32  # added to the numbers of later windows for their seeds, beyond any number of steps


@dataclass
class FlowGenerationOutput(ModelOutput):
    """The output of `generate(return_dict_in_generate=True)`.

    Args:
        sequences (`Tensor`): (batch * num_return_sequences, length) int64 ids, prompts included. Shorter sequences are
            padded at their end.
        attention_mask (`Tensor`): int64 of the same shape, 1 in a sequence and 0 at the padding after a shorter one
            and, with `pad_after_eos`, after the end of a text.
            `model(labels=sequences, attention_mask=attention_mask)` takes both.
        num_function_evaluations (`int`): number of evaluations of the network for a sequence; the largest one if some
            sequences take fewer windows.
        tokens_per_forward (`float`): number of new tokens of a sequence per evaluation, on average.
        seeds (`list[int]`): the seed of each sequence; `generate(seed=seeds)` writes the same sequences again.
        conditioning_mask (`Tensor`): (batch * num_return_sequences, length) bool, True where the id was given.
            Padding counts as not given.
        trajectory (`Tensor`, with `output_trajectory`): (steps + refine_steps, batch, length) int64, the draft of each
            step: the likeliest tokens, and in the last step the sequences.
        confidence (`Tensor`, with `output_trajectory`): float32 of the same shape, the probability that the network
            gave each token of a draft when it was written; 1 at given tokens and at padding.
    """

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    num_function_evaluations: int | None = None
    tokens_per_forward: float | None = None
    seeds: list[int] | None = None
    conditioning_mask: Tensor | None = None
    trajectory: Tensor | None = None
    confidence: Tensor | None = None


class FlowGenerationMixin(FlowRequests, GenerationMixin):
    """Adds `generate` to a model, which needs `clock`, `denoise`, `embed_tokens`, `lm_head` and [`EmbeddedSpace`]."""

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
        """Called on loading: transformers' own version reads `generation_config.json` as a plain GenerationConfig."""
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
            except OSError as error:  # the file is optional; without it the defaults for the type of model stay
                if isinstance(error.__context__, json.JSONDecodeError | UnicodeDecodeError):
                    damaged = f"generation_config.json of {pretrained_model_name_or_path} is damaged."
                    raise ValueError(damaged) from error

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        conditioning_mask: Tensor | None = None,
        guidance_model: torch.nn.Module | None = None,
        reward_fn: Callable[[Lookahead], Tensor] | None = None,
        batch_size: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        output_trajectory: bool = False,
        streamer: BaseStreamer | None = None,
        progress_bar: bool = False,
        **kwargs,
    ) -> Tensor | FlowGenerationOutput:
        """Write sequences of ids in a few evaluations of the network.

        ```python
        ids = model.generate(num_steps=1, num_return_sequences=4, seed=0)  # four texts in one evaluation each
        ids = model.generate(prompt, num_steps=4, max_new_tokens=40)  # after a prompt, or in its blanks
        ids = model.generate(num_steps=16, sampler="bridge", temperature=0.8)
        ```

        Every setting of [`FlowGenerationConfig`] can be a keyword argument. An argument overrides `generation_config`,
        which overrides the model's own configuration. Naming another `sampler` drops the settings that a configuration
        has for its own sampler. A model in training mode writes without dropout.

        Args:
            input_ids (`Tensor`, *optional*): (batch, P) prompts, the first P ids of each sequence. Given ids are kept:
                every state has their embedding in their place. The mask token (`config.mask_token_id`) is a blank, to
                be filled in. Default: write from nothing.
            generation_config (`GenerationConfig`, *optional*): settings, usually a [`FlowGenerationConfig`].
            attention_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, 0 at the padding of shorter prompts, on
                either side. Each prompt is moved to the beginning of its sequence, which is then written as it would
                be for this prompt alone. Shorter sequences are padded at their end with `pad_token_id` (or 0). The
                network does not attend to this padding; `attention_mask` of the output tells where it is. Default: a
                `pad_token_id` that is not BOS, EOS or the mask token is padding at either end of a prompt, unless
                there is a `conditioning_mask`.
            conditioning_mask (`Tensor`, *optional*): (batch, P) of 0 and 1, 1 at the `input_ids` that are kept; the
                others are filled in. Default: all but the blanks are kept.
            guidance_model (`FLMModel`, *optional*): the weak network of `guidance_scale`: an earlier or smaller model
                of the same vocabulary, on the same device. Both networks see the same noise.
            reward_fn (`Callable`, *optional*): a differentiable function from a [`Lookahead`], the text to which the
                state leads, to a reward per sequence (batch,). After each step but the last the state moves by
                `reward_scale * grad_x reward_fn(X_{t,1}(x_t))`, which takes one more evaluation.
            batch_size (`int`, *optional*): number of sequences where there is no prompt, default 1.
            seed (`int` or `list[int]`, *optional*): seeds of the sequences: the i-th takes `seed + i`, or `seed[i]`. A
                sequence depends on its own seed, not on the batch around it. Default: drawn from `generator`.
            generator (`torch.Generator`, *optional*): source of the seeds. Default: torch's global generator.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): gives the ids of mask, EOS and padding that the model's
                configuration lacks.
            output_trajectory (`bool`): whether to return the draft of every step, in a [`FlowGenerationOutput`].
            streamer (`BaseStreamer`, *optional*): receives the draft of every step, ids (batch, length) on the CPU;
                for example a [`DraftStreamer`].
            progress_bar (`bool`): whether to show a progress bar, on the standard error.
            kwargs: settings such as `num_steps`, `timesteps`, `sampler`, `temperature`, `top_k`, `top_p`, `gamma`,
                `guidance_scale`, `refine_steps`, `max_length`, `max_new_tokens`, `num_return_sequences` and so on.

        Returns:
            int64 ids (batch * num_return_sequences, length); a [`FlowGenerationOutput`] with
            `return_dict_in_generate` or `output_trajectory`.

        Raises:
            ValueError: if an argument is unknown or not allowed, or if the weights give non-finite predictions.
        """
        config = self._merge_generation_config(generation_config, kwargs, tokenizer, guidance_model)
        prompts = self._check_prompt(input_ids, attention_mask, conditioning_mask, batch_size, config, tokenizer)
        prompt, given_ids, text = self._laid_out(*prompts, config, tokenizer)
        keep = given_ids | ~text
        seeds = spread_seeds(seed, generator, len(prompt))

        if prompt.shape[1] > self.config.max_position_embeddings and (output_trajectory or streamer is not None):
            raise ValueError("`output_trajectory` and `streamer` show one window: ask for a text within the context.")
        window_predictor = self._window_predictor(config, bool(given_ids.any()), guidance_model)
        self._check_reward(config, reward_fn)
        tokens = self._writable(config)
        ends = self._ends(config)
        jobs = self._jobs(keep, text.sum(1).tolist(), config)
        free = (~keep).sum().item()
        prompt, keep, given_ids, text = (x.to(self.device) for x in (prompt, keep, given_ids, text))
        call = self.denoise if config.compile_config is None else self._compiled(config.compile_config)

        passes = config.num_steps + (config.refine_steps or 0)  # predictions per window
        total = passes * sum(len(job.windows) for job in jobs)
        bar = logging.tqdm(total=total, disable=not progress_bar, desc="generate")
        watch = Watch(streamer, bar, [] if output_trajectory else None)
        sequences = prompt.clone()
        with bar, without_dropout(self, *([] if guidance_model is None else [guidance_model])):
            for job in jobs:
                ids, known = prompt[job.rows], keep[job.rows]
                its_seeds = [seeds[row] for row in job.rows]
                for number, window in enumerate(job.windows):
                    of_noise = its_seeds if number == 0 else step_seeds(its_seeds, _WINDOW + number)
                    part = ids[:, window], known[:, window], of_noise
                    predictor = window_predictor(self, *part, tokens, call, job.lengths(window))
                    ids[:, window] = self._integrate(predictor, config, watch, job.told(reward_fn))
                    known[:, window] = True
                sequences[job.rows] = ids
        if ends is not None:
            past = _past(ends, sequences, keep, self.config.bos_token_id)
            sequences, text = sequences.masked_fill(past, config.pad_token_id), text & ~past
        if not config.return_dict_in_generate and not output_trajectory:
            return sequences
        evaluations = passes * predictor.evaluations + (0 if reward_fn is None else config.num_steps - 1)
        more = dict(attention_mask=text.long(), seeds=seeds, conditioning_mask=given_ids)
        return _output(sequences, watch, jobs, evaluations, free, **more)

    def _integrate(
        self,
        predictor: Predictor,
        config: FlowGenerationConfig,
        watch: Watch,
        reward_fn: Callable[[Lookahead], Tensor] | None,
    ) -> Tensor:
        """Carry one window from noise to text, and return its ids (batch, length), kept ones included."""
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
        most = REFINE_FRACTION if config.refine_fraction is None else config.refine_fraction
        for number in range(refinements):
            share = most * (1 - number / refinements)
            draft, confidence = self._refine(draft, confidence, predictor, sampler, share)
            watch.show(draft, confidence)
            watch.bar.update()
        watch.end()
        return draft

    def _refine(
        self, draft: Tensor, confidence: Tensor, predictor: Predictor, sampler: Sampler, share: float
    ) -> tuple[Tensor, Tensor]:
        """Noise the least certain `share` of a draft (batch, length) and write these tokens again, given the others,
        in one evaluation: the new draft and its confidence. After the idea of arXiv 2606.24773.

        A flow map is asked for its denoiser: where several tokens are possible, a jump to the end is surer of the one
        that it picks than it should be."""
        free = ~predictor.keep
        count = (free.sum(1, keepdim=True) * share).ceil()
        place = confidence.masked_fill(~free, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        again = (place < count) & free
        noise, _ = next(sampler.noise)
        state = torch.where(again[..., None], noise, predictor.embed(draft))
        prediction = predictor.predict(state, torch.zeros((), device=state.device), None)
        draft = self._clamped(sampler.finish(prediction), draft, ~again)
        return draft, torch.where(again, prediction.confidence(draft), confidence)

    @staticmethod
    def _clamped(tokens: Tensor, given: Tensor, keep: Tensor) -> Tensor:
        """`given` where `keep` is True, `tokens` elsewhere. A token of -1 (not finite) raises a ValueError."""
        tokens = torch.where(keep, given, tokens)
        if (tokens < 0).any():
            raise ValueError("the network's output is not finite: look for NaN or infinite weights.")
        return tokens

    def _compiled(self, options: CompileConfig) -> Callable[..., Tensor]:
        denoise = torch.compile(self.denoise, **options.to_dict())
        # A CUDA graph writes each result into the same memory, so it is copied: guidance needs two of them at once.
        return lambda *args, **mask: denoise(*args, **mask).clone()


def _output(
    sequences: Tensor, watch: Watch, jobs: list[Job], evaluations: int, free: int, **more
) -> FlowGenerationOutput:
    """The output, given the `evaluations` of the network for each window and the number of tokens to be written."""
    drafts = (torch.stack(x) for x in zip(*watch.drafts, strict=True)) if watch.drafts else (None, None)
    trajectory, confidence = drafts
    if trajectory is not None:
        trajectory[-1] = sequences  # padded after the end of a text, where the last draft is not
    return FlowGenerationOutput(
        sequences=sequences,
        num_function_evaluations=evaluations * max(len(job.windows) for job in jobs),
        tokens_per_forward=free / (evaluations * sum(len(job.rows) * len(job.windows) for job in jobs)),
        trajectory=trajectory,
        confidence=confidence,
        **more,
    )


def _past(ends: Tensor, sequences: Tensor, keep: Tensor, bos: int | None) -> Tensor:
    """Which tokens of `sequences` (batch, length), but for kept ones, come after the first written one of `ends`. BOS
    at the beginning ends nothing, though in some vocabularies it is EOS, too."""
    written = torch.isin(sequences, ends) & ~keep
    if bos is not None:
        written[:, 0] &= sequences[:, 0] != bos
    return (written.cumsum(1) - written.int() > 0) & ~keep


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The ids (1, P) of a prompt, as training rows have them: BOS, if the tokenizer has one, then the text.

    Special tokens that the tokenizer adds by itself are left out. An empty text gives no ids (P = 0): `generate` then
    writes from nothing.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    if ids and bos is not None and ids[0] != bos:
        ids = [bos, *ids]
    return torch.tensor([ids], dtype=torch.long)
