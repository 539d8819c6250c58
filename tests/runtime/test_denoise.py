"""Engines as denoisers: what is said of bad outputs, and that the corrections do not see how an engine reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quaver.runtime.correct import d2_deterministic
from quaver.runtime.denoise import check_finite, denoiser, initial_noise, step_noise
from quaver.runtime.error_law import ErrorStats
from quaver.runtime.errors import EngineError, QuaverError
from quaver.runtime.family import find_family
from quaver.runtime.generate import generate_from
from quaver.runtime.measure.trajectories import Pairs, take
from quaver.runtime.sample import SamplingSettings, sample_ddim
from quaver.runtime.schedule import read_schedule, timesteps
from quaver.runtime.session import open_bundle

FAMILY = find_family("audioldm")
SCHEDULE = read_schedule(
    {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}
)
COND, UNCOND = {"class_labels": np.array([[0.5], [1.0]])}, {"class_labels": np.array([[0.1]])}


def reporting(schedule):
    """An engine that knows one eps and reports it as the schedule's prediction."""

    def engine(feeds):
        x, t = feeds["sample"], int(feeds["timestep"][0])
        assert feeds["timestep"].dtype == np.int64
        assert feeds["timestep"].shape == (len(x),)
        eps = np.tanh(x) * feeds["class_labels"][:, :, None, None]
        noise, signal = np.sqrt(1 - schedule.alpha_bar[t]), np.sqrt(schedule.alpha_bar[t])
        v, x_0 = (eps - noise * x) / signal, (x - noise * eps) / signal
        return {"epsilon": eps, "v_prediction": v, "sample": x_0}[schedule.prediction]

    return engine


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_corrected_sample_does_not_depend_on_what_the_engine_predicts(prediction, guidance):
    """Statement 10: statistics are of the guided eps, whatever the network reports."""
    visited = timesteps(SCHEDULE, 10)
    mean, cov = np.full((10, 1, 2), 0.02), np.tile([[0.8, 0.1], [0.1, 0.05]], (10, 1, 1, 1))
    correct = d2_deterministic(ErrorStats(visited, mean, cov, np.full(10, 9.0)))
    x_T = initial_noise([1, 2], (1, 4, 4)).astype(np.float64)
    samples = []
    for schedule in (SCHEDULE, replace(SCHEDULE, prediction=prediction)):
        denoise = denoiser(reporting(schedule), FAMILY, COND, UNCOND, schedule, guidance)
        samples.append(
            sample_ddim(denoise, x_T, schedule, steps=10, eta=1.0, correct=correct, noise=step_noise([1, 2]))
        )
    np.testing.assert_allclose(samples[0], samples[1], rtol=1e-8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [1, 4])
def test_the_sample_of_a_row_is_named_in_either_branch(value, row):
    out = np.zeros((6, 1, 2, 2))
    out[row, 0, 1, 1] = value
    with pytest.raises(EngineError, match=r"timestep 51 is not finite for seed 8 \(1 of 6 rows\)"):
        check_finite(out, 51, ["seed 7", "seed 8", "seed 9"])
    check_finite(np.zeros((6, 1, 2, 2)), 51)


def test_a_bad_output_never_reaches_the_sampler():
    steps = []

    def engine(feeds):
        return np.where(feeds["timestep"][0] < 500, np.nan, 0.0) * feeds["sample"]

    denoise = denoiser(engine, FAMILY, COND, UNCOND, SCHEDULE, 2.0)
    with pytest.raises(EngineError, match="row 0"):
        sample_ddim(denoise, initial_noise([1, 2], (1, 4, 4)), SCHEDULE, steps=10, on_step=steps.append)
    assert [step.t for step in steps] == [900, 800, 700, 600, 500]
    assert all(np.isfinite(step.x_prev).all() for step in steps)


def test_a_fraction_of_a_timestep_is_refused_with_what_to_do():
    denoise = denoiser(reporting(SCHEDULE), FAMILY, COND, UNCOND, SCHEDULE, 1.0)
    with pytest.raises(QuaverError, match=r"947\.37 .* 'leading'"):
        denoise(initial_noise([1, 2], (1, 4, 4)), 947.37)


def counting(session, calls):
    """The session, with a text encoder that notes how many prompts it is asked for."""

    def embed(parts, prompts):
        calls.append(len(prompts))
        return session.family.embed(parts, prompts)

    return replace(session, family=replace(session.family, embed=embed))


def test_prompts_are_embedded_once_a_batch_and_not_once_a_step(made_bundle):
    settings, calls = SamplingSettings(steps=6, guidance=3.0), []
    with open_bundle(made_bundle, threads=1) as opened:
        session = counting(opened, calls)
        list(generate_from(session, ["drum"] * 5, range(5), settings, batch=2, decode=False))
        assert calls == [2, 2, 1]
        calls.clear()
        take(session, Pairs(("drum",) * 3, (1, 2, 3)), settings, batch=2, decode=False)
        assert calls == [2, 1]


def test_the_rows_of_both_branches_are_stacked_once_a_trajectory():
    fed = []

    def engine(feeds):
        fed.append(feeds["class_labels"])
        return np.zeros_like(feeds["sample"])

    x = np.ones((2, 1, 2, 2))
    denoise = denoiser(engine, FAMILY, COND, UNCOND, SCHEDULE, 3.0)
    for t in (501, 301, 1):
        denoise(x, t)
    assert fed[0].shape == (4, 1)
    assert fed[0] is fed[1] is fed[2]
