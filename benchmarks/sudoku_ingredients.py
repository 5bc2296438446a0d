"""What an ingredient of training is worth to a flow of 9x9 Sudoku, in equal steps: writes sudoku_ingredients.json and
its table.

    python examples/sudoku/make_grids.py
    python -m benchmarks.sudoku_ingredients                      # every part
    python -m benchmarks.sudoku_ingredients recipe focal         # some; the others stay as they were

A part is `recipes/sudoku.yaml` with some entries changed. Runs are kept in runs/sudoku-ingredients: one that was
stopped goes on, one that has ended is only measured. They compute in bfloat16, with compiled blocks.
"""

from collections.abc import Callable
from functools import partial

from transformers import AutoModel

import benchmarks.prototypes  # noqa: F401  registers the model types
from benchmarks.few_step import (
    LARGE_GRIDS,
    PUZZLES,
    WAYS,
    from_nothing_and_clues,
    masked_solved,
    masked_unconditional,
    solved,
    unconditional,
)
from benchmarks.ingredients import Variant
from benchmarks.results import ROOT, Row, measure_parts, over_seeds, page, shown, table

RECIPE = ROOT / "recipes" / "sudoku.yaml"
RESULTS = ROOT / "benchmarks" / "sudoku_ingredients.json"
RUNS = ROOT / "runs" / "sudoku-ingredients"
TRAINING_STEPS, GRIDS_A_STEP = 1000, 32
TRAINING_SEEDS = (42, 43)
WAYS_OF_FLOWS = [("", 64), ("refined", 8)]  # of `few_step.WAYS`, with numbers of evaluations
PUZZLE_SEEDS = (1,)

_prototype = partial(Variant, "flow", prototype="adamw")
# What is changed, in words, and how.
VARIANTS: dict[str, tuple[str, Variant]] = {
    "recipe": ("nothing", Variant("flow")),
    "clean-0": ("no row has given cells", Variant("flow", ["training.conditioning_rate=0"])),
    "clean-1": ("every row has given cells, not half of them", Variant("flow", ["training.conditioning_rate=1"])),
    "self-conditioned": (
        "it is told its last prediction, in a quarter of the steps",
        _prototype(["model.type=self-conditioned"]),
    ),
    "unit-rows": ("rows of equal norm, isotropic noise", _prototype(["model.type=unit-rows"])),
    "two-loops": ("twice through the 12 blocks: twice the multiplications", Variant("flow", ["model.num_loops=2"])),
    "two-loops-of-6": (
        "twice through 6 blocks: half of the weights",
        Variant("flow", ["model.num_loops=2", "model.num_hidden_layers=6"]),
    ),
    "focal": ("cells that it is unsure of weigh more", _prototype(["model.type=focal"])),
    "muon": ("Muon for the matrices of the blocks", Variant("flow", prototype="muon")),
    "masked": ("masked diffusion, which keeps its surest digits", Variant("masked")),
}


def measure(name: str) -> list[Row]:
    """A row for each way to write: means over trainings of different seeds."""
    variant = VARIANTS[name][1]
    models = {}
    for seed in TRAINING_SEEDS:
        overrides = [f"training.max_steps={TRAINING_STEPS}", f"training.per_device_train_batch_size={GRIDS_A_STEP}"]
        overrides += [f"training.seed={seed}", "training.eval_strategy=no"]
        models[seed] = AutoModel.from_pretrained(variant.train(RECIPE, RUNS / f"{name}-{seed}", overrides)).eval()

    def row(way: str, evaluations: int, judge: Callable[[object], Row]) -> Row:
        measured = over_seeds(lambda seed: judge(models[seed]), TRAINING_SEEDS)
        return {"model": name, "way": way, "evaluations": evaluations} | measured

    if variant.kind == "masked":
        return shown(row("by confidence", n, partial(_masked_judged, n)) for _, n in WAYS_OF_FLOWS)
    return shown(row(way or "euler", n, partial(_judged, way, n)) for way, n in WAYS_OF_FLOWS)


def _judged(way: str, evaluations: int, model) -> Row:
    steps, settings = WAYS[way](evaluations)
    of_grids, of_puzzles = (partial(some, model, "euler", steps, **settings) for some in (unconditional, solved))
    return from_nothing_and_clues(of_grids, of_puzzles, PUZZLE_SEEDS)


def _masked_judged(evaluations: int, model) -> Row:
    of_grids, of_puzzles = (partial(some, model, evaluations, True) for some in (masked_unconditional, masked_solved))
    return from_nothing_and_clues(of_grids, of_puzzles, PUZZLE_SEEDS)


ABOUT = f"""
# Ingredients of 9x9 Sudoku

`python -m benchmarks.sudoku_ingredients`: flows of 9x9 Sudoku, {TRAINING_STEPS:,} steps of {GRIDS_A_STEP} grids
each with an entry of `recipes/sudoku.yaml` changed. The shares of {LARGE_GRIDS} grids from nothing that are
valid, and of {PUZZLES} puzzles of each number of clues that are solved. Refined: one step, then refinements.
± is the standard deviation over trainings.
"""


def report(results: dict[str, list[Row]]) -> str:
    measured = [name for name in VARIANTS if name in results]
    rows: list[Row] = [row | {"what": VARIANTS[name][0]} for name in measured for row in results[name]]
    return page(ABOUT, table(rows))


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in VARIANTS}, RESULTS, report)
