"""The model card of a flow language model: one template, `model_card.md`, for what is shipped, trained and converted.

The part of a card that names repositories, its own and its base model's, stands between two comments: `in_repository`
writes it anew from the same template when the card goes to the Hub.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined, Template

TEMPLATE = Path(__file__).with_name("model_card.md")
BEGIN, END = "<!-- `flm push` names the repository here -->", "<!-- end of the names -->"

# A loss in the Trainer's log: of several data sets each has its name in it. With what follows, the loss at some times.
LOSS = re.compile("eval_((?P<name>.+)_)?loss")

# What transformers says in the cards that it writes: for a Trainer, and for `push_to_hub`.
STOCK = ("model card has been generated automatically", "model card has been automatically generated")
BLANK = "more information needed"


@dataclass
class Samples:
    """Texts that a model wrote with one setting.

    Args:
        texts (`list[str]`): the i-th from `seed + i`.
        num_steps (`int`): evaluations of each.
        seed (`int`): of the first.
        said (`str`): what else is to be said of them, after a comma.
    """

    texts: Sequence[str]
    num_steps: int
    seed: int
    said: str = ""


def model_card(
    *,
    name: str,
    model_type: str,
    parameters: int,
    writes: str,
    num_steps: int | None,
    made: Sequence[str],
    quality: str,
    limits: str,
    samples: Sequence[Samples] = (),
    results: Sequence[EvalResult] = (),
    adapter_of: str | None = None,
    tags: Sequence[str] = (),
    **head,
) -> str:
    """The text of `README.md`. What a card states is given in full, or no card is written.

    Args:
        name (`str`): of the repository: "organisation/name" on the Hub, in a folder its last part.
        model_type (`str`): "flm" or "fmlm".
        parameters (`int`): how many numbers the weights are.
        writes (`str`): what the model writes: "A flow language model that writes ...".
        num_steps (`int`, *optional*): evaluations in the example, if not the model's own.
        made (`list[str]`): data, recipe, teacher: a line for each.
        quality (`str`): the measurements, with their protocol and the settings of the sampler, as Markdown.
        limits (`str`): what the model is not for.
        samples (`list[Samples]`): what it wrote.
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
        model_name=_title(name),
        tags=["flow-language-model", model_type, "one-step-generation" if is_map else "flow-matching", *tags],
        eval_results=list(results) or None,
        **head,
    )
    return _template().render(
        **said | {"made": made} | _names(name, num_steps, listed(data.base_model), adapter_of),
        title=_title(name),
        head=data.to_yaml().strip(),
        is_map=is_map,
        parameters=parameters,
        samples=samples,
    )


def in_repository(card: str, name: str, num_steps: int | None, base_names: Mapping[str, str]) -> str:
    """A model's card as it stands in the repository `name`: its metadata, title and examples name that. What its
    author wrote elsewhere stays; so does all of the text of a card without the comments that enclose the names.

    Args:
        card (`str`): the text of `README.md`.
        name (`str`): "organisation/name".
        num_steps (`int`, *optional*): evaluations in the example, if not the model's own.
        base_names (`dict[str, str]`): what base models are called on the Hub that the card names otherwise.
    """
    parsed = ModelCard(card)
    data: Any = parsed.data
    bases = [base_names.get(base, base) for base in listed(data.base_model)]
    if bases:
        data.base_model = bases if isinstance(data.base_model, list) else bases[0]
    text = parsed.text.lstrip()
    if data.model_name is not None:
        title = f"# {data.model_name}\n"
        if text.startswith(title):
            text = f"# {_title(name)}\n" + text.removeprefix(title)
        data.model_name = _title(name)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        template = _template()
        context = template.new_context(_names(name, num_steps, bases, None))
        text = before + "".join(template.blocks["use"](context)) + after
    parsed.text = f"\n{text}"
    return str(parsed)


def training_results(log: Iterable[Mapping], datasets: Sequence[str]) -> tuple[str, list[EvalResult]]:
    """The quality and the results that a card states of a training: the last losses in the Trainer's log."""
    measured: dict[str, float] = {}
    for entry in log:
        measured |= {name: value for name, value in entry.items() if name == "loss" or LOSS.match(name)}
    own = [f"Loss of the training, its own objective: {measured.pop('loss'):.4f}."] if "loss" in measured else []
    lines = [f"* {name.replace('_', ' ')}: {value:.4f}" for name, value in measured.items()]
    head = "Held-out losses in nats per token, of the denoiser at uniform tau: no bound of a perplexity.\n\n"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=", ".join(datasets) or "text",
            dataset_name=found["name"] or ", ".join(datasets) or "held-out rows",
            dataset_split=found["name"],  # results of one data set and split would be taken for one
            metric_type="loss",
            metric_name="cross entropy of the denoiser at uniform tau, nats per token",
            metric_value=value,
        )
        for name, value in measured.items()
        if (found := LOSS.fullmatch(name))
    ]
    held_out = [head + "\n".join(lines)] if lines else ["No held-out loss was measured."]
    return "\n\n".join(own + held_out), results


def is_stock(card: str) -> bool:
    """Whether transformers wrote this card, with blanks in it for somebody to fill."""
    return BLANK in card.lower() and any(words in card for words in STOCK)


def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["fenced"] = _fenced
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _names(name: str, num_steps: int | None, bases: Sequence[str], adapter_of: str | None) -> dict:
    """What the part of a card that names repositories is rendered from."""
    steps = "" if num_steps is None else f"num_steps={num_steps}, "
    return dict(name=name, steps=steps, bases=list(bases), adapter_of=adapter_of, begin=BEGIN, end=END)


def _title(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _fenced(text: str) -> str:
    """The text as a block of code, whatever is in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *text.splitlines(), fence])
