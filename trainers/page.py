"""A page that plays how texts come about: one self-contained HTML file, for a browser without network."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

TEMPLATE = Path(__file__).with_name("page.html")


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
    columns, used = [], set()
    for steps in step_counts:
        before = time.perf_counter()  # of the text alone: the drafts and their confidence take time as well
        model.generate(prompt, num_steps=steps, **settings)
        seconds = time.perf_counter() - before
        out = model.generate(prompt, num_steps=steps, output_trajectory=True, **settings)
        settings["seed"] = out.seeds
        samples = []
        for ids, confidence, given in zip(
            out.trajectory.unbind(1), out.confidence.unbind(1), out.conditioning_mask, strict=True
        ):
            used.update(ids.unique().tolist())
            samples.append(
                {
                    "ids": ids.tolist(),
                    "confidence": [[round(value, 3) for value in row] for row in confidence.tolist()],
                    "given": given.tolist(),
                }
            )
        columns.append({"steps": out.num_function_evaluations, "seconds": seconds, "samples": samples})
    tokens = {token: tokenizer.decode([token]) for token in sorted(used)}
    data = json.dumps({"title": title, "tokens": tokens, "columns": columns}, ensure_ascii=False)
    # Within a script element only "</" and "<!" have a meaning to HTML.
    page = TEMPLATE.read_text(encoding="utf-8").replace("DATA", data.replace("<", "\\u003c"), 1)
    Path(path).write_text(page, encoding="utf-8")
    return out.sequences
