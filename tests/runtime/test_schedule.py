"""The schedule against diffusers' own scheduler, and the three predictions against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quaver.runtime.errors import ArtifactError, QuaverError
from quaver.runtime.schedule import (
    Schedule,
    alpha_bar_at,
    load_schedule,
    previous,
    read_schedule,
    timesteps,
    to_eps,
)

AUDIOLDM = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "v_prediction",
}


def reference(**config):
    return pytest.importorskip("diffusers").DDIMScheduler(**{k: v for k, v in config.items() if k != "_class_name"})


@pytest.mark.parametrize(
    "config",
    [
        AUDIOLDM,
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(1e-3, 0.3, 50).tolist(), "num_train_timesteps": 50},
    ],
)
def test_alpha_bar_is_that_of_diffusers_to_float32(config):
    ours, theirs = read_schedule(config), reference(**config)
    np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=2e-5, atol=1e-9)
    assert ours.alpha_bar_final == pytest.approx(float(theirs.final_alpha_cumprod), rel=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 27, 50, 100, 200, 333, 999])
def test_timesteps_are_those_of_diffusers(spacing, offset, steps):
    config = {**AUDIOLDM, "timestep_spacing": spacing, "steps_offset": offset}
    theirs = reference(**config)
    theirs.set_timesteps(steps)
    ours = timesteps(read_schedule(config), steps)
    assert ours.dtype == np.int64
    assert ours.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [61, 103, 121, 201])
def test_trailing_steps_are_as_many_as_asked_where_rounding_makes_one_more(steps):
    visited = timesteps(read_schedule({**AUDIOLDM, "timestep_spacing": "trailing"}), steps)
    assert len(visited) == steps and visited[0] == 999
    assert visited.tolist() == [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]


def test_latent_diffusion_visits_951_to_1_in_20_steps_and_ends_at_the_first_level():
    schedule = read_schedule(AUDIOLDM)
    visited = timesteps(schedule, 20)
    assert visited.tolist() == list(range(951, 0, -50))
    assert previous(schedule, 951, 20) == 901
    assert alpha_bar_at(schedule, previous(schedule, 1, 20)) == schedule.alpha_bar[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_returns_the_noise_it_was_made_of(prediction):
    schedule = read_schedule({**AUDIOLDM, "prediction_type": prediction})
    rng = np.random.default_rng(0)
    x_0, eps = rng.standard_normal((2, 2, 3, 4, 4))
    for t in (0, 1, 500, 999):
        a = schedule.alpha_bar[t]
        x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * eps
        out = {"epsilon": eps, "sample": x_0, "v_prediction": np.sqrt(a) * eps - np.sqrt(1 - a) * x_0}[prediction]
        np.testing.assert_allclose(to_eps(out, x_t, t, schedule), eps, atol=1e-10)


def test_v_error_is_eps_error_over_the_signal_level():
    """Statement 10: at fixed x_t, D_eps = sqrt(a) D_v."""
    schedule = read_schedule(AUDIOLDM)
    rng = np.random.default_rng(1)
    x_t, v, error = rng.standard_normal((3, 1, 2, 4, 4))
    moved = to_eps(v + error, x_t, 701, schedule) - to_eps(v, x_t, 701, schedule)
    np.testing.assert_allclose(moved, np.sqrt(schedule.alpha_bar[701]) * error, atol=1e-12)


def test_samples_are_clipped_only_where_the_configuration_clips():
    assert read_schedule(AUDIOLDM).clip is None
    assert read_schedule({"_class_name": "PNDMScheduler", "beta_start": 1e-4}).clip is None
    assert read_schedule({"_class_name": "DDIMScheduler"}).clip == 1.0
    assert read_schedule({"clip_sample": True, "clip_sample_range": 3.0}).clip == 3.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"beta_schedule": "cosine"}, "scaled_linear"),
        ({"prediction_type": "flow"}, "v_prediction"),
        ({"timestep_spacing": "karras"}, "trailing"),
        ({"rescale_betas_zero_snr": True}, "set it to false"),
        ({"thresholding": True}, "set it to false"),
        ({"beta_start": "x"}, "beta_start = 'x', expected a number"),
        ({"beta_end": float("nan")}, "beta_end = nan, expected a number"),
        ({"steps_offset": None}, "steps_offset = None, expected a number"),
        ({"clip_sample": True, "clip_sample_range": []}, r"clip_sample_range = \[\], expected a number"),
        ({"beta_start": -1.0}, "no betas from 0 to below 1"),
        ({"beta_end": 1.5}, "no betas from 0 to below 1"),
        ({"num_train_timesteps": 0}, "no betas from 0 to below 1"),
        ({"num_train_timesteps": -5}, "no betas from 0 to below 1"),
        ({"trained_betas": []}, "no betas from 0 to below 1"),
        ({"trained_betas": ["a"]}, "no betas from 0 to below 1"),
    ],
)
def test_what_is_not_supported_is_refused_with_what_is(change, says):
    with pytest.raises(ArtifactError, match=says):
        read_schedule({**AUDIOLDM, **change})


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts_say_the_range(steps):
    with pytest.raises(QuaverError, match="expected 1 to 1000"):
        timesteps(read_schedule(AUDIOLDM), steps)


def test_a_timestep_beyond_the_last_one_says_the_range():
    with pytest.raises(QuaverError, match="timestep 1000 is beyond the last one of this model, 999"):
        alpha_bar_at(read_schedule(AUDIOLDM), 1000)


def test_an_offset_beyond_the_last_timestep_says_so():
    with pytest.raises(QuaverError, match="use fewer steps"):
        timesteps(read_schedule(AUDIOLDM), 1000)


def test_a_missing_or_broken_file_is_one_line_with_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="quaver run"):
        load_schedule(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArtifactError, match="quaver run"):
        load_schedule(tmp_path / "broken.json")


def test_a_written_configuration_is_read_back(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(AUDIOLDM))
    schedule = load_schedule(tmp_path / "scheduler_config.json")
    assert isinstance(schedule, Schedule)
    assert (schedule.prediction, schedule.steps_offset, schedule.spacing) == ("v_prediction", 1, "leading")
    assert schedule.alpha_bar.dtype == np.float64


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_a_scheduler_of_no_discrete_diffusion_is_refused(name):
    config = dict(getattr(pytest.importorskip("diffusers"), name)().config)
    with pytest.raises(ArtifactError, match=f"is a {name} and has no betas .*, as DDIMScheduler or DDPMScheduler"):
        read_schedule({**config, "_class_name": name})


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_every_scheduler_with_betas_is_read(name):
    config = dict(getattr(pytest.importorskip("diffusers"), name)().config)
    assert len(read_schedule({**config, "_class_name": name}).alpha_bar) == 1000
