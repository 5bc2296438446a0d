"""The model card of a flow language model: one template, `card.md`, for what is shipped, trained and converted."""

import math
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_name("card.md")


def model_card(
    *,
    name: str,
    model_type: str,
    parameters: int,
    writes: str,
    num_steps: int,
    made: Sequence[str],
    quality: str,
    limits: str,
    results: Sequence[EvalResult] = (),
    adapter_of: str | None = None,
    tags: Sequence[str] = (),
    **head,
) -> str:
    """The text of `README.md`. What a card states is given in full, or no card is written.

    Args:
        name (`str`): of the repository.
        model_type (`str`): "flm" or "fmlm".
        parameters (`int`): how many numbers the weights are.
        writes (`str`): what the model writes: "A flow language model that writes ...".
        num_steps (`int`): evaluations in the example.
        made (`list[str]`): data, recipe, teacher: a line for each.
        quality (`str`): the measurements, with their protocol and the settings of the sampler, as Markdown.
        limits (`str`): what the model is not for.
        results (`list[EvalResult]`): the measurements for the Hub (`model-index`).
        adapter_of (`str`, *optional*): the model that this is a PEFT adapter for.
        tags (`list[str]`): more than those that every card has.
        head: other fields of `ModelCardData`: `license`, `language`, `datasets`, `base_model`; None is left out.

    Raises:
        ValueError: something is empty, or a result not finite; the message names it.
    """
    said = {"name": name, "writes": writes, "quality": quality, "limits": limits, "made": "".join(made)}
    for what, text in said.items():
        if not text.strip():
            raise ValueError(f"the card of {name or 'the model'} says nothing of `{what}`.")
    for result in results:
        if not math.isfinite(result.metric_value):
            raise ValueError(f"the card of {name} would say that {result.metric_name} is {result.metric_value}.")
    is_map = model_type == "fmlm"
    data = ModelCardData(
        library_name="transformers" if adapter_of is None else "peft",
        pipeline_tag="text-generation",
        model_name=name.rsplit("/", 1)[-1],
        tags=["flow-language-model", model_type, "one-step-generation" if is_map else "flow-matching", *tags],
        eval_results=list(results) or None,
        **head,
    )
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    return template.render(
        **said | {"made": made},
        head=data.to_yaml().strip(),
        is_map=is_map,
        adapter_of=adapter_of,
        parameters=parameters,
        num_steps=num_steps,
    )
