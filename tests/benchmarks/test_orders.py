from __future__ import annotations

import numpy as np
import pytest

from benchmarks.orders import HOLDS, REVERSED, UNDECIDED, frechet, mean, order, resamples


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def cells(rng: np.random.Generator, **shifts: float):
    values = rng.normal(size=300)
    picks, seeds = resamples(300, draws=200, rng=rng), np.array_split(np.arange(300), 3)
    return {name: mean(values + shift + 0.1 * rng.normal(size=300), picks, seeds) for name, shift in shifts.items()}


def test_a_shift_that_pairing_shows_decides_an_order_that_intervals_of_cells_would_not(rng):
    found = cells(rng, a=0.0, b=0.05)
    assert found["a"].interval.high > found["b"].interval.low
    assert order(found, "a", "b").verdict == HOLDS
    assert order(found, "b", "a").verdict == REVERSED


def test_equal_cells_are_undecided(rng):
    assert order(cells(rng, a=0.0, b=0.0), "a", "b").verdict == UNDECIDED


def test_one_calibration_seed_that_disagrees_leaves_an_order_undecided(rng):
    values = np.repeat([-1.0, -1.0, 0.1], 100) + 0.01 * rng.normal(size=300)
    picks, seeds = resamples(300, draws=200, rng=rng), np.array_split(np.arange(300), 3)
    found = {"a": mean(values, picks, seeds), "b": mean(np.zeros(300), picks, seeds)}
    assert order(found, "a", "b").difference.high < 0
    assert order(found, "a", "b").verdict == UNDECIDED


def test_the_frechet_distance_is_of_the_clips_themselves_and_its_interval_holds_it(rng):
    real = rng.normal(size=(400, 4))
    picks, seeds = resamples(400, draws=100, rng=rng), np.array_split(np.arange(400), 4)
    found = frechet(real + 3.0, real, picks, seeds)
    assert found.value == pytest.approx(4 * 3.0**2)  # equal covariances: the squared distance of the means
    assert found.interval.low <= found.value <= found.interval.high
    assert found.seeds == pytest.approx(np.full(4, 36.0))
