"""Likelihood of held-out data under the shipped models: writes likelihood.json and likelihood.md.

    python -m benchmarks.likelihood              # or a part: python -m benchmarks.likelihood shidoku
    python -m benchmarks.likelihood tinystories --train ./stories.parquet --validation ./held-out.parquet

4x4 Sudoku: nats per grid, against log 288. English and TinyStories: bits per token and per character of held-out text,
next to the exact ones of GPT-2 and of an n-gram model, and the bound of masked diffusion.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.baselines import mdlm
from benchmarks.few_step import Scorers, StoryScorers, load
from benchmarks.request import Request, measure_models
from benchmarks.results import BASELINES, HUB, ROOT, Row, page, section, show
from evaluation.likelihood import bits_per, log_likelihood
from evaluation.scorers import causal_losses

RESULTS = ROOT / "benchmarks" / "likelihood.json"
STEPS = 16
GRIDS, CHOOSING_GRIDS = 8, 48
GRID_DRAWS = 4  # of the importance-weighted bound
GRID_ENDS = (0.99, 0.999, 0.9999, 0.99999)
TEXTS, CHOOSING_TEXTS = 32, 8
TEXT_ENDS = (0.6, 0.8, 0.9, 0.96, 0.99, 0.999)
MDLM_DRAWS = 16


def tightest(bound: Callable[..., Tensor], ends: tuple[float, ...]) -> float:
    """The end of the flow with the largest mean bound."""
    return max(ends, key=lambda end: float(bound(end=end).mean()))


def shidoku(request: Request) -> list[Row]:
    folder = ROOT / "examples" / "sudoku" / "4x4"
    text = load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")["text"]
    grids = sorted(set(text))
    assert len(grids) == 288
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = torch.tensor(tokenizer(grids)["input_ids"])[torch.randperm(288, generator=torch.Generator().manual_seed(0))]
    exact, others = ids[:GRIDS], ids[GRIDS : GRIDS + CHOOSING_GRIDS]
    rows: list[Row] = []

    def add(name: str, estimate: str, end: float, steps: int, bound: Tensor) -> None:
        error = float(bound.std() / len(bound) ** 0.5)
        measured = {"grids": len(bound), "nats_per_grid": -float(bound.mean()), "nats_per_grid_sd": error}
        rows.append({"model": name, "estimate": estimate, "end": end, "steps": steps} | measured)
        show(rows[-1])

    for name in filter(request.wants, ("flm-shidoku", "fmlm-shidoku")):
        bound = partial(bound_of_grids, load(HUB / name))
        end = tightest(partial(bound, others, num_probes=2), GRID_ENDS)
        for steps in (STEPS, 2 * STEPS) if name == "flm-shidoku" else (STEPS,):
            add(name, "ELBO, exact trace", end, steps, bound(exact, steps, end=end, num_probes=None))
        weighted = bound(exact, end=end, num_probes=None, num_samples=GRID_DRAWS, importance_weighted=True)
        add(name, f"IWAE of {GRID_DRAWS}, exact trace", end, STEPS, weighted)
    return rows


def bound_of_grids(model, grids: Tensor, steps: int = STEPS, **settings) -> Tensor:
    return log_likelihood(model, grids, num_steps=steps, batch_size=64, **settings).bound


def english(request: Request) -> list[Row]:
    scorers, rng = Scorers(request), np.random.default_rng(0)
    held_out, choosing = (
        rng.permutation(scorers.rows(split))[:count]
        for split, count in (("test", TEXTS), ("validation", CHOOSING_TEXTS))
    )
    return of_texts(scorers, held_out, choosing)


def tinystories(request: Request) -> list[Row]:
    scorers = StoryScorers(request)
    rows = np.random.default_rng(0).permutation(scorers.held_out)
    return of_texts(scorers, rows[:TEXTS], rows[TEXTS : TEXTS + CHOOSING_TEXTS])


def of_texts(scorers: Scorers, rows_held_out: np.ndarray, rows_to_choose_by: np.ndarray) -> list[Row]:
    """Bits of held-out rows (n, 128) under the wanted models of some data; the ends of the flows are chosen by other
    rows."""
    data = scorers.data
    held_out, choosing = (torch.from_numpy(some).long() for some in (rows_held_out, rows_to_choose_by))
    characters = [len(text) for text in scorers.tokenizer.batch_decode(held_out, skip_special_tokens=True)]
    rows: list[Row] = []

    def add(name: str, kind: str, log_p: Callable[[], Tensor], **more) -> None:
        if not scorers.wants(name):
            return
        row, bits = {"model": name, "kind": kind} | more, log_p()
        for what, counts in (("token", [held_out.shape[1] - 1] * TEXTS), ("character", characters)):
            row[f"bits_per_{what}"], row[f"bits_per_{what}_sd"] = bits_per(bits, counts)
        rows.append(row)
        show(row)

    add(f"ar-{data}", "exact", lambda: -torch.from_numpy(causal_losses(scorers.ar, held_out)).sum(1))
    add("Kneser-Ney 4-gram", "exact", lambda: -torch.from_numpy(scorers.ngram.token_losses(held_out.numpy())).sum(1))
    masked = partial(load, BASELINES / f"mdlm-{data}")
    add(f"mdlm-{data}", "bound", lambda: mdlm.log_likelihood(masked(), held_out, MDLM_DRAWS, seed=0))
    for name in filter(scorers.wants, (f"flm-{data}", f"fmlm-{data}")):
        bound = partial(bound_of_texts, load(HUB / name))
        end = tightest(partial(bound, choosing), TEXT_ENDS)
        for steps in (STEPS, 2 * STEPS) if name == f"flm-{data}" else (STEPS,):
            add(name, "bound", partial(bound, held_out, steps, end=end), end=end, steps=steps)
    return rows


def bound_of_texts(model, ids: Tensor, steps: int = STEPS, **settings) -> Tensor:
    """Of all tokens but the first, BOS, which is given as it is to the other models."""
    given = torch.zeros_like(ids, dtype=torch.bool)
    given[:, 0] = True
    return log_likelihood(model, ids, conditioning_mask=given, num_steps=steps, batch_size=8, **settings).bound


TEXT = {"tinystories": "TinyStories", "english": "English"}  # titles
ABOUT = """
# Likelihood

`python -m benchmarks.likelihood` measures everything here anew and writes this file and `likelihood.json`.
What the bound is, and of which model, is in [docs/likelihood.md](../docs/likelihood.md); of a flow map it
is that of its diagonal, not of its few-step samples. A figure is followed by ± its standard error over the
sequences (`_sd` in the JSON). `end` is the tau at which the flow ends and the tokens are drawn, chosen on
other rows than those reported. Rows with twice the steps show the solver's error (with probes: and theirs).
"""
OF_GRIDS = f"""
The truth of the data is log 288 = {math.log(288):.3f} nats per grid; what is above it is the distance
of the model from the data and the looseness of the bound together. All 288 grids were trained on. Ends
tried, on {CHOOSING_GRIDS} other grids: {", ".join(map(str, GRID_ENDS))}.
"""
OF_TEXTS = f"""
{TEXTS} rows of held-out text, each `[BOS]` and 127 tokens scored given it. Lower is better; a bound
says only that the model is no worse. That of masked diffusion is its any-order bound, with
{MDLM_DRAWS} draws of what is masked for each row; the flows have one draw and one probe for each row.
Ends tried, on {CHOOSING_TEXTS} other rows: {", ".join(map(str, TEXT_ENDS))}.
"""


def report(results: dict[str, list[Row]]) -> str:
    whole = {  # `end` in all its digits
        part: [row | ({"end": str(row["end"])} if "end" in row else {}) for row in rows]
        for part, rows in results.items()
    }
    grids = section(whole.get("shidoku"), "4x4 Sudoku", OF_GRIDS)
    stories, english = (section(whole.get(part), title, OF_TEXTS) for part, title in TEXT.items())
    return page(ABOUT, grids, stories, english)


def main() -> None:
    about = "Likelihood of held-out data under the shipped models."
    measure_models(about, {"shidoku": shidoku, "english": english, "tinystories": tinystories}, RESULTS, report)


if __name__ == "__main__":
    main()
