"""How a flow language model generates: the settings of `generate` that a repository keeps."""

import itertools
import math
import numbers
from typing import Any

from transformers.generation import GenerationConfig

from .configuration_flm import is_integer
from .samplers_flm import SAMPLERS, SETTINGS

# What `generate` makes use of; it refuses every other argument, so that none is ignored in silence.
HONOURED = {
    "num_steps",
    "timesteps",
    "sampler",
    *SETTINGS,
    "guidance_scale",
    "guidance_dropout",
    "reward_scale",
    "refine_steps",
    "refine_fraction",
    "suppress_tokens",
    "bad_words_ids",
    "compile_config",
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
        guidance_scale (`float`, *optional*): how far to go from a weak network's prediction through the model's own,
            `D_weak + guidance_scale (D - D_weak)`, >= 0, where 1 is the model's own. The weak network is the
            `guidance_model` of the call; or, with `guidance_dropout`, the model with dropout; or else the model for
            which the prompt is as noisy as the rest (classifier-free guidance). It doubles the evaluations. Not with
            "bridge".
        guidance_dropout (`float`, *optional*): rate of the weak network's dropout, in (0, 1).
        reward_scale (`float`, *optional*): of the gradient of the call's `reward_fn`, default 1.
        refine_steps (`int`, *optional*): after the text is written, so many times noise its least certain tokens and
            write them again, given the others, in one evaluation each. >= 0.
        refine_fraction (`float`, *optional*): of the tokens that are written: those that are refined, in (0, 1].
            Default 0.25.
        suppress_tokens (`list[int]`, *optional*): ids that are not written; what the network gives them is shared
            among the others.
        bad_words_ids (`list[list[int]]`, *optional*): the same as lists of one id each. Words of several tokens cannot
            be forbidden: all tokens are written at once.
        compile_config (`CompileConfig`, *optional*): compile the network with `torch.compile` and these options; its
            mode "reduce-overhead" uses CUDA graphs. Not saved.
        window_overlap (`int`, *optional*): write texts longer than the model's context window by window, each with at
            least so many ids of the one before as its beginning, >= 0.
        pad_after_eos (`bool`, *optional*): after the first EOS that was written, put padding. Rows of packed documents
            go on after one. `eos_token_id` may list several.
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
        self.guidance_dropout = kwargs.pop("guidance_dropout", None)
        self.reward_scale = kwargs.pop("reward_scale", None)
        self.refine_steps = kwargs.pop("refine_steps", None)
        self.refine_fraction = kwargs.pop("refine_fraction", None)
        self.window_overlap = kwargs.pop("window_overlap", None)
        self.pad_after_eos = kwargs.pop("pad_after_eos", None)
        kwargs.setdefault("do_sample", True)  # noise makes every generation a sample
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        words = self.bad_words_ids
        if words is not None and not (
            isinstance(words, list | tuple) and all(isinstance(w, list | tuple) and len(w) == 1 for w in words)
        ):
            raise ValueError(
                f"`bad_words_ids` must be lists of one id each, but is {words!r}: words of several tokens cannot be "
                "forbidden where all tokens are written at once."
            )
        if not isinstance(self.suppress_tokens, list | tuple | None) or not all(map(is_integer, self.suppressed)):
            raise ValueError(
                "`suppress_tokens` and `bad_words_ids` must list integers, but are "
                f"{self.suppress_tokens!r} and {words!r}."
            )
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        at_least_one = ("num_steps", "num_return_sequences", "max_length", "max_new_tokens", "top_k")
        for name, lowest in (*((name, 1) for name in at_least_one), ("window_overlap", 0), ("refine_steps", 0)):
            value = getattr(self, name)
            if value is not None and not (is_integer(value) and value >= lowest):
                raise ValueError(f"`{name}` must be an integer >= {lowest}, but is {value!r}.")
        for name, ids in (("eos_token_id", as_ids(self.eos_token_id)), ("pad_token_id", [self.pad_token_id])):
            if getattr(self, name) is not None and not (ids and all(is_integer(x) and x >= 0 for x in ids)):
                several = " or a list of some" if name == "eos_token_id" else ""
                raise ValueError(f"`{name}` must be an integer >= 0{several}, but is {getattr(self, name)!r}.")
        if self.pad_after_eos and (self.eos_token_id is None or self.pad_token_id is None):
            raise ValueError(
                "`pad_after_eos` needs `eos_token_id` and `pad_token_id`, but there are not both: set them, or give "
                "`tokenizer`."
            )
        if not self.do_sample:
            raise ValueError(
                "`do_sample=False` is not possible: a flow starts from noise. Fix `seed` for a repeatable text."
            )
        for name, names in (("sampler", tuple(SAMPLERS)), ("renoise", ("official", "markov"))):
            value = getattr(self, name)
            if value is not None and value not in names:
                raise ValueError(f"`{name}` must be one of {', '.join(names)}, but is {value!r}.")
        for name, rule, allowed in (
            ("temperature", ">= 0", lambda x: 0 <= x < math.inf),
            ("top_p", "in (0, 1]", lambda x: 0 < x <= 1),
            ("gamma", "in [0, 1]", lambda x: 0 <= x <= 1),
            ("guidance_scale", ">= 0", lambda x: 0 <= x < math.inf),
            ("guidance_dropout", "in (0, 1)", lambda x: 0 < x < 1),
            ("reward_scale", "that is finite", math.isfinite),
            ("refine_fraction", "in (0, 1]", lambda x: 0 < x <= 1),
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

    @property
    def suppressed(self) -> list[int]:
        """The ids that are not written."""
        return [*(self.suppress_tokens or ()), *(word[0] for word in self.bad_words_ids or ())]

    def to_diff_dict(self) -> dict[str, Any]:
        # transformers' own pipeline has defaults (256 new tokens, temperature 0.7) for what is not here: None is.
        return {"max_new_tokens": None, "temperature": None} | super().to_diff_dict()

    @classmethod
    def from_model_config(cls, model_config) -> "FlowGenerationConfig":
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        ids = {name: values.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if values.get("model_type") == "fmlm":
            return cls(num_steps=1, sampler="flow_map", **ids)
        return cls(num_steps=64, sampler="euler", **ids)


def set_values(config: GenerationConfig) -> dict:
    """The values of a configuration that are set, without its bookkeeping."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }


def as_ids(ids: int | list[int] | None) -> list[int]:
    """Ids that a configuration gives as one or as a list."""
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
