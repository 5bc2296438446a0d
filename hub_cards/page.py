"""A page that plays how texts come about: one self-contained HTML file, for a browser without network."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

TEMPLATE = Path(__file__).with_name("page.html")

Column = dict[str, Any]


def write_page(
    path: str | Path,
    model,
    tokenizer: PreTrainedTokenizerBase,
    step_counts: Sequence[int | None],
    prompt: Tensor | None = None,
    title: str = "How a flow writes",
    **settings,
) -> Tensor:
    """Write the page to `path`: a column for each number of steps, the same seeds in all of them.

    Args:
        path (`str` or `Path`): the HTML file.
        model (`FLMModel`), tokenizer (`PreTrainedTokenizerBase`): who writes.
        step_counts (`list[int]`): numbers of evaluations, one for each column; None for the model's own.
        prompt (`Tensor`, *optional*): `input_ids` of `generate`.
        title (`str`): heading of the page.
        settings: for `generate`, such as `num_return_sequences` and `seed`.

    Returns:
        the ids (samples, length) of the last column.

    Raises:
        ValueError: `generate` refuses the settings.
    """
    columns = []
    for steps in step_counts:
        column, out = flow_column(model, prompt, num_steps=steps, tokenizer=tokenizer, **settings)
        settings["seed"] = out.seeds
        columns.append(column)
    Path(path).write_text(page(title, columns, tokenizer), encoding="utf-8")
    return out.sequences


def flow_column(model, prompt: Tensor | None = None, **settings) -> tuple[Column, Any]:
    """What a page plays of one call of `model.generate`, and its `FlowGenerationOutput`.

    The time is that of the text alone, of a call of its own: the drafts and their confidence take time as well.

    Raises:
        ValueError: `generate` refuses the settings.
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
    """The page, as HTML.

    Args:
        title (`str`): its heading.
        columns (`list[dict]`): each with its number of `steps`, the `seconds` they took, a `name` for its heading if
            there is one, and its `samples`: `ids` and `confidence`, (steps, length), one draft a step, and which of
            them were `given`, (length,). An id is None where a draft has no token yet.
        tokenizer (`PreTrainedTokenizerBase`): of all columns.
    """
    drafts = (draft for column in columns for sample in column["samples"] for draft in sample["ids"])
    used = {token for draft in drafts for token in draft if token is not None}
    tokens = {token: tokenizer.decode([token]) for token in sorted(used)}
    data = json.dumps({"title": title, "tokens": tokens, "columns": columns}, ensure_ascii=False)
    # Within a script element only "</" and "<!" have a meaning to HTML.
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA", data.replace("<", "\\u003c"), 1)
