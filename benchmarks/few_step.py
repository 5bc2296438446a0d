"""Quality against the number of network evaluations, for every shipped model: writes few_step.json and few_step.md.

    python -m benchmarks.few_step              # all of it
    python -m benchmarks.few_step shidoku      # one part; the others stay as they were measured
    python -m benchmarks.few_step tinystories --train ./stories.parquet --validation ./held-out.parquet
    python -m benchmarks.few_step tinystories --models fmlm-tinystories    # a new map; the other models' rows stay

Sudoku: the share of valid grids, and how many different valid ones there are. English: generative perplexity under
two scorers that saw no sample (the GPT-2 baseline and a Kneser-Ney 4-gram of the same training text), token entropy
per sample, distinct-2 and self-BLEU, for the flow, its map, masked diffusion, the autoregressive model and held-out
text; of TinyStories the shares of known words and of known pairs of words, too, which need the stories themselves.
Every figure is a mean over seeds with their standard deviation; every sample counts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, GPT2LMHeadModel

import modeling_flm  # noqa: F401  registers the model types
from benchmarks.baselines import mdlm
from benchmarks.request import Request, measure_models
from benchmarks.results import BASELINES, CORPUS, HUB, ROOT, SEEDS, Row, over_seeds, show, shown, table
from evaluation.masked import sample_masked
from evaluation.ngram import KneserNey
from evaluation.samples import packed
from evaluation.scorers import causal_losses
from evaluation.sudoku import is_valid
from evaluation.text import distinct_n, self_bleu, token_entropy
from evaluation.writers import SEED_STRIDE
from examples.sudoku.puzzles import unique_puzzles

RESULTS = ROOT / "benchmarks" / "few_step.json"
STEPS = (1, 2, 4, 8, 16, 64)
GRIDS = 500  # per seed, of 4x4
LARGE_GRIDS = 100  # per seed, of 9x9
PUZZLES = 100  # per seed and number of clues, each with one solution
CLUES = (40, 35, 30)  # of the 81 cells
TEXTS = 64  # per seed
SAMPLERS = {"flm": ("euler", "bridge"), "fmlm": ("flow_map",)}
# Ways to write 9x9 grids in n evaluations: the number of steps, and other settings of `generate`.
WAYS: dict[str, Callable[[int], tuple[int, dict]]] = {
    "": lambda n: (n, {}),
    "gamma 1": lambda n: (n, {"gamma": 1.0}),
    "refined": lambda n: (1, {"refine_steps": n - 1}),
}
SOLVERS: list[tuple[str, str, str, tuple[int, ...]]] = [  # model, sampler, way and numbers of evaluations
    ("flm-sudoku", "euler", "", (1, 8, 64)),
    ("flm-sudoku", "euler", "refined", (4, 8, 16, 64)),
    ("fmlm-sudoku", "flow_map", "", (1, 4, 8)),
    ("fmlm-sudoku", "flow_map", "gamma 1", (4, 8)),
    ("fmlm-sudoku", "flow_map", "refined", (4, 8, 16, 64)),
]
MASKED_SOLVERS: list[tuple[str, tuple[int, ...]]] = [("in random order", (8, 64)), ("by confidence", (4, 8, 16, 64))]
MDLM_TEMPERATURES = {  # of masked diffusion, by number of steps; 1 at others
    "english-small": {8: (0.7, 0.8, 0.9, 1.0)},
    "tinystories": {8: (0.6, 0.7, 0.8, 0.9, 1.0), 64: (0.8, 0.9, 1.0, 1.1)},
}
BRIDGE_TEMPERATURES = {"flm-tinystories": {64: (0.6, 0.7, 0.8)}}  # of the bridge sampler, besides the model's own


def load(folder: Path):
    return AutoModel.from_pretrained(folder).eval()


# -- Sudoku -----------------------------------------------------------------------------------------------------------


def shidoku(request: Request) -> list[Row]:
    rows: list[Row] = []
    for name in filter(request.wants, ("flm-shidoku", "fmlm-shidoku")):
        model = load(HUB / name)
        for sampler, steps in product(SAMPLERS[name.split("-")[0]], STEPS):
            measured = over_seeds(partial(unconditional, model, sampler, steps, GRIDS))
            rows.append({"model": name, "sampler": sampler, "steps": steps} | measured)
            show(rows[-1])
    return rows


def coverage(request: Request) -> list[Row]:
    """How many of the 288 grids 10,000 one-step samples contain."""
    if not request.wants("fmlm-shidoku"):
        return []
    measured = unconditional(load(HUB / "fmlm-shidoku"), "flow_map", 1, 10_000, 0)
    return [{"model": "fmlm-shidoku", "steps": 1} | measured]


def sudoku(request: Request) -> list[Row]:
    return shown(row for solver in SOLVERS if request.wants(solver[0]) for row in solver_rows(*solver))


def solver_rows(name: str, sampler: str, settings: str, evaluations: tuple[int, ...]) -> Iterator[Row]:
    model = load(HUB / name)
    for n in evaluations:
        steps, asked = WAYS[settings](n)
        of_grids, of_puzzles = (partial(way, model, sampler, steps, **asked) for way in (unconditional, solved))
        row: Row = {"model": name, "sampler": sampler, "settings": settings, "steps": n}
        yield row | from_nothing_and_clues(of_grids, of_puzzles)


def masked_sudoku(request: Request) -> list[Row]:
    solvers = MASKED_SOLVERS if request.wants("mdlm-sudoku") else []
    return shown(row for solver in solvers for row in masked_solver_rows(*solver))


def masked_solver_rows(order: str, evaluations: tuple[int, ...]) -> Iterator[Row]:
    model = load(BASELINES / "mdlm-sudoku")
    for n in evaluations:
        of_grids, of_puzzles = (
            partial(way, model, n, order == "by confidence") for way in (masked_unconditional, masked_solved)
        )
        row: Row = {"model": "mdlm-sudoku", "sampler": "ancestral", "settings": order, "steps": n}
        yield row | from_nothing_and_clues(of_grids, of_puzzles)


def from_nothing_and_clues(
    of_grids: Callable[..., Row], of_puzzles: Callable[..., Row], seeds: Sequence[int] = SEEDS
) -> Row:
    """Shares of valid grids from nothing, and of solved puzzles by their number of clues."""
    row = over_seeds(partial(of_grids, LARGE_GRIDS), seeds)
    for clues in CLUES:
        row |= over_seeds(partial(of_puzzles, clues, PUZZLES), seeds)
    return row


def unconditional(model, sampler: str, steps: int, count: int, seed: int, **settings) -> Row:
    """Share of valid grids among `count`, and how many different ones they are; `settings` are those of `generate`."""
    seeds = SEED_STRIDE * seed + np.arange(count)
    draw = partial(model.generate, num_steps=steps, sampler=sampler, **settings)
    grids = torch.cat([draw(num_return_sequences=len(s), seed=s.tolist()) for s in _parts(seeds)])
    return _valid(grids)


def solved(model, sampler: str, steps: int, clues: int, count: int, seed: int, **settings) -> Row:
    """Share of the puzzles with `clues` clues and one solution that are solved."""
    puzzles = torch.from_numpy(unique_puzzles(clues, count, seed))
    seeds = SEED_STRIDE * seed + np.arange(len(puzzles))
    draw = partial(model.generate, num_steps=steps, sampler=sampler, **settings)
    parts = zip(_parts(puzzles), _parts(seeds), strict=True)
    return _solved(torch.cat([draw(p, seed=s.tolist()) for p, s in parts]), clues)


def masked_unconditional(model, steps: int, by_confidence: bool, count: int, seed: int) -> Row:
    """`unconditional` of masked diffusion."""
    return _valid(sample_masked(model, torch.zeros(count, 81).long(), 0, steps, 1.0, seed, by_confidence))


def masked_solved(model, steps: int, by_confidence: bool, clues: int, count: int, seed: int) -> Row:
    """`solved` of masked diffusion."""
    puzzles = torch.from_numpy(unique_puzzles(clues, count, seed))
    return _solved(sample_masked(model, puzzles, 0, steps, 1.0, seed, by_confidence), clues)


def _valid(grids: torch.Tensor) -> Row:
    valid = is_valid(grids.numpy())
    return {"valid": float(valid.mean()), "distinct": len(np.unique(grids.numpy()[valid], axis=0))}


def _solved(grids: torch.Tensor, clues: int) -> Row:
    """Of puzzles whose clues stay: a valid grid is then the solution."""
    return {f"solved, {clues} clues": float(is_valid(grids.numpy()).mean())}


def _parts(items, size: int = 250):
    return [items[i : i + size] for i in range(0, len(items), size)]


# -- English ----------------------------------------------------------------------------------------------------------


class Scorers:
    """Both scorers of the English corpus, and everything that is measured of samples."""

    data = "english-small"

    def __init__(self, request: Request):
        self.wants = request.wants
        self.tokenizer = AutoTokenizer.from_pretrained(CORPUS / "tokenizer")
        self.ar = GPT2LMHeadModel.from_pretrained(BASELINES / f"ar-{self.data}").eval()
        self.ngram = KneserNey(self.rows("train"), len(self.tokenizer))
        self.held_out = self.rows("test")

    def rows(self, split: str) -> np.ndarray:
        return packed(str(CORPUS / f"{split}.parquet"), self.tokenizer, 128).rows

    def measure(self, ids: torch.Tensor) -> Row:
        rows = ids.numpy()
        return {
            "gppl_ar": float(np.exp(causal_losses(self.ar, ids).mean())),
            "gppl_ngram": float(np.exp(self.ngram.token_losses(rows).mean())),
            "entropy": float(token_entropy(rows).mean()),
            "distinct_2": distinct_n(rows, 2),
            "self_bleu": self_bleu(rows),
        }


class StoryScorers(Scorers):
    """Those of TinyStories, which also look whether the stories have the words and pairs of words of a sample."""

    data = "tinystories"

    def __init__(self, request: Request):
        self.wants, self.stories = request.wants, request.stories
        self.tokenizer, self.ngram = self.stories.tokenizer, self.stories.judge
        self.ar = GPT2LMHeadModel.from_pretrained(BASELINES / f"ar-{self.data}").eval()
        self.held_out = self.stories.held_out.numpy()

    def measure(self, ids: torch.Tensor) -> Row:
        return super().measure(ids) | self.stories.known(ids)


def text_models(scorers: Scorers) -> list[Row]:
    """The flow, its map and the baselines of some data, beside held-out text, as far as each is wanted."""
    rows: list[Row] = []

    def add(model: str, steps: int | None, draw: Callable[[int], torch.Tensor], **more) -> None:
        if not scorers.wants(model):
            return
        row = over_seeds(lambda seed: scorers.measure(draw(seed)))
        rows.append({"model": model, "steps": steps} | more | row)
        show(rows[-1])

    def real(seed: int) -> torch.Tensor:
        picked = np.random.default_rng(seed).choice(len(scorers.held_out), TEXTS, replace=False)
        return torch.from_numpy(scorers.held_out[picked]).long()

    def autoregressive(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        start = torch.full((TEXTS, 1), scorers.tokenizer.bos_token_id)
        return scorers.ar.generate(start)

    data = scorers.data
    add("held-out text", None, real)
    add(f"ar-{data}", 127, autoregressive)
    for name in (f"flm-{data}", f"fmlm-{data}"):
        model = load(HUB / name)
        for steps in STEPS:
            add(name, steps, partial(write, model, steps))
        for steps, temperatures in BRIDGE_TEMPERATURES.get(name, {}).items():
            for temperature in temperatures:
                settings = {"sampler": "bridge", "temperature": temperature}
                add(name, steps, partial(write, model, steps, **settings), **settings)
    model = load(BASELINES / f"mdlm-{data}")
    for steps in STEPS:
        for temperature in MDLM_TEMPERATURES[data].get(steps, (1.0,)):
            draw = partial(mdlm.sample, model, steps, TEXTS, temperature)
            add(f"mdlm-{data}", steps, draw, temperature=temperature)
    return rows


def english(request: Request) -> list[Row]:
    return text_models(Scorers(request))


def tinystories(request: Request) -> list[Row]:
    return text_models(StoryScorers(request))


def write(model, steps: int, seed: int, **settings) -> torch.Tensor:
    return model.generate(num_steps=steps, num_return_sequences=TEXTS, seed=SEED_STRIDE * seed, **settings)


# -- report -----------------------------------------------------------------------------------------------------------


def matched(rows: list[Row], data: str, steps: int = 8) -> Iterator[tuple[Row, dict[str, float], bool]]:
    """Of each few-step map its row, the perplexities of masked diffusion at `steps` steps at the map's entropy, by
    interpolation, and whether that entropy lies within the sweep of the latter."""
    curve = [row for row in rows if row["model"] == f"mdlm-{data}" and row["steps"] == steps]
    curve.sort(key=lambda row: row["entropy"])
    entropies = [row["entropy"] for row in curve]
    for row in rows:
        if row["model"] != f"fmlm-{data}" or row["steps"] > 8:
            continue
        entropy = row["entropy"]
        at = {
            k: float(np.exp(np.interp(entropy, entropies, [np.log(point[k]) for point in curve])))
            for k in ("gppl_ar", "gppl_ngram")
        }
        yield row, at, entropies[0] <= entropy <= entropies[-1]


PARTS: dict[str, Callable[[Request], list[Row]]] = {
    "shidoku": shidoku,
    "coverage": coverage,
    "sudoku": sudoku,
    "masked-sudoku": masked_sudoku,
    "english": english,
    "tinystories": tinystories,
}
TEXT = {"tinystories": ("TinyStories", "tinystories"), "english": ("English", "english-small")}  # title, data


def report(results: dict[str, list[Row]]) -> str:
    text = [
        "# Few steps",
        "",
        "`python -m benchmarks.few_step` measures everything here anew and writes this file and `few_step.json`. A",
        "figure is the mean over three seeds ± their standard deviation. One step is one evaluation of the network.",
    ]
    if "shidoku" in results:
        even = 288 * (1 - (287 / 288) ** GRIDS)
        text += [
            "",
            f"## 4x4 Sudoku ({GRIDS:,} grids per seed; there are 288)",
            "",
            f"As many draws from all of them alike would hold {even:.0f} different ones.",
            "",
            table(results["shidoku"]),
        ]
    if "coverage" in results:
        row = results["coverage"][0]
        text += [
            "",
            f"10,000 one-step samples hold {row['distinct']} of the 288 grids ({row['valid']:.1%} are valid).",
        ]
    if "sudoku" in results:
        text += [
            "",
            f"## 9x9 Sudoku (per seed {LARGE_GRIDS} grids, and {PUZZLES} puzzles of each number of clues)",
            "",
            "Puzzles have one solution. A step is an evaluation of the network; refined: one step, then refinements.",
            "`mdlm-sudoku` is masked diffusion, on the data of the flow. In random order it writes as it was trained;",
            "by confidence each step keeps its surest digits, and for good. Refinements can change any cell again.",
            "The map was trained on other puzzles of one solution, too; the flow and masked diffusion only on grids",
            "with random cells given.",
            "",
            table(results["sudoku"] + results.get("masked-sudoku", [])),
        ]
    for part, (title, data) in TEXT.items():
        if part in results:
            text += ["", *_of_text(results[part], title, data)]
    return "\n".join(text) + "\n"


def _of_text(rows: list[Row], title: str, data: str) -> list[str]:
    known = ["`words`, `pairs`: shares of words and of neighbouring words that the training text has, too."]
    return [
        f"## {title} ({TEXTS} texts of 128 tokens per seed)",
        "",
        "`gppl ar`: under the GPT-2 baseline (its own samples there are a reference, no result);",
        "`gppl ngram`: under a Kneser-Ney 4-gram. Ids are scored as they are. A lower perplexity at a lower",
        "entropy is no gain: compare at equal entropy.",
        *(known if "words" in rows[0] else []),
        "",
        table(rows),
        "",
        "### The flow map against masked diffusion at equal entropy",
        "",
        "Masked diffusion with 8 steps is swept over temperatures, and its perplexity interpolated at the entropy",
        "of each sample set of the flow map.",
        "",
        "| map's steps | entropy | map, gppl ar | MDLM, gppl ar | map, gppl ngram | MDLM, gppl ngram |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['steps']} | {row['entropy']:.3f} | {row['gppl_ar']:.1f} | {at['gppl_ar']:.1f} | "
            f"{row['gppl_ngram']:.1f} | {at['gppl_ngram']:.1f} |"
            + ("" if within else " (beyond the sweep: its nearest end)")
            for row, at, within in matched(rows, data)
        ),
    ]


def main() -> None:
    about = "Quality of the shipped models against the number of evaluations."
    measure_models(about, PARTS, RESULTS, report)


if __name__ == "__main__":
    main()
