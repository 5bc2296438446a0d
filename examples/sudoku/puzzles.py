"""Sudoku puzzles of 9x9 with exactly one solution, dug from whole grids.

    python examples/sudoku/puzzles.py --clues 30 --count 5 --seed 0

prints puzzles of held-out grids with 30 clues. From Python:

```python
rng = np.random.default_rng(0)
puzzle = dig(grid, clues=30, rng=rng)  # (81,), 0 where a cell is blank
assert len(solutions(puzzle, most=2)) == 1
```

A grid has puzzles of few clues only by luck: 30 are nearly always found, 24 after some attempts, 22 and fewer hardly
ever (17 are the fewest that any puzzle has).
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

HELD_OUT = Path(__file__).parent / "9x9" / "validation.parquet"
ALL = 0b111111111  # the nine digits as bits
UNITS = [(cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3) for cell in range(81)]  # row, column, box of a cell


def solutions(puzzle: np.ndarray, most: int = 2) -> list[np.ndarray]:
    """The solutions (81,) of a puzzle (81,) of digits and 0 for blanks, but no more than `most`.

    Backtracking, the cell with the fewest candidates first.
    """
    grid = puzzle.tolist()
    free = [[ALL] * 9 for _ in range(3)]  # of each row, column and box: the digits that are still to be placed
    for cell, digit in enumerate(grid):
        if digit:
            bit = 1 << digit - 1
            for kind, unit in enumerate(UNITS[cell]):
                if not free[kind][unit] & bit:
                    return []
                free[kind][unit] ^= bit
    rows, columns, boxes = free
    blanks = [cell for cell, digit in enumerate(grid) if not digit]
    found: list[np.ndarray] = []

    def search() -> None:
        if not blanks:
            found.append(np.array(grid))
            return
        best, fewest = 0, 10
        for place, cell in enumerate(blanks):
            row, column, box = UNITS[cell]
            count = (rows[row] & columns[column] & boxes[box]).bit_count()
            if count < fewest:
                best, fewest = place, count
                if count < 2:
                    break
        cell = blanks.pop(best)
        row, column, box = UNITS[cell]
        candidates = rows[row] & columns[column] & boxes[box]
        while candidates and len(found) < most:
            bit = candidates & -candidates
            candidates ^= bit
            grid[cell] = bit.bit_length()
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
            search()
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
        grid[cell] = 0
        blanks.insert(best, cell)

    search()
    return found


def dig(grid: np.ndarray, clues: int, rng: np.random.Generator, attempts: int = 20) -> np.ndarray:
    """A puzzle (81,) with `clues` cells of `grid` (81,), the others 0, whose only solution is the grid.

    Cells are blanked in random order, each if the puzzle still has one solution without it.

    Raises:
        ValueError: `clues` is not in [17, 81], or no attempt came down to so few.
    """
    if not 17 <= clues <= 81:
        raise ValueError(f"`clues` is {clues}, but a puzzle with one solution has 17 to 81.")
    fewest = 81
    for _ in range(attempts):
        puzzle, left = grid.copy(), 81
        for cell in rng.permutation(81):
            if left == clues:
                break
            puzzle[cell] = 0
            if len(solutions(puzzle, most=2)) == 1:
                left -= 1
            else:
                puzzle[cell] = grid[cell]
        if left == clues:
            return puzzle
        fewest = min(fewest, left)
    raise ValueError(f"no puzzle of {clues} clues was found on this grid in {attempts} attempts, but of {fewest}.")


def held_out_grids(count: int | None = None) -> np.ndarray:
    """The first `count` (all, by default) of the 9x9 grids that no model was trained on: (count, 81) digits."""
    text = load_dataset("parquet", data_files=str(HELD_OUT), split="train")["text"]
    return np.array([[int(digit) for digit in line] for line in text[:count]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Print Sudoku puzzles with exactly one solution.")
    parser.add_argument("--clues", type=int, default=30, help="given cells, 17 to 81 (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    for grid in rng.permutation(held_out_grids())[: options.count]:
        puzzle = dig(grid, options.clues, rng)
        print("".join("." if digit == 0 else str(digit) for digit in puzzle))


if __name__ == "__main__":
    main()
