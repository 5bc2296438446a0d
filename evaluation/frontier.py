"""Quality at equal diversity: the perplexity that a sweep of settings reaches at the data's entropy.

A lower temperature lowers perplexity and entropy together, so one figure of perplexity compares nothing. A sweep draws
a line through (entropy, log perplexity), straight between neighbouring settings; what counts is where that line has
the entropy of real text. Between neighbours on either side of it the log of the perplexity is interpolated linearly in
the entropy; where no two neighbours are on either side it is not reached. Nothing is extrapolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True)
class Point:
    """The samples of one setting of a sweep.

    Args:
        losses (`np.ndarray`): (n,) the sum of -log p in nats over the scored tokens of each sample.
        tokens (`np.ndarray`): (n,) how many tokens those are.
        entropies (`np.ndarray`): (n,) entropy in nats within each sample.
    """

    losses: np.ndarray
    tokens: np.ndarray
    entropies: np.ndarray

    def place(self, picked: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Mean entropy and log perplexity of the samples, or of each row of `picked` (resamples, n)."""
        losses, tokens = self.losses[picked].sum(-1), self.tokens[picked].sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # no token at all: no perplexity
            return self.entropies[picked].mean(-1), losses / tokens


@dataclass(frozen=True)
class Crossing:
    """Where a sweep has an entropy.

    Args:
        perplexity (`float`, *optional*): None where it is not reached.
        interval (`tuple`, *optional*): of 95 % of those resamples that reach the entropy.
        reached (`float`): share of the resamples that do.
    """

    perplexity: float | None
    interval: tuple[float, float] | None
    reached: float


def interpolate(
    entropies: Sequence[float] | np.ndarray, log_perplexities: Sequence[float] | np.ndarray, entropy: float
) -> float | None:
    """The log perplexity at `entropy` on the line through the points, in the order of the sweep; None where the line
    does not have that entropy. Where it has it more than once, the lowest: each is a setting that one may choose."""
    found = []
    for (e, y), (f, z) in pairwise(zip(entropies, log_perplexities, strict=True)):
        if min(e, f) <= entropy <= max(e, f):
            found += [y, z] if e == f else [y + (z - y) * ((entropy - e) / (f - e))]
    return min(found, default=None)


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """Places (RESAMPLES, count) of samples drawn with replacement, for the bootstrap."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def at_entropy(points: Sequence[Point], entropy: float, seed: int = 0) -> Crossing:
    """The perplexity at `entropy` of a sweep, its points in the order of the setting that varies.

    The interval is a percentile bootstrap over the samples of each point, drawn independently of the other points'.

    Raises:
        ValueError: there are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a sweep has two points or more, but there are {len(points)}.")
    places = np.array([point.place() for point in points])
    here = interpolate(places[:, 0], places[:, 1], entropy)
    drawn = np.array([point.place(resamples(len(point.losses), seed + i)) for i, point in enumerate(points)])
    found = [interpolate(drawn[:, 0, i], drawn[:, 1, i], entropy) for i in range(RESAMPLES)]
    reached = np.array([y for y in found if y is not None and np.isfinite(y)])
    return Crossing(
        perplexity=None if here is None else float(np.exp(here)),
        interval=interval(np.exp(reached)) if here is not None and len(reached) else None,
        reached=len(reached) / RESAMPLES,
    )
