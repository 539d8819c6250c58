import numpy as np
import pytest

from quaver.exporter.parity.difference import Difference, Tolerance, add, beyond_rounding, compare, read_tolerance
from quaver.runtime.errors import RecipeError


def test_differences_of_calls_add_up_to_that_of_all():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((2, 50))
    found = reference + 0.1 * rng.standard_normal((2, 50))
    whole, parts = compare(found, reference, np.float64(0.2)), [compare(found[i], reference[i], 0.2) for i in range(2)]
    both = add(*parts)
    assert (both.count, both.moved, both.largest) == (100, whole.moved, whole.largest)
    assert both.snr == pytest.approx(10 * np.log10((reference**2).sum() / ((found - reference) ** 2).sum()))
    assert whole.moved == (np.abs(found - reference) > 0.1).sum()


def test_equal_values_are_two_hundred_decibels_whatever_they_are():
    odd = np.array([1.0, -np.inf, np.nan], np.float32)
    assert compare(odd, odd.copy()) == Difference(3, 1.0, 0.0, 0.0, 0)
    assert compare(odd, odd.copy()).snr == 200


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_on_one_side_is_no_agreement(wrong):
    off = compare(np.array([1.0, wrong]), np.array([1.0, 1.0]))
    assert off.snr == -np.inf
    assert off.largest == np.inf


@pytest.mark.parametrize(
    ("local", "coded", "loose", "why"),
    [
        (Difference(1000, 1.0, 1e-3, 1.0, 9), True, False, ""),
        (Difference(1000, 1.0, 1e-3, 2.0, 1), True, False, "codes are up to 2 steps off where rounding explains 1"),
        (Difference(1000, 1.0, 1e-3, 1.0, 20), True, False, "2.0% of the codes moved where rounding explains 1.0%"),
        (Difference(1000, 1.0, 1e-5, 0.1), False, False, "floats agree to 50.0 dB where rounding explains 60 dB"),
        (Difference(1000, 1.0, 1e-5, 0.1), False, True, ""),
        (Difference(1000, 1.0, 1e-3, 2.0, 90), True, True, ""),
    ],
)
def test_rounding_explains_a_step_here_and_there_and_the_last_bits_of_floats(local, coded, loose, why):
    assert beyond_rounding(local, Tolerance(), coded=coded, loose=loose) == why


def test_tolerances_are_replaced_by_name():
    assert read_tolerance(["steps=2", "cost=6.5"]) == Tolerance(steps=2, cost=6.5)
    with pytest.raises(RecipeError, match="did you mean 'moved'"):
        read_tolerance(["move=1"])
    with pytest.raises(RecipeError, match=r"'' is not a number; write cost=1\.5"):
        read_tolerance(["cost"])
    with pytest.raises(RecipeError, match="'nan' is not a number"):
        read_tolerance(["steps=nan"])
