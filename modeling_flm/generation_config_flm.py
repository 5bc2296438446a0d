"""How a flow language model generates: the settings of `generate` that a repository keeps."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from transformers.generation import GenerationConfig

from .configuration_flm import is_integer, is_number
from .samplers_flm import SAMPLERS

Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and whether it is


def _integer(lowest: int) -> Rule:
    return f"be an integer >= {lowest}", lambda value: is_integer(value) and value >= lowest


def _number(range_: str, within: Callable[[float], bool]) -> Rule:
    return f"be a number {range_}", lambda value: is_number(value) and within(value)


def _is_grid(tau: Any) -> bool:
    """Whether these are times of evaluations."""
    if not (isinstance(tau, list | tuple) and len(tau) > 0 and all(map(is_number, tau))):
        return False
    return tau[0] == 0 and all(now < then for now, then in itertools.pairwise([*tau, 1]))


# The rule of each setting but `sampler`, whose names may grow (SAMPLERS); None is always allowed.
RULES: dict[str, Rule] = {
    "num_steps": _integer(1),
    "timesteps": ("ascend from 0 and stay below 1 (tau)", _is_grid),
    "num_return_sequences": _integer(1),
    "max_length": _integer(1),
    "max_new_tokens": _integer(1),
    "window_overlap": _integer(0),
    "temperature": _number(">= 0", lambda x: 0 <= x < math.inf),
    "top_k": _integer(1),
    "top_p": _number("in (0, 1]", lambda x: 0 < x <= 1),
    "gamma": _number("in [0, 1]", lambda x: 0 <= x <= 1),
    "renoise": ("be one of official, markov", lambda value: value in ("official", "markov")),
    "guidance_scale": _number(">= 0", lambda x: 0 <= x < math.inf),
    "guidance_dropout": _number("in (0, 1)", lambda x: 0 < x < 1),
    "reward_scale": _number("that is finite", math.isfinite),
    "refine_steps": _integer(0),
    "refine_fraction": _number("in (0, 1]", lambda x: 0 < x <= 1),
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

    # The settings that transformers does not have, each None where it is not set. To add one: a line here, its entry
    # above, its rule in RULES.
    num_steps: int
    timesteps: list[float]
    sampler: str
    gamma: float
    renoise: str
    guidance_dropout: float
    reward_scale: float
    refine_steps: int
    refine_fraction: float
    window_overlap: int
    pad_after_eos: bool

    def __init__(self, **kwargs):
        for name in OWN:
            setattr(self, name, kwargs.pop(name, None))
        kwargs.setdefault("do_sample", True)  # noise makes every generation a sample
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        self._check_tokens()  # before transformers does, which knows other rules for some of them
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        self._check_ends()
        if not self.do_sample:
            raise ValueError(
                "`do_sample=False` is not possible: a flow starts from noise. Fix `seed` for a repeatable text."
            )
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"`sampler` must be one of {', '.join(SAMPLERS)}, but is {self.sampler!r}.")
        for name, (said, allowed) in RULES.items():
            value = getattr(self, name)
            if value is not None and not allowed(value):
                raise ValueError(f"`{name}` must {said}, but is {value!r}.")

    def _check_tokens(self) -> None:
        """Ids that are not to be written."""
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

    def _check_ends(self) -> None:
        """Ids that end a text, and follow its end."""
        for name, ids in (("eos_token_id", as_ids(self.eos_token_id)), ("pad_token_id", [self.pad_token_id])):
            if getattr(self, name) is not None and not (ids and all(is_integer(x) and x >= 0 for x in ids)):
                several = " or a list of some" if name == "eos_token_id" else ""
                raise ValueError(f"`{name}` must be an integer >= 0{several}, but is {getattr(self, name)!r}.")
        if self.pad_after_eos and (self.eos_token_id is None or self.pad_token_id is None):
            raise ValueError(
                "`pad_after_eos` needs `eos_token_id` and `pad_token_id`, but there are not both: set them, or give "
                "`tokenizer`."
            )

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


OWN = tuple(FlowGenerationConfig.__annotations__)
# What `generate` makes use of; it refuses every other argument, so that none is ignored in silence.
HONOURED = {
    *(*OWN, *RULES, "suppress_tokens", "bad_words_ids", "compile_config", "do_sample", "return_dict_in_generate"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


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
