from __future__ import annotations

import pytest

from quaver.runtime.measure import units


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0463, "4.6%"), (0.0046, "0.46%"), (0.0, "0.0%"), (1.25, "125.0%"), (0.1, "10.0%")]
)
def test_percentages_keep_two_digits(value: float, expected: str):
    assert units.percent(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.0213, "21.3 ms"), (0.32, "320 ms"), (1.5, "1.50 s")])
def test_seconds_take_the_unit_that_reads_best(value: float, expected: str):
    assert units.milliseconds(value) == expected


def test_an_interval_is_spelled_out():
    assert units.span({"low": 0.01, "high": 0.02, "value": 0.015}, units.percent) == "1.0% to 2.0%"
    assert units.times({"low": 1.1, "high": 1.25, "value": 1.2}) == "1.10× to 1.25×"


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 pairs of calls"), (1, "1 pair of calls"), (2, "2 pairs of calls")]
)
def test_what_is_counted_is_one_or_many(number: int, expected: str):
    assert units.counted(number, "pair of calls") == expected
    assert units.counted(1, "thread") == "1 thread"
