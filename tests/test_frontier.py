"""Perplexity at equal entropy: hand-worked cases, properties, and intervals that cover."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evaluation.frontier import Point, at_entropy, interpolate

numbers = st.floats(-5, 5, allow_subnormal=False)
lines = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6)


def test_hand_worked():
    assert interpolate([3.0, 4.0], [math.log(10), math.log(1000)], 3.5) == pytest.approx(math.log(100))
    assert interpolate([4.0, 3.0], [math.log(1000), math.log(10)], 3.25) == pytest.approx(math.log(10 * 10**0.5))
    assert interpolate([3.0, 4.0], [1.0, 2.0], 4.001) is None and interpolate([3.0, 4.0], [1.0, 2.0], 2.999) is None
    assert interpolate([3.0, 4.0], [1.0, 2.0], 4.0) == 2.0  # an end is reached
    assert interpolate([3.0, 5.0, 3.0], [0.0, 2.0, 0.0], 4.0) == 1.0
    assert interpolate([3.0, 5.0, 3.0], [5.0, 2.0, 0.0], 4.0) == 1.0  # twice: the lower
    assert interpolate([4.0, 4.0], [2.0, 1.0], 4.0) == 1.0


@given(lines, numbers)
def test_it_lies_between_neighbours_on_either_side_or_is_not_reached(points, entropy):
    entropies, heights = zip(*points, strict=True)
    y = interpolate(entropies, heights, entropy)
    if y is None:
        assert entropy < min(entropies) or entropy > max(entropies)
    else:
        assert min(entropies) <= entropy <= max(entropies)
        assert min(heights) - 1e-9 <= y <= max(heights) + 1e-9
    backwards = interpolate(entropies[::-1], heights[::-1], entropy)
    assert (y is None) == (backwards is None) and (y is None or backwards == pytest.approx(y, abs=1e-6))


@given(lines, st.floats(0, 1), st.integers(0, 4))
def test_a_point_on_the_line_changes_nothing(points, share, segment):
    segment = segment % (len(points) - 1)
    (e, y), (f, z) = points[segment : segment + 2]
    assume(abs(e - f) > 1e-3)
    between = (e + share * (f - e), y + share * (z - y))
    more = [*points[: segment + 1], between, *points[segment + 1 :]]
    entropy = e + (f - e) / 3
    before, after = (interpolate(*zip(*line, strict=True), entropy) for line in (points, more))
    assert after == pytest.approx(before, abs=1e-6)


@given(lines, numbers, st.floats(-3, 3))
def test_a_scorer_that_is_off_by_a_factor_moves_it_by_that_factor(points, entropy, shift):
    entropies, heights = zip(*points, strict=True)
    y, moved = interpolate(entropies, heights, entropy), interpolate(entropies, [h + shift for h in heights], entropy)
    assert (y is None) == (moved is None) and (y is None or moved == pytest.approx(y + shift, abs=1e-9))


def drawn(rng, entropy: float, nll: float, count: int = 60) -> Point:
    tokens = rng.integers(20, 40, count)
    return Point(tokens * rng.normal(nll, 0.3, count), tokens, rng.normal(entropy, 0.05, count))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(60):
        crossing = at_entropy([drawn(rng, 4.0, 4.0), drawn(rng, 4.4, 5.0)], 4.2, seed=trial)
        hits += crossing.interval[0] <= math.exp(4.5) <= crossing.interval[1]
        assert crossing.interval[0] <= crossing.perplexity <= crossing.interval[1]
    assert 52 <= hits <= 60  # 57 of 60 are expected; fewer than 52 have probability 1 % at a true 95 %


def test_what_is_not_bracketed_is_not_reached():
    rng = np.random.default_rng(1)
    points = [drawn(rng, 4.0, 4.0), drawn(rng, 4.4, 5.0)]
    far = at_entropy(points, 4.8)
    assert (far.perplexity, far.interval, far.reached) == (None, None, 0)
    edge = at_entropy(points, points[1].place()[0] + 0.001)
    assert edge.perplexity is None and 0.2 < edge.reached < 0.8  # and says how nearly
    with pytest.raises(ValueError, match="a sweep has two points or more, but there are 1"):
        at_entropy(points[:1], 4.0)


def test_perplexity_is_over_tokens_not_over_samples():
    point = Point(np.array([30.0, 1.0]), np.array([10, 1]), np.array([2.0, 4.0]))
    assert point.place() == (3.0, pytest.approx(31 / 11))
