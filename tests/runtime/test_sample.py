"""DDIM against diffusers, against closed-form Gaussian denoisers, and against Algorithm 1 of D2-DPM written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from quaver.runtime.correct import Corrected, correct_none, d2_deterministic, d2_stochastic, make_correct
from quaver.runtime.error_law import ErrorStats
from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.sample import SamplingSettings, advance, reduce_sigma, sample_ddim
from quaver.runtime.samplers import plan
from quaver.runtime.schedule import read_schedule, timesteps, to_eps

CONFIG = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
SCHEDULE = read_schedule(CONFIG)
SHAPE = (2, 3, 4, 4)


def seeded(index, shape):
    return np.random.default_rng([7, index]).standard_normal(shape)


def gaussian_denoiser(variance):
    """The exact posterior mean of eps when x_0 ~ N(0, variance)."""
    a = SCHEDULE.alpha_bar
    return lambda x, t: float(math.sqrt(1 - a[t]) / (a[t] * variance + 1 - a[t])) * x


def flat_stats(steps, *, mean=(0.0, 0.0), cov=((1.0, 0.0), (0.0, 0.0)), channels=1):
    visited = timesteps(SCHEDULE, steps)
    S = len(visited)
    return ErrorStats(
        visited, np.tile(np.array(mean), (S, channels, 1)), np.tile(np.array(cov), (S, channels, 1, 1)), np.full(S, 9.0)
    )


def bumpy(x, t):
    """Some nonlinear network."""
    return np.tanh(1.5 * x + 0.3) * (0.5 + t / 1500) + 0.1 * np.roll(x, 1, axis=-1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_fifty_steps_are_those_of_diffusers(prediction, eta, clip):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = {**CONFIG, "prediction_type": prediction, "clip_sample": clip, "clip_sample_range": 2.0}
    theirs, schedule = diffusers.DDIMScheduler(**config), read_schedule(config)
    theirs.set_timesteps(50)
    x_T = np.random.default_rng(0).standard_normal(SHAPE)
    x = torch.from_numpy(x_T)
    for index, t in enumerate(theirs.timesteps):
        z = torch.from_numpy(seeded(index, SHAPE))
        out = torch.from_numpy(bumpy(x.numpy(), int(t)))
        x = theirs.step(out, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
    ours = sample_ddim(lambda y, t: to_eps(bumpy(y, t), y, t, schedule), x_T, schedule, steps=50, eta=eta, noise=seeded)
    assert np.linalg.norm(ours - x.numpy()) <= 1e-5 * np.linalg.norm(x.numpy())


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("steps", [7, 30, 50])
def test_other_spacings_end_their_steps_where_diffusers_does(spacing, steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = {**CONFIG, "timestep_spacing": spacing}
    theirs = diffusers.DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    x_T = np.random.default_rng(0).standard_normal(SHAPE)
    x = torch.from_numpy(x_T)
    for t in theirs.timesteps:
        x = theirs.step(torch.from_numpy(bumpy(x.numpy(), int(t))), t, x).prev_sample
    ours = sample_ddim(bumpy, x_T, read_schedule(config), steps=steps)
    assert np.linalg.norm(ours - x.numpy()) <= 1e-5 * np.linalg.norm(x.numpy())


def test_a_gaussian_is_sampled_with_the_gain_of_the_closed_form():
    """Each DDIM step of a Gaussian is linear, so that the sample is x_T times a product that needs no sampler."""
    variance, gain = 0.5, 1.0
    a = [*SCHEDULE.alpha_bar[timesteps(SCHEDULE, 20)], SCHEDULE.alpha_bar[0]]
    for now, then in itertools.pairwise(a):
        v = now * variance + 1 - now
        gain *= math.sqrt(then) * math.sqrt(now) * variance / v + math.sqrt(1 - then) * math.sqrt(1 - now) / v
    x_T = np.random.default_rng(1).standard_normal(SHAPE)
    np.testing.assert_allclose(
        sample_ddim(gaussian_denoiser(variance), x_T, SCHEDULE, steps=20), gain * x_T, rtol=1e-12
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_many_steps_reach_the_variance_of_the_data(eta):
    variance, x_T = 0.5, np.random.default_rng(2).standard_normal((1, 1, 120, 120))
    x_0 = sample_ddim(gaussian_denoiser(variance), x_T, SCHEDULE, steps=500, eta=eta, noise=seeded)
    assert x_0.var() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_unit_change_of_eps_moves_the_step_by_exactly_k(eta):
    """Statement 1: k(s) = sqrt(1 - a' - s^2) - sqrt(a' (1 - a) / a)."""
    x, eps, z = np.random.default_rng(3).standard_normal((3, *SHAPE))
    for numbers in plan("ddim", SCHEDULE, steps=20, eta=eta).moves:
        a, a_prev, s = numbers.a, numbers.a_prev, numbers.sigma
        k = math.sqrt(max(1 - a_prev - s * s, 0)) - math.sqrt(a_prev * (1 - a) / a)
        low, *_ = advance(numbers, x, Corrected(eps), z)
        high, *_ = advance(numbers, x, Corrected(eps + 1.0), z)
        assert numbers.k == pytest.approx(k, rel=1e-12)
        np.testing.assert_allclose(high - low, k, atol=1e-12)
        assert k <= 0


def plain_ddim(x, steps, eta, noise):
    """The sampler of the paper (arXiv:2010.02502, eq. 12) written out, with nothing in it that could correct."""
    visited = timesteps(SCHEDULE, steps)
    for i, t in enumerate(visited):
        a = float(SCHEDULE.alpha_bar[t])
        b = float(SCHEDULE.alpha_bar[t - 1000 // steps] if t >= 1000 // steps else SCHEDULE.alpha_bar[0])
        sigma = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        e = bumpy(x, t)
        x_0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        x = math.sqrt(b) * x_0 + float(np.sqrt(1 - b - sigma**2)) * e
        x = x + float(sigma) * noise(i, x.shape) if eta else x
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_correction_off_is_the_plain_sampler_to_the_bit(eta):
    """Statement 6: by its name, whatever statistics there are."""
    x_T = np.random.default_rng(4).standard_normal(SHAPE)
    stats = flat_stats(20, mean=(0.1, 0.02), cov=((1.0, 0.1), (0.1, 0.05)))
    for correct in (correct_none, make_correct("none", stats, seeded)):
        ours = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=eta, noise=seeded, correct=correct)
        assert ours.tobytes() == plain_ddim(x_T, 20, eta, seeded).tobytes()


def test_a_correction_that_draws_leaves_the_samplers_own_noise_alone():
    """Statement 3: two streams; the sampler asks for the same noise with S-D2 and without."""
    stats, x_T = flat_stats(20, cov=((1.0, 0.1), (0.1, 0.05))), np.random.default_rng(5).standard_normal(SHAPE)
    asked = {"plain": [], "sampler": [], "correction": []}

    def stream(name):
        return lambda index, shape: asked[name].append(index) or seeded(index + 100 * (name == "correction"), shape)

    sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=1.0, noise=stream("plain"))
    correct = d2_stochastic(stats, stream("correction"))
    first = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=1.0, noise=stream("sampler"), correct=correct)
    assert asked["plain"] == asked["sampler"] == asked["correction"] == list(range(20))
    again = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=1.0, noise=seeded, correct=correct)
    assert first.tobytes() == again.tobytes()


def test_zero_error_statistics_are_the_plain_sampler_to_the_bit():
    """Statement 6: with noise and without, deterministic and stochastic, float32; statement 20: so is C11 = 0."""
    x_T = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    for eta in (0.0, 1.0):
        plain = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=eta, noise=seeded)
        for channels in (1, 3):
            stats = flat_stats(20, channels=channels)
            for correct in (
                d2_deterministic(stats),
                d2_deterministic(stats, variance_mode="consistent"),
                d2_stochastic(stats, seeded),
            ):
                same = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=eta, noise=seeded, correct=correct)
                assert same.dtype == np.float32
                assert same.tobytes() == plain.tobytes()


def test_deterministic_correction_without_sampler_noise_is_deterministic():
    """Statement 3: at eta = 0 sigma stays 0, no noise is asked for, and nothing counts as clipped."""
    stats = flat_stats(20, mean=(0.1, 0.02), cov=((1.0, 0.1), (0.1, 0.05)))
    steps = []
    x_T = np.random.default_rng(5).standard_normal(SHAPE)
    first = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, correct=d2_deterministic(stats), on_step=steps.append)
    second = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, correct=d2_deterministic(stats))
    assert first.tobytes() == second.tobytes()
    assert sum(step.clipped for step in steps) == 0


def test_a_residual_larger_than_the_noise_is_clipped_to_zero_and_counted():
    """Statement 4: s^2 - k^2 r^2 < 0 gives sigma exactly 0, a count per channel, and never NaN."""
    sigma, clipped = reduce_sigma(0.1, -2.0, np.array([0.0, 0.001, 0.0025, 5.0]).reshape(4, 1, 1))
    np.testing.assert_allclose(sigma.ravel(), [0.1, math.sqrt(0.006), 0.0, 0.0], atol=1e-8)
    assert sigma.ravel()[3] == 0.0
    assert clipped == 1
    steps = []
    stats = flat_stats(20, cov=((1.0, 0.0), (0.0, 9.0)), channels=3)
    x_T = np.random.default_rng(6).standard_normal(SHAPE)
    x_0 = sample_ddim(
        bumpy, x_T, SCHEDULE, steps=20, eta=1.0, noise=seeded, correct=d2_deterministic(stats), on_step=steps.append
    )
    assert np.isfinite(x_0).all()
    assert [step.clipped for step in steps] == [3] * 20


def step_variance(numbers, mode, residual, gain, variance):
    """Var x' when x ~ N(0, variance), e = gain x + D and Var D = residual: the step is linear in x, D and z."""

    def moved(x, D, z):
        fixed = Corrected(
            np.array(gain * x + D), residual if mode != "none" else 0.0, mode if mode != "none" else "paper"
        )
        return float(advance(numbers, np.array(x), fixed, np.array(z))[0])

    by_x, by_error, by_noise = moved(1.0, 0.0, 0.0), moved(0.0, 1.0, 0.0), moved(0.0, 0.0, 1.0)
    return by_x**2 * variance + by_error**2 * residual + by_noise**2


def test_consistent_mode_returns_the_variance_of_the_error_free_step():
    """Statement 5: to 1e-12 where unclipped; the published placement is off by more than doing nothing."""
    off = {"none": [], "paper": []}
    for numbers in plan("ddim", SCHEDULE, steps=20, eta=1.0).moves[:-1]:
        gain = math.sqrt(1 - numbers.a) / (numbers.a * 0.5 + 1 - numbers.a)
        variance, residual = numbers.a * 0.5 + 1 - numbers.a, 0.05**2
        free = step_variance(numbers, "none", 0.0, gain, variance)
        assert reduce_sigma(numbers.sigma, numbers.k, residual)[1] == 0
        assert step_variance(numbers, "consistent", residual, gain, variance) == pytest.approx(free, rel=1e-12)
        for mode, values in off.items():
            values.append(step_variance(numbers, mode, residual, gain, variance) / free - 1)
    assert 0 < np.mean(off["none"]) < np.mean(off["paper"])


def algorithm_1(q_of, x, stats, steps, noise):
    """Lines 7-21 of Algorithm 1, deterministic, isotropic, as printed; alpha is alpha_bar and Sigma = s^2 I."""
    visited = timesteps(SCHEDULE, steps)
    for i, t in enumerate(visited):
        alpha = SCHEDULE.alpha_bar[t]
        before = SCHEDULE.alpha_bar[t - 50] if t >= 50 else SCHEDULE.alpha_bar[0]
        sigma = np.sqrt((1 - before) / (1 - alpha) * (1 - alpha / before))
        (C00, C01), (_, C11) = stats.cov[i, 0]
        mu_q, mu_D = stats.mean[i, 0]
        rho = C01 / (np.sqrt(C00) * np.sqrt(C11))
        q = q_of(x, t)
        E = q - (mu_D + rho * np.sqrt(C11) / np.sqrt(C00) * (q - mu_q))
        k = np.sqrt(max(1 - before - sigma**2, 0.0)) - np.sqrt(before * (1 - alpha) / alpha)
        sigma = np.sqrt(max(sigma**2 - k**2 * (C11 * (1 - rho**2)), 0.0))
        x_0 = (x - np.sqrt(1 - alpha) * E) / np.sqrt(alpha)
        x = np.sqrt(before) * x_0 + np.sqrt(1 - before - sigma**2) * E + sigma * noise(i, x.shape)
    return x


def test_paper_mode_is_algorithm_1_to_the_bit():
    """Statement 5: float64."""
    stats = flat_stats(20, mean=(0.05, 0.01), cov=((0.9, 0.02), (0.02, 0.004)))
    x_T = np.random.default_rng(8).standard_normal(SHAPE)
    ours = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, eta=1.0, noise=seeded, correct=d2_deterministic(stats))
    assert ours.tobytes() == algorithm_1(bumpy, x_T, stats, 20, seeded).tobytes()


def test_every_step_is_shown_with_its_index_timestep_and_arrays():
    steps = []
    x_T = np.random.default_rng(9).standard_normal(SHAPE)
    stats = flat_stats(20, mean=(0.0, 0.5))
    x_0 = sample_ddim(bumpy, x_T, SCHEDULE, steps=20, correct=d2_deterministic(stats), on_step=steps.append)
    assert [step.index for step in steps] == list(range(20))
    assert [step.t for step in steps] == timesteps(SCHEDULE, 20).tolist()
    assert steps[0].x_t is x_T
    assert steps[-1].x_prev is x_0
    for before, after in itertools.pairwise(steps):
        assert before.x_prev is after.x_t
        np.testing.assert_array_equal(before.eps, before.eps_raw - 0.5)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_array_libraries_sample_the_same(library, channels):
    xp = pytest.importorskip(library)
    stats = flat_stats(20, mean=(0.02, 0.01), cov=((0.9, 0.1), (0.1, 0.05)), channels=channels)
    x_T = np.random.default_rng(10).standard_normal(SHAPE)
    denoise = gaussian_denoiser(0.5)
    for make in (d2_deterministic, lambda s: d2_stochastic(s, lambda i, shape: seeded(100 + i, shape))):
        expected = sample_ddim(denoise, x_T, SCHEDULE, steps=20, eta=1.0, noise=seeded, correct=make(stats))
        got = sample_ddim(denoise, xp.asarray(x_T), SCHEDULE, steps=20, eta=1.0, noise=seeded, correct=make(stats))
        assert type(got) is type(xp.asarray(x_T))
        np.testing.assert_allclose(np.from_dlpack(got), expected, atol=1e-12)


def test_noise_is_asked_for_when_the_sampler_adds_some():
    with pytest.raises(QuaverError, match="pass noise="):
        sample_ddim(bumpy, np.zeros(SHAPE), SCHEDULE, steps=20, eta=1.0)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"steps": 0}, "1 or more"),
        ({"eta": 1.5}, "0 to 1"),
        ({"guidance": float("nan")}, "finite"),
        ({"sampler": "eular"}, "did you mean 'euler'"),
        ({"sampler": "euler", "eta": 0.5}, "0: euler has noise of its own"),
    ],
)
def test_settings_that_cannot_be_meant_name_the_range(setting, says):
    with pytest.raises(RecipeError, match=says):
        SamplingSettings(**setting)
