"""Make the Sudoku grids, 4x4 and 9x9, and their tokenizers. A document is a grid, with its rows written on one line.

    python examples/sudoku/make_grids.py

This writes `4x4/` and `9x9/` next to this file, the same bytes every time. There are 288 grids of 4x4: all of them are
the training set. There are 6.7e21 grids of 9x9: 200,000 are made, in some minutes. Each is filled at random with
backtracking, and then changed by a random symmetry of Sudoku (digits, bands, stacks, rows in a band, columns in a
stack, transposition). So they are random, but not exactly uniform.
"""

from itertools import product
from pathlib import Path

import numpy as np
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent
BLANK = "."
TRAINING_GRIDS, VALIDATION_GRIDS = 200_000, 1_000  # numbers of 9x9 grids
COPIES = 100  # of each 4x4 grid, so that an epoch is not too short


def all_4x4() -> np.ndarray:
    """All grids of 4x4: (288, 16), digits from 1 to 4."""
    rows = [row for row in product(range(1, 5), repeat=4) if len(set(row)) == 4]
    grids = [row for row in rows]
    for _ in range(3):
        grids = [grid + row for grid in grids for row in rows if _fits(grid, row)]
    return np.array(grids)


def _fits(grid: tuple, row: tuple) -> bool:
    above = [grid[i : i + 4] for i in range(0, len(grid), 4)]
    in_box = len(above) % 2 == 0 or all(set(above[-1][c : c + 2]).isdisjoint(row[c : c + 2]) for c in (0, 2))
    return in_box and all(other[c] != row[c] for other in above for c in range(4))


def random_9x9(rng: np.random.Generator) -> np.ndarray:
    """A random grid of 9x9: (81,), digits from 1 to 9. The cell with the fewest candidates is filled first."""
    grid = [0] * 81
    free = [[0b111111111] * 9 for _ in range(3)]  # the digits still to place in each row, column and box, as bits
    units = [(i // 9, i % 9, i // 27 * 3 + i % 9 // 3) for i in range(81)]
    order = rng.random((81, 9)).argsort(axis=1).tolist()
    ties = rng.permutation(81).tolist()

    def candidates(cell: int) -> int:
        row, column, box = units[cell]
        return free[0][row] & free[1][column] & free[2][box]

    def fill(empty: set[int]) -> bool:
        if not empty:
            return True
        cell = min(empty, key=lambda c: (candidates(c).bit_count(), ties[c]))
        possible = candidates(cell)
        empty.remove(cell)
        for digit in order[cell]:
            bit = 1 << digit
            if possible & bit:
                for kind, unit in enumerate(units[cell]):
                    free[kind][unit] ^= bit
                if fill(empty):
                    grid[cell] = digit + 1
                    return True
                for kind, unit in enumerate(units[cell]):
                    free[kind][unit] ^= bit
        empty.add(cell)
        return False

    fill(set(range(81)))
    return np.array(grid)


def image(grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The grid, changed by a random symmetry of Sudoku."""
    cells, digits = symmetry(rng)
    return digits[grid[cells]]


def symmetry(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random symmetry: the cell (81,) that goes to each place, and the digit (10,) that each becomes; a blank, 0,
    stays one."""
    lines = [np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)]) for _ in range(2)]
    digits = np.concatenate([[0], rng.permutation(np.arange(1, 10))])
    square = np.arange(81).reshape(9, 9)[np.ix_(*lines)]
    return (square.T if rng.random() < 0.5 else square).flatten(), digits


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters. The blank has id 0 and each digit its own value, so that ids are grids."""
    vocabulary = {BLANK: 0} | {str(digit): digit for digit in range(1, size + 1)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=BLANK))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        mask_token=BLANK,
        pad_token=BLANK,
        model_max_length=size * size,
        clean_up_tokenization_spaces=False,
    )


def _write(grids: np.ndarray, path: Path) -> None:
    Dataset.from_dict({"text": ["".join(map(str, grid)) for grid in grids]}).to_parquet(path)


def main() -> None:
    for size in (4, 9):
        tokenizer(size).save_pretrained(FOLDER / f"{size}x{size}" / "tokenizer")
    _write(np.tile(all_4x4(), (COPIES, 1)), FOLDER / "4x4" / "train.parquet")
    rng = np.random.default_rng(0)
    for name, count in (("validation", VALIDATION_GRIDS), ("train", TRAINING_GRIDS)):
        _write(np.array([image(random_9x9(rng), rng) for _ in range(count)]), FOLDER / "9x9" / f"{name}.parquet")


if __name__ == "__main__":
    main()
