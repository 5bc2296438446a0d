"""Make the puzzles of 9x9 that the map is trained on. Each has one solution, which is a training grid.

    python examples/sudoku/make_grids.py
    python -m examples.sudoku.make_puzzles

This writes `9x9/puzzles.parquet`, the same rows every time, in about a quarter of an hour. Its columns are `text`, the
grid, and `given`, the same with a dot where a cell is blank. A puzzle has from 28 to 60 clues. One row in five has no
clue at all: the map has to write grids from nothing, too.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from examples.sudoku.make_grids import BLANK
from examples.sudoku.puzzles import dig

FOLDER = Path(__file__).parent / "9x9"
CLUES = (28, 60)  # fewest and most
FROM_NOTHING = 0.2


def puzzle_of(grid: str, index: int) -> dict[str, str]:
    """The row of the training grid with this index."""
    rng = np.random.default_rng((1, index))
    if rng.random() < FROM_NOTHING:
        return {"given": BLANK * len(grid)}
    digits = np.array([int(digit) for digit in grid])
    puzzle = dig(digits, int(rng.integers(CLUES[0], CLUES[1], endpoint=True)), rng)
    return {"given": "".join(str(digit) if digit else BLANK for digit in puzzle)}


def main() -> None:
    grids = load_dataset("parquet", data_files=str(FOLDER / "train.parquet"), split="train")
    assert isinstance(grids, Dataset)
    rows = grids.map(puzzle_of, input_columns="text", with_indices=True, desc="Digging")
    rows.to_parquet(FOLDER / "puzzles.parquet")


if __name__ == "__main__":
    main()
