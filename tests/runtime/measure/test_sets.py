from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import manifold, sets
from quaver.runtime.measure.frechet import frechet_of_sets


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_a_paired_set_that_is_the_reference_stands_on_its_floor():
    x = draw(0, 200, 4)
    value = sets.over_halves(frechet_of_sets, x, x, rng=np.random.default_rng(1), paired=True)
    floor = sets.over_halves(frechet_of_sets, x, x, rng=np.random.default_rng(1), paired=True, size=100)
    assert value == floor and 0 < floor.low < floor.value < floor.high


def test_a_shift_stands_above_the_floor_by_its_square():
    x = draw(0, 400, 4)
    value, floor = (
        sets.over_halves(frechet_of_sets, x, judged, rng=np.random.default_rng(1), paired=True) for judged in (x + 1, x)
    )
    assert value.value - floor.value == pytest.approx(4.0, rel=0.1)
    assert value.low < value.value < value.high


@pytest.mark.parametrize(("items", "judged", "size"), [(50, 10, 10), (50, 90, 25)])
def test_as_many_judged_items_are_compared_as_a_half_has(items: int, judged: int, size: int):
    seen: list[tuple[int, int]] = []

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        seen.append((len(a), len(b)))
        return 0.0

    sets.over_halves(measure, draw(0, items, 2), draw(1, judged, 2), rng=np.random.default_rng(2), paired=False)
    assert set(seen[: sets.SPLITS]) == {(size, size)}


def test_no_seed_stands_on_both_sides():
    items = np.arange(40)
    together: list[int] = []

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        together.append(len(set(a) & set(b)))
        return 0.0

    sets.over_halves(measure, items, items, rng=np.random.default_rng(0), paired=True)
    assert set(together) == {0}


def test_the_interval_of_a_linear_figure_is_that_of_its_variance():
    """A difference of means of 100 and 100 standard normals has the deviation sqrt(2 / 100), whatever the halves."""
    widths = [
        found.high - found.low
        for i in range(12)
        for found in [
            sets.over_halves(
                lambda a, b: float(b.mean() - a.mean()),
                draw(2 * i, 100),
                draw(2 * i + 1, 50),
                rng=np.random.default_rng(i),
                paired=False,
            )
        ]
    ]
    # twelve halves of the reference are nearly all of it
    assert np.mean(widths) == pytest.approx(2 * sets.student(11) * np.sqrt(1 / 100 + 1 / 50), rel=0.12)


def test_the_interval_of_a_quadratic_figure_is_no_wider_than_its_spread():
    """The square of the mean of n standard normals has the deviation sqrt(2) / n; leaving one out alone says 2 / n."""
    n, groups = 60, np.arange(60) % sets.GROUPS
    found = []
    for i in range(150):
        x = draw(i, n)
        statistic = lambda left_out, x=x: float(x[~np.isin(groups, left_out)].mean() ** 2)  # noqa: E731
        each = sets.jackknife(statistic, [np.unique(groups)], rng=np.random.default_rng(i))
        found.append((each.value, (each.high - each.low) / 2 / sets.student(sets.GROUPS - 1)))
    values, errors = np.array(found).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.sqrt(2) / n, rel=0.25)
    assert values.std() == pytest.approx(np.sqrt(2) / n, rel=0.25)


def test_intervals_of_a_frechet_distance_hold_about_as_often_as_they_say_and_are_no_wider_than_that_takes():
    """Sixty-four pairs of eight features that hardly differ, again and again: 95% intervals of the mean distance."""
    found = []
    for i in range(24):
        y = draw(i, 64, 8)
        q = y + 0.1 * draw(1000 + i, 64, 8)
        found.append(sets.over_halves(frechet_of_sets, y, q, rng=np.random.default_rng(i), paired=True))
    values = np.array([each.value for each in found])
    held = np.mean([each.low <= values.mean() <= each.high for each in found])
    wide = np.mean([each.high - each.low for each in found]) / (2 * 1.96 * values.std(ddof=1))
    assert held >= 0.85 and 0.8 < wide < 1.5


@pytest.mark.parametrize("degrees", [7, 11, 15, 30])
def test_students_quantile_is_scipys(degrees: int):
    t = pytest.importorskip("scipy.stats").t
    assert sets.student(degrees) == pytest.approx(t.ppf(0.975, degrees), abs=0.01)


def test_any_measure_of_two_sets_will_do():
    far = draw(1, 100, 3) + 9
    found = sets.over_halves(manifold.precision, draw(0, 200, 3), far, rng=np.random.default_rng(0), paired=False)
    assert found.value == found.low == found.high == 0.0


@pytest.mark.parametrize("items", [4, 7, 8, 13, 16, 17, 25])
def test_groups_leave_enough_of_every_half(items: int):
    x = draw(items, items, 2)
    found = sets.over_halves(frechet_of_sets, x, x + 0.1, rng=np.random.default_rng(0), paired=True)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("reference", "judged", "paired"), [(3, 9, False), (9, 1, False), (3, 3, True)])
def test_sets_without_two_items_to_a_half_are_refused(reference: int, judged: int, paired: bool):
    with pytest.raises(ValueError, match="expected 2 or more"):
        sets.over_halves(
            frechet_of_sets, draw(0, reference, 2), draw(1, judged, 2), rng=np.random.default_rng(), paired=paired
        )


def test_paired_sets_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="paired sets differ in size: 4 and 5"):
        sets.over_halves(frechet_of_sets, draw(0, 4, 2), draw(1, 5, 2), rng=np.random.default_rng(), paired=True)


def test_where_every_prompt_has_one_clip_intervals_are_what_they_are_without_prompts():
    x, y = draw(0, 40, 3), draw(1, 40, 3)
    names = [str(i) for i in np.random.default_rng(2).permutation(40)]
    for paired in (True, False):
        found, expected = (
            sets.over_halves(frechet_of_sets, x, y, rng=np.random.default_rng(3), paired=paired, prompts=prompts)
            for prompts in (names, None)
        )
        assert found == expected


def test_clips_of_one_prompt_are_left_out_together():
    names, left = np.repeat([f"prompt {i}" for i in range(16)], 4), list[int]()

    def measure(rows: np.ndarray) -> float:
        left.extend(np.unique(names[rows], return_counts=True)[1])
        return float(len(rows))

    sets.of_set(measure, np.arange(64), rng=np.random.default_rng(0), prompts=names.tolist())
    assert set(left) == {4} and len(left) < (1 + sets.GROUPS + sets.TWICE) * 16


def test_clips_that_are_their_prompts_count_as_often_as_there_are_prompts():
    """A mean over 48 prompts with four equal clips each has the deviation sqrt(1 / 48), not sqrt(1 / 192)."""
    names = np.repeat(np.arange(48), 4).astype(str)
    widths = [
        found.high - found.low
        for i in range(12)
        for found in [
            sets.over_halves(
                lambda a, b: float(b.mean() - a.mean()),
                draw(2 * i, 400),
                np.repeat(draw(2 * i + 1, 48), 4),
                rng=np.random.default_rng(i),
                paired=False,
                prompts=names.tolist(),
            )
        ]
    ]
    assert np.mean(widths) == pytest.approx(2 * sets.student(11) * np.sqrt(1 / 400 + 1 / 48), rel=0.15)


@pytest.mark.parametrize("paired", [True, False])
def test_prompts_of_any_number_and_share_leave_enough_of_every_half(paired: bool):
    """Four items are what neighbours take, of halves of eight and more; two are what a covariance takes."""
    rng = np.random.default_rng(0)
    for items in range(8, 40):
        share = rng.dirichlet(np.full(20, rng.choice([0.2, 1.0, 100.0])))
        names = rng.choice(np.arange(20).astype(str), items, p=share).tolist()
        left: list[int] = []

        def measure(a: np.ndarray, b: np.ndarray, left: list[int] = left) -> float:
            left.append(min(len(a), len(b)))
            return 0.0

        x = np.arange(items)
        sets.over_halves(measure, x, x, rng=rng, paired=paired, prompts=names)
        assert min(left) >= (4 if items >= 16 else 2), (items, names)
