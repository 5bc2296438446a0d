"""Which time and which noise each training example gets.

Both follow from the seed of the run, the optimiser step, and the example's place in the GLOBAL batch of that step, and
from nothing else: gradient accumulation, the number of processes and an interruption change nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset


def draw_times_and_seeds(
    run_seed: int, step: int, global_batch_size: int, places: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Times tau and noise seeds of the examples at `places` of a global batch.

    The times of a global batch are evenly spread, `(u + place / size) mod 1` with one uniform u for all: each is
    uniform on [0, 1), and together they leave no gap (a low-discrepancy set, which lowers the variance of the loss).

    Args:
        run_seed (`int`): seed of the training run, >= 0.
        step (`int`): optimiser step, >= 0.
        global_batch_size (`int`): examples per optimiser step over all processes and micro-batches.
        places (`np.ndarray`): (n,) int, places in [0, global_batch_size).

    Returns:
        float32 times (n,), and n seeds in [0, 2**63).
    """
    numbers = np.random.SeedSequence((run_seed, step)).generate_state(1 + global_batch_size, np.uint64)
    offset = numbers[0] / 2**64
    times = ((offset + places / global_batch_size) % 1).astype(np.float32)
    times[times >= 1] = 0  # a float64 just below 1 rounds up
    return times, (numbers[1 + places] >> np.uint64(1)).tolist()


def draw_conditioning(seeds: list[int], length: int, rate: float) -> np.ndarray:
    """Which positions are kept clean, bool (n, length), from the examples' noise seeds.

    A share `rate` of the sequences is conditional; of such a sequence a part, uniform in [0, 1], is kept, but never
    all of it.
    """
    kept = np.zeros((len(seeds), length), dtype=bool)
    for row, seed in zip(kept, seeds, strict=True):
        rng = np.random.default_rng((seed, 1))
        if rng.random() < rate:
            row[:] = rng.random(length) < rng.random()
            row[rng.integers(length)] &= not row.all()
    return kept


def with_fixed_noise(dataset: Dataset) -> Dataset:
    """`dataset` with the noise and the time of each row settled, so that its loss is the same in any batches.

    Adds `noise_seed` (int), the row's index i, and `timesteps` (float), frac(0.5 + i / golden ratio): a
    low-discrepancy sequence, so that any first n rows cover [0, 1) evenly. The rows of a stream, which several workers
    or processes may share, have no index; theirs are settled by the model, which in evaluation takes them from the
    ids (see `FLMModel.forward`).
    """
    return dataset.map(_fixed_noise, with_indices=True, batched=True)


def _fixed_noise(batch: Mapping[str, list], indices: list[int]) -> dict[str, Any]:
    return {"noise_seed": indices, "timesteps": [(0.5 + 0.6180339887498949 * index) % 1 for index in indices]}
