"""Sudoku solved in the course of a training, from its checkpoints: writes solving.json and solving.md.

    flm distill recipes/sudoku-puzzles.yaml training.save_total_limit=null    # keeps every checkpoint
    python -m benchmarks.solving runs/sudoku-puzzles/checkpoint-*

`checkpoint-0` is a copy of the map that the training starts from. Checkpoints have averaged weights. Rows of steps
that no checkpoint is given for stay as they were measured. The puzzles are those of `benchmarks.few_step`, its first
seed alone: 100 of each number of clues, and 100 grids from nothing.
"""

import argparse
import json
from pathlib import Path

from benchmarks.few_step import CLUES, LARGE_GRIDS, PUZZLES, load, solved, unconditional
from benchmarks.results import ROOT, SEEDS, Row, page, shown, table

RESULTS = ROOT / "benchmarks" / "solving.json"
EVALUATIONS = (1, 4)  # of puzzles, refined after the first
FROM_NOTHING = (1, 16)  # of grids, likewise


def measure(checkpoint: Path) -> Row:
    """Shares of puzzles solved, and of valid grids from nothing, by one checkpoint of a map."""
    model, seed = load(checkpoint), SEEDS[0]
    config = model.config
    row: Row = {
        "step": int(checkpoint.name.split("-")[-1]),
        "blocks": config.num_hidden_layers,
        "loops": config.num_loops,
    }
    for n in EVALUATIONS:
        for clues in CLUES:
            (share,) = solved(model, "flow_map", 1, clues, PUZZLES, seed, refine_steps=n - 1).values()
            row[f"{clues} clues in {n}"] = share
    for n in FROM_NOTHING:
        grids = unconditional(model, "flow_map", 1, LARGE_GRIDS, seed, refine_steps=n - 1)
        row[f"from nothing in {n}"] = grids["valid"]
    return row


def report(rows: list[Row]) -> str:
    return page(
        "# Sudoku in the course of training",
        "`python -m benchmarks.solving` measures this. The map of `recipes/sudoku-puzzles.yaml`, in batches of 64:\n"
        "share of puzzles solved in one evaluation and in four (three are refinements), and of valid grids from\n"
        "nothing. The recipe says where the learning rate fell, and where the map got more blocks.\n"
        "One seed of 100 puzzles or grids each: differences below ten points are chance.",
        table(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Sudoku solved by the checkpoints of a training of the map.")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="folders checkpoint-N")
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    by_step = {row["step"]: row for row in earlier + shown(map(measure, parser.parse_args().checkpoints))}
    rows = sorted(by_step.values(), key=lambda row: row["step"])
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(rows))


if __name__ == "__main__":
    main()
