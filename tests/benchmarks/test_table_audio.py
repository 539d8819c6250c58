from __future__ import annotations

import numpy as np
import pytest

from benchmarks.orders import Measured
from benchmarks.table_audio import claims, divergence, log_softmax, ratio
from quaver.runtime.measure.quality import Interval


def interval(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01)


def test_divergence_is_that_of_two_coins_averaged_over_attributes():
    p, q = 0.25, 0.5
    against = {"log.family": np.log([[p, 1 - p]]), "log.register": np.log([[q, 1 - q]]), "features": np.zeros((1, 4))}
    of = {"log.family": np.log([[q, 1 - q]]), "log.register": np.log([[q, 1 - q]])}
    closed = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert divergence(of, against) == pytest.approx([closed / 2])


def test_log_probabilities_of_large_logits_are_finite_and_sum_to_one():
    found = log_softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]]))
    assert np.exp(found).sum(axis=1) == pytest.approx([1, 1]) and found[0, 0] == pytest.approx(np.log(0.5))


def test_a_ratio_keeps_the_pairing_of_resampled_clips():
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    found = ratio(Measured(22.0, 22 + 2.2 * noise, np.zeros(1)), Measured(10.0, 10 + noise, np.zeros(1)))
    assert found.value == pytest.approx(2.2) and found.high - found.low < 0.05


def test_each_width_is_judged_by_its_best_correction_and_its_own_budget():
    def row(bits: str, against: float, points: float) -> dict:
        return {"bits": bits, "against FP": interval(against), "points to FP": interval(points)}

    rows = [row("8W8A", 1.2, -3.0), row("8W8A auto", 1.04, -1.0), row("4W8A", 1.16, -4.0), row("4W8A auto", 1.3, 0.0)]
    assert list(claims([{"bits": "FP", "against FP": "", "points to FP": ""}, *rows]).items()) == [
        ("8W8A: set distance at most 5% above FP's (8W8A auto)", True),
        ("8W8A: text agreement within 2 points of FP (8W8A auto)", True),
        ("4W8A: set distance at most 15% above FP's (4W8A)", False),
        ("4W8A: text agreement within 5 points of FP (4W8A)", True),
    ]
