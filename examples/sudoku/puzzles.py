"""Makes Sudoku puzzles of 9x9 with exactly one solution, by blanking cells of whole grids.

    python examples/sudoku/puzzles.py --clues 30 --count 5 --seed 0

This prints puzzles with 30 clues, made of held-out grids, each beside its solution. `9x9/puzzles.txt` is what it
prints with `--clues 36 --count 100`. From Python:

```python
rng = np.random.default_rng(0)
puzzle = dig(grid, clues=30, rng=rng)  # (81,), 0 where a cell is blank
assert len(solutions(puzzle, most=2)) == 1
```

It is a matter of luck whether few clues are enough. Puzzles of 30 clues are nearly always found, of 24 after some
attempts, and of 22 or fewer hardly ever. No puzzle has fewer than 17.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

HELD_OUT = Path(__file__).parent / "9x9" / "validation.parquet"
ALL = 0b111111111  # the nine digits as bits
UNITS = [(cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3) for cell in range(81)]  # row, column, box of a cell


def solutions(puzzle: np.ndarray, most: int = 2) -> list[np.ndarray]:
    """The solutions (81,) of a puzzle (81,), whose blanks are 0. The search ends when it has found `most` of them.

    It is by backtracking, with the cell that has the fewest candidates first.
    """
    grid = puzzle.tolist()
    free = [[ALL] * 9 for _ in range(3)]  # the digits still to place in each row, column and box, as bits
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
    """Make a puzzle (81,) whose only solution is `grid` (81,): it has `clues` cells of the grid, the others are 0.

    In random order each cell is blanked if the puzzle then still has only one solution.

    Raises:
        ValueError: if `clues` is not in [17, 81], or none of the `attempts` came down to so few.
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
    """Digits (count, 81) of the first 9x9 grids that no model was trained on; all of them by default."""
    return read_grids(HELD_OUT, count)


def read_grids(file: Path, count: int | None = None) -> np.ndarray:
    """Digits (count, 81) of the first grids of a file that `make_grids.py` wrote; all of them by default."""
    text = load_dataset("parquet", data_files=str(file), split="train")["text"]
    return np.array([[int(digit) for digit in line] for line in text[:count]])


def as_line(grid: np.ndarray) -> str:
    """A grid or puzzle (81,) as 81 characters, a dot where it is 0."""
    return "".join(str(digit) if digit else "." for digit in grid)


def unique_puzzles(clues: int, count: int, seed: int) -> np.ndarray:
    """Puzzles (count, 81) with `clues` clues and one solution each, 0 where a cell is blank.

    Each is made of another held-out grid; `seed` decides of which, and which of its cells are blanked.
    """
    rng = np.random.default_rng(seed)
    return np.array([dig(grid, clues, rng) for grid in rng.permutation(held_out_grids())[:count]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Print Sudoku puzzles with exactly one solution, and this.")
    parser.add_argument("--clues", type=int, default=30, help="given cells, 17 to 81 (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    for puzzle in unique_puzzles(options.clues, options.count, options.seed):
        print(as_line(puzzle), as_line(solutions(puzzle)[0]))


if __name__ == "__main__":
    main()
