"""Make the puzzles of 9x9 that the map is trained on. Each has one solution.

    python examples/sudoku/make_grids.py
    python -m examples.sudoku.make_puzzles

This writes `9x9/puzzles.parquet`, the same rows every time, in some minutes. Its columns are `text`, a grid, and
`given`, the same with a dot where a cell is blank. Of each of 20,000 training grids a puzzle is made, of 28 to 45
clues. It is written ten times, each time changed by a random symmetry of Sudoku and with some of its blanks filled in
again. Besides, there is a row without clues for every four puzzles: the map has to write grids from nothing, too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from examples.sudoku.make_grids import symmetry
from examples.sudoku.puzzles import as_line, dig, read_grids

FOLDER = Path(__file__).parent / "9x9"
PUZZLES, IMAGES = 20_000, 10
CLUES = (28, 45)  # fewest and most
FILLED = 0.3  # at most, of the blanks of an image
WHOLE = 50_000  # grids without clues


def images(grid: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of the grid (81,), each with the clues (81,) that it is to be found from."""
    clues = dig(grid, int(rng.integers(*CLUES, endpoint=True)), rng) > 0
    for _ in range(IMAGES):
        cells, digits = symmetry(rng)
        given = clues | (rng.random(81) < FILLED * rng.random())
        changed = digits[grid[cells]]
        yield changed, np.where(given[cells], changed, 0)


def main() -> None:
    rng = np.random.default_rng(1)
    grids = read_grids(FOLDER / "train.parquet", PUZZLES + WHOLE)
    rows = [row for grid in grids[:PUZZLES] for row in images(grid, rng)]
    rows += [(grid, np.zeros_like(grid)) for grid in grids[PUZZLES:]]
    text, given = (list(map(as_line, column)) for column in zip(*rows, strict=True))
    Dataset.from_dict({"text": text, "given": given}).to_parquet(FOLDER / "puzzles.parquet")


if __name__ == "__main__":
    main()
