from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quaver.runtime.bundle import Bundle
from quaver.runtime.generate import generate_from
from quaver.runtime.measure import compare, latency
from quaver.runtime.measure.trajectories import Pairs, Take
from quaver.runtime.sample import SamplingSettings, Step, visited
from quaver.runtime.session import open_bundle

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
PAIRS = Pairs(("a soft note", "a bright drum", "a cello note", "a note", "soft drum"), (1, 2, 3, 4, 5))


@dataclass
class Known:
    """An engine that answers `gain` times its sample after `seconds` on the clock `now`, and keeps what it was fed."""

    gain: float
    seconds: float
    now: list[float]
    fed: list[Mapping[str, np.ndarray]] = field(default_factory=list)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        self.fed.append(feeds)
        self.now[0] += self.seconds
        return self.gain * feeds["sample"]


@pytest.fixture
def compared(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Known, list[Step]]:
    """An engine of gain 1.1 and 20 ms against a float one of 30 ms: the figures, the float one, the steps shown."""
    now, steps = [0.0], list[Step]()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with open_bundle(tiny_bundle, engine_file="float") as session:
        list(generate_from(session, PAIRS.prompts, PAIRS.seeds, SAMPLING, batch=5, decode=False, on_step=steps.append))
        reference, judged = Known(1.0, 0.03, now), Known(1.1, 0.02, now)
        found = compare.compare_calls(
            replace(session, engine=reference),
            replace(session, engine=judged, target="ort-cpu"),
            PAIRS,
            np.stack([step.x_prev for step in steps]),
            visited(SAMPLING, session.schedule),
            runs=5,
            warmup=1,
        )
    return found, reference, steps


def test_an_engine_of_two_thirds_the_time_is_one_and_a_half_times_as_fast(compared):
    call = compared[0]
    assert call["speedup"] == pytest.approx({"value": 1.5, "low": 1.5, "high": 1.5})
    assert {name: engine["median_s"] for name, engine in call["engines"].items()} == pytest.approx(
        {"float": 0.03, "ort-cpu": 0.02}
    )
    assert call["error"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1}, rel=1e-5)


def test_a_call_is_judged_on_states_at_the_timesteps_the_sampler_saw_them_at(compared):
    _, reference, steps = compared
    shown, fed = {step.t: step.x_t for step in steps}, reference.fed[0]
    assert len(fed["sample"]) == len(PAIRS.prompts)
    assert set(fed["timestep"].tolist()) == {step.t for step in steps[1:]}
    for n, (x, t) in enumerate(zip(fed["sample"], fed["timestep"].tolist(), strict=True)):
        assert np.array_equal(x, np.float32(shown[t][n]))


def test_the_snr_of_a_step_is_the_mean_over_samples_in_decibels_and_finite():
    y = np.random.default_rng(0).normal(size=(3, 2, 2, 4, 4))
    gain = 1 + np.array([[0, 0], [0.1, 0.01], [0.1, 0.1]])[:, :, None, None, None]
    nothing = np.zeros((0, 0))
    (row,) = compare.correction_rows(Take(y, nothing, nothing), {"none": Take(gain * y, nothing, nothing)}, rate=0)
    assert row["drift_snr_db"] == pytest.approx([compare.SNR_LIMIT, 30, 20])
    assert row["drift_snr_db"][-1] == pytest.approx(row["snr_db"]["value"])


def test_a_correction_that_halves_the_error_has_a_ratio_of_one_half_to_none():
    y = np.random.default_rng(0).normal(size=(3, 6, 2, 4, 4))

    def scaled(gain: float) -> Take:
        return Take(gain * y, np.zeros((0, 0)), np.zeros((0, 0)))

    spread = np.array([0.3, 0.15, 0.05])
    none, half = compare.correction_rows(
        scaled(1.0), {"none": scaled(1.2), "half": scaled(1.1)}, rate=16000, spread=spread
    )
    assert none["latent_error"]["value"] == pytest.approx(0.2) and none["against_none"] is None
    assert half["latent_error"]["value"] == pytest.approx(0.1)
    assert half["against_none"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert (none["leaves_seeds_at"], half["leaves_seeds_at"]) == (1, 2)
    assert none["log_spectral_db"] is None and none["ssim"] is None


def test_seeds_of_few_prompts_leave_wider_intervals_than_as_many_prompts():
    """The error belongs to the prompt alone: four seeds of each say no more than one, and halve the interval."""
    error = np.tile(np.linspace(0.1, 0.2, 16), 4)[None, :, None]
    y, nothing = np.ones((1, 64, 9)), np.zeros((0, 0))

    def width(prompts: Sequence[str] | None) -> float:
        takes = {"none": Take(y + error, nothing, nothing)}
        (row,) = compare.correction_rows(Take(y, nothing, nothing), takes, rate=0, prompts=prompts)
        return row["latent_error"]["high"] - row["latent_error"]["low"]

    assert width([f"prompt {n % 16}" for n in range(64)]) == pytest.approx(2 * width(None), rel=0.15)


def test_pictures_are_compared_as_pictures():
    y = np.random.default_rng(0).uniform(-0.6, 0.6, (4, 1, 16, 16))

    def drawn(pictures: np.ndarray) -> Take:
        latents = pictures.reshape(1, 4, 1, 16, 16)
        return Take(latents, np.zeros((0, 0)), np.zeros((0, 0)), pictures)

    (row,) = compare.correction_rows(drawn(y), {"none": drawn(y + 0.2)}, rate=0)
    assert row["psnr_db"]["value"] == pytest.approx(20.0)
    assert 0.5 < row["ssim"]["value"] < 1 and row["mel_snr_db"] is None


def test_a_clip_that_only_float_leaves_silent_keeps_every_figure_finite():
    y = np.random.default_rng(0).normal(0, 0.1, (4, 4096))
    quiet = np.concatenate([np.zeros((1, 4096)), y[1:]])
    states = np.ones((2, 4, 1))
    reference, judged = (Take(states, clips, np.zeros((0, 0))) for clips in (quiet, y))
    (row,) = compare.correction_rows(reference, {"none": judged}, rate=16000)
    assert row["mel_snr_db"]["value"] == pytest.approx((3 - 1) * compare.SNR_LIMIT / 4)
    assert np.isfinite(list(row["mel_snr_db"].values())).all()
