"""An HTML page that plays how texts are generated: one self-contained file, which needs no network."""

import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

TEMPLATE = Path(__file__).with_name("page.html")

Column = dict[str, Any]
MOST_BYTES = 4  # of a character in UTF-8


def write_page(
    path: str | Path,
    model,
    tokenizer: PreTrainedTokenizerBase,
    step_counts: Sequence[int | None],
    prompt: Tensor | None = None,
    title: str = "How a flow writes",
    **settings,
) -> Tensor:
    """Generate with each number of steps, and write a page with a column for each. All columns have the same seeds.

    Args:
        path (`str` or `Path`): the HTML file to write.
        model (`FLMModel`), tokenizer (`PreTrainedTokenizerBase`): the model that generates, and its tokenizer.
        step_counts (`list[int]`): the number of steps of each column; None for the model's own.
        prompt (`Tensor`, *optional*): `input_ids` for `generate`.
        title (`str`): heading of the page.
        settings: other arguments of `generate`, such as `num_return_sequences` and `seed`.

    Returns:
        the ids (samples, length) of the last column.

    Raises:
        ValueError: if `generate` refuses the settings.
    """
    columns = []
    for steps in step_counts:
        column, out = flow_column(model, prompt, num_steps=steps, tokenizer=tokenizer, **settings)
        settings["seed"] = out.seeds
        columns.append(column)
    Path(path).write_text(page(title, columns, tokenizer), encoding="utf-8")
    return out.sequences


def flow_column(model, prompt: Tensor | None = None, **settings) -> tuple[Column, Any]:
    """Generate, and return what a page plays of it (a column for [`page`]) and the `FlowGenerationOutput`.

    It generates twice: first for the time that the text alone takes, then again with the drafts and their confidence.

    Raises:
        ValueError: if `generate` refuses the settings.
    """
    before = time.perf_counter()
    out = model.generate(prompt, return_dict_in_generate=True, **settings)
    seconds = time.perf_counter() - before
    out = model.generate(prompt, output_trajectory=True, **settings | {"seed": out.seeds})
    samples = [
        {
            "ids": ids.tolist(),
            "confidence": [[round(value, 3) for value in row] for row in confidence.tolist()],
            "given": given.tolist(),
        }
        for ids, confidence, given in zip(
            out.trajectory.unbind(1), out.confidence.unbind(1), out.conditioning_mask, strict=True
        )
    ]
    return {"steps": out.num_function_evaluations, "seconds": seconds, "samples": samples}, out


def page(title: str, columns: Sequence[Column], tokenizer: PreTrainedTokenizerBase) -> str:
    """The HTML of the page.

    Args:
        title (`str`): heading of the page.
        columns (`list[dict]`): for each, the number of `steps`, the `seconds` that they took, optionally a `name` for
            its heading, and `samples`. A sample has `ids` and `confidence`, (steps, length), with one draft per step,
            and `given`, (length,), True at tokens of the prompt. An id is None where a draft has no token yet.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of all columns.
    """
    decode = cache(lambda ids: str(tokenizer.decode(list(ids))))
    shown = [column | {"samples": [_with_texts(sample, decode) for sample in column["samples"]]} for column in columns]
    data = json.dumps({"title": title, "columns": shown}, ensure_ascii=False)
    # Within a script element only "</" and "<!" mean anything to HTML, so it is enough to escape "<".
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA", data.replace("<", "\\u003c"), 1)


def _with_texts(sample: dict, decode: Callable[[tuple[int, ...]], str]) -> dict:
    """A sample with the texts of its tokens in place of their ids."""
    more = {name: value for name, value in sample.items() if name != "ids"}
    return more | {"texts": [texts_of_tokens(draft, decode) for draft in sample["ids"]]}


def texts_of_tokens(ids: Sequence[int | None], decode: Callable[[tuple[int, ...]], str]) -> list[str | None]:
    """The text of each token, None where there is none. A character that is made of several tokens, as bytes of it
    are, is the text of the last of them. `decode` makes a text of ids."""
    texts: list[str | None] = []
    before: tuple[int, ...] = ()  # the tokens of the text before: some decoders put a space between words alone
    begun: tuple[int, ...] = ()
    for place, token in enumerate(ids):
        if token is None:
            texts.append(None)
            before = ()
            continue
        begun += (token,)
        text = decode(before + begun)[len(decode(before)) :]
        goes_on = place + 1 < len(ids) and ids[place + 1] is not None and len(begun) < MOST_BYTES
        if text.endswith("\ufffd") and goes_on:
            texts.append("")
        else:
            texts.append(text)
            before, begun = begun, ()
    return texts
