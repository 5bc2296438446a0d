"""The time and the noise of each training example.

Both depend only on the seed of the run, the optimiser step, and the example's place in the global batch of that step.
So they stay the same under gradient accumulation, on any number of processes and after an interruption.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset


def draw_times_and_seeds(
    run_seed: int, step: int, global_batch_size: int, places: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Times tau and noise seeds of the examples at `places` of a global batch.

    The time of a place is `(u + place / global_batch_size) mod 1`, u uniform and the same for the whole batch.
    Each time is uniform on [0, 1), and together they are evenly spaced, which lowers the variance of the loss.

    Args:
        run_seed (`int`): seed of the training run, >= 0.
        step (`int`): optimiser step, >= 0.
        global_batch_size (`int`): examples per optimiser step over all processes and micro-batches.
        places (`np.ndarray`): (n,) int, places in [0, global_batch_size).

    Returns:
        `tuple`: times, float32 (n,), in [0, 1), and a list of n noise seeds in [0, 2**63).
    """
    numbers = np.random.SeedSequence((run_seed, step)).generate_state(1 + global_batch_size, np.uint64)
    offset = numbers[0] / 2**64
    times = ((offset + places / global_batch_size) % 1).astype(np.float32)
    times[times >= 1] = 0  # a float64 just below 1 becomes 1 in float32
    return times, (numbers[1 + places] >> np.uint64(1)).tolist()


def draw_conditioning(seeds: list[int], length: int, rate: float) -> np.ndarray:
    """The given tokens of conditional training: bool (n, length), True where a position is kept clean.

    A sequence has given tokens with probability `rate`. If so, its share of them is uniform in [0, 1], but at least
    one position is left to predict. The draw depends on the sequence's noise seed alone.
    """
    kept = np.zeros((len(seeds), length), dtype=bool)
    for row, seed in zip(kept, seeds, strict=True):
        rng = np.random.default_rng((seed, 1))
        if rng.random() < rate:
            row[:] = rng.random(length) < rng.random()
            row[rng.integers(length)] &= not row.all()
    return kept


def with_fixed_noise(dataset: Dataset) -> Dataset:
    """`dataset` with a fixed time and fixed noise for each row, so that its evaluation loss is always taken alike.

    Row i gets the columns `noise_seed`, i, and `timesteps`, the fractional part of 0.5 + i / (golden ratio): the first
    n rows cover [0, 1) evenly for every n. The rows of a stream have no index that its workers agree on. For them the
    model derives time and noise from the ids in evaluation (see `FLMModel.forward`).
    """
    return dataset.map(_fixed_noise, with_indices=True, batched=True)


class WithFixedNoise(torch.utils.data.Dataset):
    """A data set of torch, or a list, with the times and the noise of [`with_fixed_noise`]."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seeds, times = _fixed_noise({}, [index]).values()
        return {"noise_seed": seeds[0], "timesteps": times[0]} | self.dataset[index]


def _fixed_noise(batch: Mapping[str, list], indices: list[int]) -> dict[str, Any]:
    return {"noise_seed": indices, "timesteps": [(0.5 + 0.6180339887498949 * index) % 1 for index in indices]}
