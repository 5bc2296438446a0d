"""The settings of `generate`, as a repository keeps them in `generation_config.json`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers.generation import GenerationConfig

from .configuration_flm import is_integer, is_number
from .samplers_flm import SAMPLERS

REFINE_FRACTION = 0.75  # the default of `refine_fraction`
Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and a function that checks it


def _integer(lowest: int) -> Rule:
    return f"be an integer >= {lowest}", lambda value: is_integer(value) and value >= lowest


def _number(range_: str, within: Callable[[float], bool]) -> Rule:
    return f"be a number {range_}", lambda value: is_number(value) and within(value)


def _is_grid(tau: Any) -> bool:
    """Whether `tau` is a list of numbers that ascend from 0 and stay below 1, in float32."""
    if not (isinstance(tau, list | tuple) and len(tau) > 0 and all(map(is_number, tau))):
        return False
    grid = np.array([*tau, 1]).astype(np.float32)  # as the sampler has it
    return bool(tau[0] == 0 and (grid[:-1] < grid[1:]).all())


# The rule of each setting. None is always allowed. `sampler` is checked against SAMPLERS, to which users may add.
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
    """The settings of `generate` for flow language models, saved as `generation_config.json`.

    ```python
    model.generation_config = FlowGenerationConfig(num_steps=16, sampler="bridge", temperature=0.8)
    ```

    `max_length`, `max_new_tokens`, `num_return_sequences`, `return_dict_in_generate` and the special ids mean what
    they mean in [`~transformers.GenerationConfig`]; `eos_token_id` may list several ids.

    Args:
        num_steps (`int`, *optional*): number of evaluations of the network, >= 1. A flow map (FMLM) takes 1 by
            default, a denoiser (FLM) 64.
        timesteps (`list[float]`, *optional*): tau of each evaluation, ascending from 0 and below 1. Default: an even
            grid of `num_steps`.
        sampler (`str`, *optional*): for every model "euler", the Euler scheme of the probability flow and the default
            of a denoiser; "multistep", a second-order scheme at the same cost; and "bridge", which draws tokens and
            takes a temperature. For a flow map also "flow_map", its jumps, which is its default.
        temperature (`float`, *optional*): for "bridge", temperature of the drawn tokens, >= 0; 0 takes the likeliest.
            Default 1.
        top_k (`int`, *optional*): for "bridge", the number of likeliest tokens to draw from, >= 1.
        top_p (`float`, *optional*): for "bridge", draw from the fewest likeliest tokens that have this probability
            together, in (0, 1].
        gamma (`float`, *optional*): for "flow_map", strength of the noise put back after each jump, in [0, 1].
            Default 0, no noise.
        renoise (`str`, *optional*): for "flow_map" with `gamma`, how noise is put back: "official", the default, is
            the published form; "markov" keeps the marginals of the flow for every gamma.
        guidance_scale (`float`, *optional*): how far to move the prediction D away from that of a weak network,
            `D_weak + guidance_scale (D - D_weak)`, >= 0; 1 leaves it as it is. The weak network is `guidance_model`,
            an argument of `generate`; with `guidance_dropout` the model under dropout; without both the model to which
            the prompt is as noisy as the rest (classifier-free guidance). Guidance doubles the number of evaluations.
            It is not possible with "bridge".
        guidance_dropout (`float`, *optional*): dropout rate of the weak network, in (0, 1).
        reward_scale (`float`, *optional*): factor of the gradient of `generate`'s `reward_fn`. Default 1.
        refine_steps (`int`, *optional*): number of refinements of the written text, >= 0. Each noises the least
            certain tokens and writes them again, given the others, in one evaluation.
        refine_fraction (`float`, *optional*): share of the written tokens that the first refinement writes again, in
            (0, 1]. It falls evenly: refinement k of n, counted from 0, writes `refine_fraction * (1 - k / n)` again,
            so that ever more tokens are settled, the surest first. Default 0.75.
        suppress_tokens (`list[int]`, *optional*): ids that are not written. Their probability goes to the other ids.
        bad_words_ids (`list[list[int]]`, *optional*): the same, as lists of one id each. Words of several tokens
            cannot be forbidden, since all tokens are written at once.
        compile_config (`CompileConfig`, *optional*): options with which `torch.compile` compiles the network; mode
            "reduce-overhead" uses CUDA graphs. They are not saved.
        window_overlap (`int`, *optional*): write a text longer than the model's context window by window. A window
            begins with the last ids of the one before, at least this many, >= 0.
        pad_after_eos (`bool`, *optional*): whether the tokens that are written after the first written EOS become
            padding. A model of packed documents goes on with another document there. The ids of both, if not set
            here, are those of the model's configuration, or of the `tokenizer` that `generate` gets.

    Raises:
        ValueError: if a value is not allowed; the message names it.
    """

    # The settings that transformers does not have; None where one is not set. To add one, add a line here, its entry
    # above and its rule in RULES.
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
        kwargs.setdefault("do_sample", True)  # every text starts from noise, so it is a sample
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        self._check_tokens()  # before transformers checks them: it has other rules for some of them
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
        """Check the ids that are not to be written."""
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
        """Check the ids that end a text (EOS) and that follow its end (padding)."""
        for name, ids in (("eos_token_id", as_ids(self.eos_token_id)), ("pad_token_id", [self.pad_token_id])):
            if getattr(self, name) is not None and not (ids and all(is_integer(x) and x >= 0 for x in ids)):
                several = " or a list of some" if name == "eos_token_id" else ""
                raise ValueError(f"`{name}` must be an integer >= 0{several}, but is {getattr(self, name)!r}.")

    @property
    def suppressed(self) -> list[int]:
        """The ids that are not written, of `suppress_tokens` and `bad_words_ids`."""
        return [*(self.suppress_tokens or ()), *(word[0] for word in self.bad_words_ids or ())]

    def to_diff_dict(self) -> dict[str, Any]:
        # transformers' own pipeline fills in its defaults (256 new tokens, temperature 0.7) for settings that are
        # missing here, but not for those that are None.
        return {"max_new_tokens": None, "temperature": None} | super().to_diff_dict()

    @classmethod
    def from_model_config(cls, model_config) -> "FlowGenerationConfig":
        """The default settings for a model: one jump of a flow map (FMLM), or 64 Euler steps of a denoiser (FLM)."""
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        ids = {name: values.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if values.get("model_type") == "fmlm":
            return cls(num_steps=1, sampler="flow_map", **ids)
        return cls(num_steps=64, sampler="euler", **ids)


OWN = tuple(FlowGenerationConfig.__annotations__)
# The settings that `generate` uses. It refuses any other, so that none is silently ignored.
HONOURED = {
    *(*OWN, *RULES, "suppress_tokens", "bad_words_ids", "compile_config", "do_sample", "return_dict_in_generate"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


def set_values(config: GenerationConfig) -> dict:
    """The settings of a configuration that are not None, without transformers' bookkeeping (such as its version)."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }


def as_ids(ids: int | list[int] | None) -> list[int]:
    """The ids of a setting that may be one id, a list of ids or None, as a list."""
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
