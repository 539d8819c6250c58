from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.runtime.artifact import Stamp, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure import explained
from quaver.runtime.measure.trajectories import Pairs, take
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.schedule import alpha_bar_at
from quaver.runtime.session import open_bundle

SETTINGS = SamplingSettings(steps=4, guidance=1.0)
PAIRS = Pairs(("a soft note", "a bright drum", "a cello note"), (1, 2, 3))


def test_a_correction_that_halves_the_error_explains_three_quarters_of_it():
    plain = np.random.default_rng(0).uniform(1, 2, size=(2, 8))
    first, second = explained.explained_error(plain * np.array([[0.25], [1.5]]), plain, rng=np.random.default_rng(0))
    assert [first.low, first.value, first.high] == pytest.approx([0.75] * 3)
    assert second.value == pytest.approx(-0.5)
    (none,) = explained.explained_error(np.zeros((1, 8)), np.zeros((1, 8)), rng=np.random.default_rng(0))
    assert none.value == 0.0


class Gain:
    """An engine that answers so many times its sample."""

    def __init__(self, gain: float) -> None:
        self.gain, self.inputs = gain, ("sample", "timestep", "class_labels")

    def __call__(self, feeds: Any) -> np.ndarray:
        return self.gain * feeds["sample"]


def test_errors_are_taken_on_the_states_of_the_float_trajectory(tiny_bundle: Bundle):
    """v = g x gives eps = sqrt(a) g x + sqrt(1 - a) x, so gains 1.1 and 1 differ by 0.1 sqrt(a) x_t."""
    with open_bundle(tiny_bundle, engine_file="float") as session:
        reference, judged = replace(session, engine=Gain(1.0)), replace(session, engine=Gain(1.1))
        states = take(reference, PAIRS, SETTINGS, batch=2, decode=False).states
        errors = explained.step_errors(reference, judged, PAIRS, states, SETTINGS, ["none"], batch=2)["none"]
        at = visited(SETTINGS, session.schedule)[1:]
        a = np.array([alpha_bar_at(session.schedule, t) for t in at.tolist()])
    sizes = (states[:-1].astype(np.float64) ** 2).reshape(3, 3, -1).sum(axis=2)
    assert errors[1:] == pytest.approx(0.01 * a[:, None] * sizes, rel=1e-4)


def test_taking_off_the_mean_error_explains_some_of_it(tiny_bundle: Bundle):
    rows = [{"id": str(i), "text": "a soft note", "split": split} for i, split in enumerate(("calib", "validate"))]
    save_lines(tiny_bundle.prompts, rows, Stamp("prompts"))
    fit = StatsSettings(trajectories=8)
    collect_error_stats(tiny_bundle, fit, SETTINGS, stamp=Stamp("stats"), progress=quiet())
    with open_bundle(tiny_bundle, engine_file="float") as reference, open_bundle(tiny_bundle) as judged:
        states = take(reference, PAIRS, SETTINGS, decode=False).states
        errors = explained.step_errors(reference, judged, PAIRS, states, SETTINGS, ["none", "mean"])
    by_mean = explained.explained_error(errors["mean"], errors["none"], rng=np.random.default_rng(0))
    by_none = explained.explained_error(errors["none"], errors["none"], rng=np.random.default_rng(0))
    assert [part.value for part in by_none] == [0.0] * 4
    assert max(part.value for part in by_mean) > 0.0 and max(part.value for part in by_mean) < 1.0
