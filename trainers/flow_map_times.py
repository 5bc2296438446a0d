"""The pairs of times (s, t) that distillation examples are trained at.

A pair depends only on the run's seed, the step and the example's place in the global batch, as noise does. There are
three kinds of pairs, here as times tau:

    diagonal    s = t; on average a fixed share of the global batch, with times spread evenly
    boundary    (0, 1), the jump of one-step generation; on average one in `boundary_prob` of the others
    interior    the rest: s = v (1 - d) and t = s + d, d and v uniform in [0, 1] ("uniform_diff" of the official code)
"""

from typing import NamedTuple

import numpy as np


class TimePairs(NamedTuple):
    """Times tau, float32 (n,), with start <= middle <= end, and whether each pair is on the diagonal, bool (n,)."""

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
    """The time pairs of the examples at `places` of a global batch; the middle lies halfway between start and end.

    Args:
        run_seed (`int`): seed of the training run, >= 0.
        step (`int`): optimiser step, >= 0.
        global_batch_size (`int`): examples per optimiser step over all processes and micro-batches.
        places (`np.ndarray`): (n,) int, places in [0, global_batch_size).
        diagonal_fraction (`float`): share of the global batch on the diagonal, in [0, 1], on average.
        boundary_prob (`int`, *optional*): of the other examples, one in this many is at (0, 1), on average; None for
            no such example.
        latest (`float`): largest tau of an interior pair, in (0, 1].
    """
    rng = np.random.default_rng((run_seed, step, 2))
    size = global_batch_size
    rank = rng.permutation(size)  # low ranks are on the diagonal, those that follow at the boundary
    rounding, offset = rng.random(2)  # shares are rounded at random, so that their means are exact
    difference, place = latest * rng.random(size), rng.random(size)
    on_diagonal = int(diagonal_fraction * size + rng.random())
    at_boundary = 0 if boundary_prob is None else int((size - on_diagonal) / boundary_prob + rounding)
    even = (offset + rank / max(on_diagonal, 1)) % 1
    start = place * (latest - difference)
    end = start + difference
    diagonal = rank < on_diagonal
    boundary = ~diagonal & (rank < on_diagonal + at_boundary)
    start = np.where(diagonal, even, np.where(boundary, 0, start))
    end = np.where(diagonal, even, np.where(boundary, 1, end))
    times = np.stack([start, start + 0.5 * (end - start), end])[:, places]
    rows = np.clip(times, 0, 1).astype(np.float32)
    return TimePairs(rows[0], rows[1], rows[2], diagonal[places])
