from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import manifold, sets
from quaver.runtime.measure.frechet import frechet_of_sets


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_a_paired_set_that_is_the_reference_stands_on_its_floor():
    x = draw(0, 200, 4)
    found = sets.against_floor(frechet_of_sets, x, x, rng=np.random.default_rng(1), paired=True, draws=20)
    assert found.value.value == pytest.approx(found.floor.value)
    assert (found.count, found.splits, found.draws) == (100, 20, 20)
    assert 0 < found.floor.low < found.floor.value < found.floor.high


def test_a_shift_stands_above_the_floor_by_its_square():
    x = draw(0, 400, 4)
    found = sets.against_floor(frechet_of_sets, x, x + 1.0, rng=np.random.default_rng(1), paired=True)
    assert found.value.value - found.floor.value == pytest.approx(4.0, rel=0.1)
    assert found.value.low < found.value.value < found.value.high


def test_value_and_floor_are_taken_at_one_size():
    seen: set[tuple[int, int]] = set()

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        seen.add((len(a), len(b)))
        return 0.0

    sets.against_floor(measure, draw(0, 50, 2), draw(1, 10, 2), rng=np.random.default_rng(2), paired=False)
    assert seen == {(10, 10)}
    sets.against_floor(measure, draw(0, 50, 2), draw(1, 90, 2), rng=np.random.default_rng(2), paired=False)
    assert seen == {(10, 10), (25, 25)}


def test_no_seed_stands_on_both_sides():
    items = np.arange(40)
    together: list[int] = []

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        together.append(len(set(a) & set(b)))
        return 0.0

    sets.against_floor(measure, items, items, rng=np.random.default_rng(0), paired=True)
    assert set(together) == {0}


def test_the_interval_is_the_spread_of_one_estimate():
    """A difference of means of 100 standard normals each has the deviation sqrt(2 / 100)."""
    reference, judged = draw(3, 200), draw(4, 100)
    found = sets.against_floor(
        lambda a, b: float(b.mean() - a.mean()),
        reference,
        judged,
        rng=np.random.default_rng(5),
        paired=False,
        draws=800,
    )
    assert found.value.high - found.value.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 100), rel=0.15)


def test_doubled_items_do_not_move_the_interval_off_its_estimate():
    a, b = draw(6, 60, 16), draw(7, 60, 16)
    found = sets.spread(frechet_of_sets, a, b, rng=np.random.default_rng(8), draws=60)
    assert found.value == pytest.approx(frechet_of_sets(a, b))
    assert found.low < found.value < found.high
    assert found.high - found.value < 0.5 * found.value


def test_any_measure_of_two_sets_will_do():
    found = sets.against_floor(
        manifold.precision, draw(0, 200, 3), draw(1, 100, 3) + 9, rng=np.random.default_rng(0), paired=False, draws=5
    )
    assert found.value.value == 0.0 and found.floor.value > 0.8
    assert found.as_json()["floor"] == found.floor.as_json()


@pytest.mark.parametrize(("reference", "judged", "paired"), [(3, 9, False), (9, 1, False), (3, 3, True)])
def test_sets_without_two_items_to_a_half_are_refused(reference: int, judged: int, paired: bool):
    with pytest.raises(ValueError, match="expected 2 or more"):
        sets.against_floor(
            frechet_of_sets, draw(0, reference, 2), draw(1, judged, 2), rng=np.random.default_rng(), paired=paired
        )


def test_paired_sets_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="paired sets differ in size: 4 and 5"):
        sets.against_floor(frechet_of_sets, draw(0, 4, 2), draw(1, 5, 2), rng=np.random.default_rng(), paired=True)
