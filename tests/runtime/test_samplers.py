"""Every sampler against the diffusers scheduler of its name, and what all of them share in closed form."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest

from quaver.runtime.correct import Corrected, make_correct
from quaver.runtime.error_law import ErrorStats
from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.sample import SAMPLERS, advance, sample
from quaver.runtime.samplers import PLANS, plan
from quaver.runtime.schedule import PREDICTIONS, read_schedule, to_eps

CONFIG = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SHAPE = (2, 3, 4, 4)
THEIRS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}


def seeded(index, shape):
    return np.random.default_rng([7, index]).standard_normal(shape)


def bumpy(x, t):
    """Some nonlinear network."""
    return np.tanh(1.5 * x + 0.3) * (0.5 + t / 1500) + 0.1 * np.roll(x, 1, axis=-1)


def drawn_by_diffusers(name, config, steps, monkeypatch, answer=bumpy):
    """x_0 and the timesteps of a diffusers scheduler, from our x_T and with our noise."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    kind = getattr(diffusers, THEIRS[name][0])
    theirs = kind(**config)
    theirs.set_timesteps(steps)
    drawn = itertools.count()
    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(
        module, "randn_tensor", lambda shape, **_: torch.from_numpy(seeded(next(drawn), tuple(shape))), raising=False
    )
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE)) * theirs.init_noise_sigma
    for t in theirs.timesteps:
        out = answer(theirs.scale_model_input(x, t).double().numpy(), float(t))
        x = theirs.step(torch.from_numpy(out), t, x).prev_sample
    return x.numpy(), theirs.timesteps.numpy()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("linspace", 1), ("trailing", 1)])
def test_fifty_steps_are_those_of_diffusers(name, prediction, spacing, offset, monkeypatch):
    wanted = {"prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": offset}
    config = {**CONFIG, **wanted, **THEIRS[name][1]}
    schedule, answer = read_schedule({"clip_sample": False, **config}), bumpy
    if (name, prediction) == ("euler-ancestral", "sample"):  # which theirs does not read: it is told the same as eps
        config, answer = config | {"prediction_type": "epsilon"}, lambda y, t: to_eps(bumpy(y, t), y, t, schedule)
    expected, visited = drawn_by_diffusers(name, config, 50, monkeypatch, answer)
    ours = plan(name, schedule, steps=50).timesteps
    np.testing.assert_allclose(ours, visited, rtol=0 if ours.dtype.kind == "i" else 1e-6)
    x_T = np.random.default_rng(0).standard_normal(SHAPE)
    denoise = lambda y, t: to_eps(bumpy(y, t), y, t, schedule)  # noqa: E731
    ours = SAMPLERS[name](denoise, x_T, schedule, steps=50, noise=seeded)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("settings", [{"clip_sample": True}, {"variance_type": "fixed_large", "clip_sample": False}])
@pytest.mark.parametrize("steps", [7, 50])
def test_ddpm_clips_and_spreads_as_diffusers_does(settings, steps, monkeypatch):
    config = {**CONFIG, **settings}
    expected, _ = drawn_by_diffusers("ddpm", config, steps, monkeypatch)
    schedule = read_schedule(config)
    ours = SAMPLERS["ddpm"](bumpy, np.random.default_rng(0).standard_normal(SHAPE), schedule, steps=steps, noise=seeded)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", THEIRS)
def test_a_sampler_bounds_the_samples_of_a_model_that_does_where_the_scheduler_of_its_name_would(name, monkeypatch):
    """Most schedulers do not know of clipping, and leave that setting alone."""
    kind, settings = THEIRS[name]
    config = {**CONFIG, **settings, "clip_sample": True}
    takes = inspect.signature(getattr(pytest.importorskip("diffusers"), kind)).parameters
    known = {key: value for key, value in config.items() if key in takes}
    expected, _ = drawn_by_diffusers(name, known, 20, monkeypatch)
    x_T, schedule = np.random.default_rng(0).standard_normal(SHAPE), read_schedule(config)
    ours = SAMPLERS[name](bumpy, x_T, schedule, steps=20, noise=seeded)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
    assert (np.abs(expected).max() < 1.1) == (name in ("ddim", "ddpm"))


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["dpmsolver++", "sde-dpmsolver++"])
def test_few_steps_of_a_multistep_sampler_are_those_of_diffusers(name, steps, monkeypatch):
    config = {**CONFIG, **THEIRS[name][1]}
    expected, _ = drawn_by_diffusers(name, config, steps, monkeypatch)
    schedule = read_schedule({"clip_sample": False, **config})
    ours = SAMPLERS[name](bumpy, np.random.default_rng(0).standard_normal(SHAPE), schedule, steps=steps, noise=seeded)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", PLANS)
def test_a_unit_change_of_eps_moves_every_step_by_exactly_its_k(name):
    """Statement 1: for every sampler."""
    x, eps, z, before = np.random.default_rng(3).standard_normal((4, *SHAPE))
    for move in plan(name, read_schedule({**CONFIG, "clip_sample": False}), steps=20, eta=0.0).moves:
        low, *_ = advance(move, x, Corrected(eps), z, before=before)
        high, *_ = advance(move, x, Corrected(eps + 1.0), z, before=before)
        np.testing.assert_allclose(high - low, move.k, atol=1e-11)


@pytest.mark.parametrize("correct", ["mean", "ptqd", "d2-deterministic", "d2-consistent", "d2-stochastic"])
@pytest.mark.parametrize("name", PLANS)
def test_an_error_that_a_correction_knows_leaves_no_trace_in_any_sampler(name, correct):
    """Also not in what a multistep sampler remembers: it is of the corrected eps."""
    made = plan(name, read_schedule({**CONFIG, "clip_sample": False}), steps=8, eta=1.0 if name == "ddim" else 0.0)
    rng = np.random.default_rng(2)
    errors, x_T = 0.2 * rng.standard_normal((8, SHAPE[1])), rng.standard_normal(SHAPE)
    mean = np.stack([np.zeros_like(errors), errors], axis=-1)
    cov = np.broadcast_to(np.diag([1.0, 0.0]), (*errors.shape, 2, 2))
    law = make_correct(correct, ErrorStats(made.timesteps, mean, cov, np.full(8, 9.0)), seeded)
    wrong = dict(zip(made.timesteps.tolist(), errors[:, :, None, None], strict=True))
    right = sample(bumpy, x_T, made, noise=seeded)
    got = sample(lambda x, t: bumpy(x, t) + wrong[t], x_T, made, correct=law, noise=seeded)
    np.testing.assert_allclose(got, right, atol=1e-11)
    off = sample(lambda x, t: bumpy(x, t) + wrong[t], x_T, made, noise=seeded)
    assert np.abs(off - right).max() > 1e-2


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-ancestral", "sde-dpmsolver++"])
def test_a_step_with_noise_keeps_its_variance_when_a_residual_is_absorbed(name):
    """x' of the consistent mode varies by s^2 as it does without error: k^2 r^2 + s_new^2 = s^2."""
    residual = 0.02**2
    for move in plan(name, read_schedule({**CONFIG, "clip_sample": False}), steps=20, eta=float(name == "ddim")).moves:
        if move.k**2 * residual >= move.sigma**2:
            continue
        fixed = Corrected(np.zeros(1), residual, "consistent")
        still, *_ = advance(move, np.zeros(1), fixed, np.zeros(1))
        moved, *_ = advance(move, np.zeros(1), fixed, np.ones(1))
        assert float((moved - still)[0]) ** 2 + move.k**2 * residual == pytest.approx(move.sigma**2, rel=1e-9)


def test_the_second_order_beats_the_first_on_a_gaussian():
    """Data of variance v: the ODE carries x_T to x_t = x_T sqrt(v_t / v_T), v_t = a_t v + 1 - a_t."""
    schedule = read_schedule({**CONFIG, "clip_sample": False})
    v = schedule.alpha_bar * 0.5 + 1 - schedule.alpha_bar
    denoise = lambda x, t: math.sqrt(1 - float(schedule.alpha_bar[t])) / float(v[t]) * x  # noqa: E731
    errors = {}
    for name in ("euler", "dpmsolver++"):
        steps: list = []
        SAMPLERS[name](denoise, np.ones(1), schedule, steps=20, on_step=steps.append)
        exact = math.sqrt(v[steps[-1].t] / v[steps[0].t])
        errors[name] = abs(float(steps[-1].x_t[0]) - exact)
    assert errors["dpmsolver++"] < 0.2 * errors["euler"]


def test_an_unknown_sampler_names_the_nearest():
    with pytest.raises(RecipeError, match="euler"):
        plan("eular", read_schedule(CONFIG), steps=5)


def test_a_variance_that_a_network_would_predict_is_refused():
    with pytest.raises(QuaverError, match=r"learned.*ddim"):
        plan("ddpm", read_schedule({**CONFIG, "variance_type": "learned"}), steps=5)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(QuaverError, match="expected 1 to 999"):
        plan("dpmsolver++", read_schedule(CONFIG), steps=1000)
