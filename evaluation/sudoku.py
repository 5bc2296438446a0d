"""A check of whether Sudoku grids are valid."""

import numpy as np


def is_valid(grids: np.ndarray) -> np.ndarray:
    """Whether each of the grids (n, 16) or (n, 81) has every digit once in each row, column and box: (n,) bool."""
    size = {16: 4, 81: 9}[grids.shape[1]]
    box = {4: 2, 9: 3}[size]
    rows = grids.reshape(-1, size, size)
    boxes = rows.reshape(-1, box, box, box, box).swapaxes(2, 3).reshape(-1, size, size)
    units = np.concatenate([rows, rows.swapaxes(1, 2), boxes], axis=1)
    return (np.sort(units, axis=2) == np.arange(1, size + 1)).all(axis=(1, 2))
