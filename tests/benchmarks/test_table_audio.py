from __future__ import annotations

import numpy as np
import pytest

from benchmarks.orders import Measured
from benchmarks.table_audio import claims, divergence, ratio
from quaver.runtime.measure.quality import Interval


def interval(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01)


def test_divergence_is_that_of_two_coins_in_audiogens_form_averaged_over_attributes():
    p, q = 0.25, 0.5
    family, register = (np.log([[share, 1 - share]]) + 3 for share in (p, q))  # logits, up to a constant
    reference = {"logits.family": family, "logits.register": register, "features": np.zeros((1, 4))}
    judged = {"logits.family": register, "logits.register": register, "features": np.ones((1, 4))}
    of_family = p * np.log(p / (q + 1e-6)) + (1 - p) * np.log((1 - p) / (1 - q + 1e-6))
    of_register = -np.log1p(2e-6)  # of two equal coins: a little below 0, as published
    assert divergence(judged, reference) == pytest.approx([(of_family + of_register) / 2], rel=1e-12)


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
