"""Quality at equal diversity: the perplexity that a sweep of settings reaches at the data's entropy.

A lower temperature lowers perplexity and entropy together, so perplexities can only be compared at equal entropy. The
points (entropy, log perplexity) of a sweep, in the order of its setting, are joined by straight lines. The result is
the perplexity at which this path has the entropy of real text. Nothing is extrapolated: a path that does not have that
entropy does not reach it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True)
class Point:
    """The measured samples of one setting of a sweep.

    Args:
        losses (`np.ndarray`): (n,) sum of -log p in nats over the scored tokens of each sample.
        tokens (`np.ndarray`): (n,) number of scored tokens of each sample.
        entropies (`np.ndarray`): (n,) entropy in nats within each sample.
    """

    losses: np.ndarray
    tokens: np.ndarray
    entropies: np.ndarray

    def place(self, picked: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Mean entropy and log perplexity of all samples, or of each resample `picked`, indices (resamples, n)."""
        losses, tokens = self.losses[picked].sum(-1), self.tokens[picked].sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 where no sample has a token
            return self.entropies[picked].mean(-1), losses / tokens


@dataclass(frozen=True)
class Crossing:
    """The point at which a sweep has a given entropy.

    Args:
        perplexity (`float`, *optional*): the perplexity there; None if the sweep does not reach the entropy.
        interval (`tuple[float, float]`, *optional*): middle 95 % of the perplexities of those resamples that reach it.
        reached (`float`): share of the resamples that reach it, in [0, 1].
    """

    perplexity: float | None
    interval: tuple[float, float] | None
    reached: float


def interpolate(
    entropies: Sequence[float] | np.ndarray, log_perplexities: Sequence[float] | np.ndarray, entropy: float
) -> float | None:
    """The log perplexity at `entropy` on the path through the points, which are in the order of the sweep.

    If the path has that entropy more than once, the lowest counts, as each crossing is a setting that may be chosen.
    If it never has, the result is None.
    """
    found = []
    for (e, y), (f, z) in pairwise(zip(entropies, log_perplexities, strict=True)):
        if min(e, f) <= entropy <= max(e, f):
            found += [y, z] if e == f else [y + (z - y) * ((entropy - e) / (f - e))]
    return min(found, default=None)


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """Indices (RESAMPLES, count) of samples drawn with replacement, for the bootstrap."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The lower and the upper end of the middle 95 % of `values`, those of the resamples."""
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def at_entropy(points: Sequence[Point], entropy: float, seed: int = 0) -> Crossing:
    """The perplexity at `entropy`, in nats, of a sweep whose points are in the order of the setting that varies.

    The interval is a percentile bootstrap over samples. A resample has the same samples of each point: those with the
    same number come from the same seed, so they may be alike.

    Raises:
        ValueError: there are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a sweep has two points or more, but there are {len(points)}.")
    places = np.array([point.place() for point in points])
    here = interpolate(places[:, 0], places[:, 1], entropy)
    drawn = np.array([point.place(resamples(len(point.losses), seed)) for point in points])
    found = [interpolate(drawn[:, 0, i], drawn[:, 1, i], entropy) for i in range(RESAMPLES)]
    reached = np.array([y for y in found if y is not None and np.isfinite(y)])
    return Crossing(
        perplexity=None if here is None else float(np.exp(here)),
        interval=interval(np.exp(reached)) if here is not None and len(reached) else None,
        reached=len(reached) / RESAMPLES,
    )
