"""Which pair of times (s, t) each distillation example gets.

Like the noise it follows from the run's seed, the step and the example's place in the global batch alone. Of a global
batch a fixed share lies on the diagonal s = t, about 1 / boundary_prob of the rest at exactly (0, 1), the others
between: their difference d is uniform, and so is their start in what is left, tau_s = s' (1 - d) and tau_t = tau_s + d
("uniform_diff", as the official runs have it).
"""

from typing import NamedTuple

import numpy as np


class TimePairs(NamedTuple):
    """Times tau (n,) float32 with start <= middle <= end, and which examples lie on the diagonal (n,) bool."""

    start: np.ndarray
    middle: np.ndarray
    end: np.ndarray
    diagonal: np.ndarray


def draw_time_pairs(
    run_seed: int,
    step: int,
    global_batch_size: int,
    places: np.ndarray,
    diagonal_fraction: float,
    boundary_prob: int | None,
    latest: float = 1.0,
) -> TimePairs:
    """Time pairs of the examples at `places` of a global batch.

    Args:
        run_seed (`int`): seed of the training run, >= 0.
        step (`int`): optimiser step, >= 0.
        global_batch_size (`int`): examples per optimiser step over all processes and micro-batches.
        places (`np.ndarray`): (n,) int, places in [0, global_batch_size).
        diagonal_fraction (`float`): share of the global batch on the diagonal, its times evenly spread.
        boundary_prob (`int`, *optional*): one in so many of the other examples, on average, is at (0, 1). None: none.
        latest (`float`): the latest tau of a jump; on the diagonal all times occur.
    """
    rng = np.random.default_rng((run_seed, step, 2))
    size = global_batch_size
    rank = rng.permutation(size)  # each place takes one part in the batch
    on_diagonal = round(diagonal_fraction * size)
    wanted = 0 if boundary_prob is None else (size - on_diagonal) / boundary_prob
    at_boundary = int(wanted + rng.random())  # rounded up or down, right on average
    even = (rng.random() + rank / max(on_diagonal, 1)) % 1
    difference, place = latest * rng.random(size), rng.random(size)
    start = place * (latest - difference)
    end = start + difference
    diagonal = rank < on_diagonal
    boundary = ~diagonal & (rank < on_diagonal + at_boundary)
    start = np.where(diagonal, even, np.where(boundary, 0, start))
    end = np.where(diagonal, even, np.where(boundary, 1, end))
    times = np.stack([start, start + 0.5 * (end - start), end])[:, places]
    rows = np.clip(times, 0, 1).astype(np.float32)
    return TimePairs(rows[0], rows[1], rows[2], diagonal[places])
