"""Times, noise seeds and conditioning of the examples of a global batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.noise import draw_conditioning, draw_times_and_seeds

RUN_SEEDS, STEPS = st.integers(0, 2**32 - 1), st.integers(0, 10**7)


@given(RUN_SEEDS, STEPS, st.lists(st.integers(0, 20), min_size=1, max_size=6), st.randoms())
def test_any_layout_of_a_batch_gets_the_same_times_seeds_and_conditioning(run_seed, step, sizes, random):
    size = max(1, sum(sizes))
    times, seeds = draw_times_and_seeds(run_seed, step, size, np.arange(size))
    kept = draw_conditioning(seeds, 10, 0.5)
    places = list(range(size))
    random.shuffle(places)
    for part in np.split(np.array(places), np.cumsum(sizes)):
        part_times, part_seeds = draw_times_and_seeds(run_seed, step, size, part)
        assert np.array_equal(part_times, times[part])
        assert part_seeds == [seeds[place] for place in part]
        assert np.array_equal(draw_conditioning(part_seeds, 10, 0.5), kept[part])


@given(RUN_SEEDS, STEPS, st.integers(1, 200))
def test_the_times_of_a_batch_are_evenly_spread_over_the_unit_interval(run_seed, step, size):
    times, _ = draw_times_and_seeds(run_seed, step, size, np.arange(size))
    assert times.dtype == np.float32 and times.min() >= 0 and times.max() < 1
    gaps = np.diff(np.sort(times.astype(np.float64)), append=times.min() + 1.0)
    assert gaps == pytest.approx(np.full(size, 1 / size), abs=1e-6)


@given(RUN_SEEDS, STEPS, st.integers(1, 200))
def test_every_example_of_a_batch_has_a_seed_of_its_own(run_seed, step, size):
    _, seeds = draw_times_and_seeds(run_seed, step, size, np.arange(size))
    assert len(set(seeds)) == size and min(seeds) >= 0 and max(seeds) < 2**63


@pytest.mark.parametrize("place", [0, 3, 7])
def test_the_time_of_each_place_is_uniform_and_independent_from_step_to_step(place):
    n = 4000
    times = np.array([draw_times_and_seeds(5, step, 8, np.array([place]))[0][0] for step in range(n)], np.float64)
    gap = np.abs(np.sort(times) - (np.arange(n) + 0.5) / n).max()
    assert gap < 1.95 / n**0.5  # Kolmogorov-Smirnov, one in a thousand
    assert abs(np.corrcoef(times[:-1], times[1:])[0, 1]) < 3.3 / n**0.5  # as rare
    counts = np.histogram(times, bins=20, range=(0, 1))[0]
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 43.8  # chi-square with 19 degrees of freedom, as rare


@pytest.mark.parametrize("change", [dict(run_seed=8), dict(step=4)])
def test_another_run_or_step_has_other_times_and_seeds(change):
    first, other = (
        draw_times_and_seeds(**dict(run_seed=7, step=3) | c, global_batch_size=8, places=np.arange(8))
        for c in ({}, change)
    )
    assert not np.isclose(np.sort(first[0]), np.sort(other[0]), atol=1e-4).any()
    assert not set(first[1]) & set(other[1])


def test_the_rate_is_the_share_of_conditional_sequences():
    kept = draw_conditioning(list(range(4000)), 64, 0.3)
    assert abs(kept.any(1).mean() - 0.3 * (1 - 1 / 65)) < 3.3 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_of_zero_keeps_nothing_and_a_rate_of_one_something_nearly_everywhere(rate):
    kept = draw_conditioning(list(range(500)), 256, rate)
    assert abs(kept.any(1).mean() - rate) < 0.03


def test_the_part_that_is_kept_is_uniform_and_every_position_alike():
    n, length = 4000, 64
    kept = draw_conditioning(list(range(n)), length, 1.0)
    share = np.sort(kept.mean(1))
    # The count of a uniform share is uniform on 0 to 64; the last value goes to the one before it.
    assert np.abs(share - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5 + 1.5 / length
    assert np.abs(kept.mean(0) - 0.5).max() < 4.5 * 0.5 / n**0.5  # of 64 positions


@given(st.integers(0, 2**63 - 1), st.integers(1, 5))
def test_something_is_always_left_to_predict(seed, length):
    assert not draw_conditioning([seed], length, 1.0).all()
