"""Corrections against synthetic joint Gaussians whose law is known, and the record of the statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.correct import (
    Binding,
    ErrorStats,
    check_binding,
    correct_none,
    d2_consistent,
    d2_deterministic,
    d2_stochastic,
    error_law,
    load_stats,
    make_correct,
    save_stats,
)
from quaver.runtime.errors import ArtifactError, RecipeError

TIMESTEPS = np.array([951, 501, 1])
BINDING = Binding(
    engine="sha256:" + "a" * 64,
    reference="sha256:" + "b" * 64,
    backend="onnxruntime",
    sampler="ddim",
    steps=3,
    eta=0.0,
    guidance=3.0,
    prediction="v_prediction",
    latent_shape=(8, 16, 16),
)


def seeded(index, shape):
    return np.random.default_rng([11, index]).standard_normal(shape)


def gaussian_stats(mean, cov, *, channels=1):
    """The same mean [2] or [C, 2] and covariance [2, 2] or [C, 2, 2] at every timestep."""
    shape = (len(TIMESTEPS), channels)
    return ErrorStats(
        TIMESTEPS, np.broadcast_to(mean, (*shape, 2)), np.broadcast_to(cov, (*shape, 2, 2)), np.full(3, 100.0), BINDING
    )


def joint(rho, *, mu=(0.3, -0.05), s_q=0.9, s_D=0.2):
    cov = np.array([[s_q**2, rho * s_q * s_D], [rho * s_q * s_D, s_D**2]])
    return np.array(mu), cov


def drawn(mean, cov, size=400_000):
    """Outputs and errors [1, 1, size] of a joint Gaussian; the true eps is their difference."""
    pairs = np.random.default_rng(0).multivariate_normal(mean, cov, size=size)
    q, D = pairs.T.reshape(2, 1, 1, -1)
    return q, q - D


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.8, -0.8])
def test_deterministic_correction_leaves_only_the_unexplained_error(rho):
    """Facts 6.2: E (e' - e)^2 = C11 (1 - rho^2), the formula of the mean, and the residual handed to the sampler."""
    mean, cov = joint(rho)
    q, eps = drawn(mean, cov)
    fixed = d2_deterministic(gaussian_stats(mean, cov))(q, 501)
    np.testing.assert_allclose(fixed.eps, q - mean[1] - cov[0, 1] / cov[0, 0] * (q - mean[0]), atol=1e-12)
    assert np.mean((fixed.eps - eps) ** 2) == pytest.approx(0.04 * (1 - rho**2), rel=0.01)
    assert fixed.var == pytest.approx(0.04 * (1 - rho**2), rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.8])
def test_stochastic_correction_doubles_that_error_and_restores_the_variance(rho):
    """Facts 6.2: the error of S-D2 is twice that of D-D2, its variance is that of the true eps."""
    mean, cov = joint(rho)
    q, eps = drawn(mean, cov)
    fixed = d2_stochastic(gaussian_stats(mean, cov), seeded)(q, 501)
    assert np.mean((fixed.eps - eps) ** 2) == pytest.approx(2 * 0.04 * (1 - rho**2), rel=0.01)
    assert fixed.eps.var() == pytest.approx(eps.var(), rel=0.01)
    assert fixed.eps.mean() == pytest.approx(eps.mean(), abs=0.005)
    assert fixed.var == 0.0


@pytest.mark.parametrize(
    ("rho", "raw", "deterministic", "stochastic"), [(0.6, 0.0400, 0.0256, 0.0511), (0.8, 0.0401, 0.0144, 0.0287)]
)
def test_the_worked_example_of_the_facts(rho, raw, deterministic, stochastic):
    """Facts 1.6b, s_D = 0.2: three errors, to the digits written there."""
    mean, cov = joint(rho, mu=(0.0, 0.0), s_q=1.0)
    q, eps = drawn(mean, cov)
    stats = gaussian_stats(mean, cov)
    assert np.mean((q - eps) ** 2) == pytest.approx(raw, rel=0.01)
    assert np.mean((d2_deterministic(stats)(q, 1).eps - eps) ** 2) == pytest.approx(deterministic, rel=0.01)
    assert np.mean((d2_stochastic(stats, seeded)(q, 1).eps - eps) ** 2) == pytest.approx(stochastic, rel=0.01)


def test_the_same_stream_gives_the_same_bits_and_another_gives_others():
    """Facts 6.3: S-D2 reads the stream it is given, by the row of the timestep, and nothing else."""
    stats = gaussian_stats(*joint(0.5))
    q = np.random.default_rng(1).standard_normal((2, 4, 5))
    asked = []

    def stream(index, shape):
        asked.append((index, shape))
        return seeded(index, shape)

    first, second = (d2_stochastic(stats, stream)(q, 501).eps for _ in range(2))
    other = d2_stochastic(stats, lambda i, shape: seeded(i + 50, shape))(q, 501).eps
    assert asked == [(1, (2, 4, 5))] * 2
    assert first.tobytes() == second.tobytes()
    assert np.abs(first - other).max() > 0.01


def test_a_timestep_without_statistics_raises_and_says_what_there_is():
    """Facts 6.6 and 6.11: never an identity covariance, never the nearest timestep."""
    q = np.zeros((1, 2, 4, 4))
    for correct in (d2_deterministic(gaussian_stats(*joint(0.5))), d2_stochastic(gaussian_stats(*joint(0.5)), seeded)):
        with pytest.raises(ArtifactError, match=r"timestep 500, they were fitted at 951, 501, 1: .*quaver stats"):
            correct(q, 500)


@pytest.mark.parametrize("batch", [1, 3])
def test_each_of_eight_channels_is_corrected_by_its_own_statistics_only(batch):
    """Facts 6.9, regression for 1.5.10: one channel's numbers never reach another, at any batch size."""
    rng = np.random.default_rng(2)
    mean = rng.standard_normal((8, 2)) * 0.1
    rho, s_D = np.linspace(-0.9, 0.9, 8), np.linspace(0.05, 0.4, 8)
    cov = np.stack([joint(r, s_D=s)[1] for r, s in zip(rho, s_D, strict=True)])
    q = rng.standard_normal((batch, 8, 4, 6))
    fixed = d2_deterministic(gaussian_stats(mean, cov, channels=8))(q, 951)
    assert fixed.var.shape == (8, 1, 1)
    for c in range(8):
        alone = d2_deterministic(gaussian_stats(mean[c], cov[c]))(q[:, c : c + 1], 951)
        np.testing.assert_allclose(fixed.eps[:, c : c + 1], alone.eps, atol=1e-12)
        assert fixed.var[c, 0, 0] == pytest.approx(float(alone.var), rel=1e-12)


def test_statistics_of_another_channel_count_are_refused():
    stats = gaussian_stats(*joint(0.5), channels=3)
    with pytest.raises(ArtifactError, match="3 channels, the latent has 8"):
        d2_deterministic(stats)(np.zeros((1, 8, 4, 4)), 1)


def test_a_dead_channel_has_its_mean_taken_off_and_its_whole_variance_left():
    cov = np.array([[0.0, 0.0], [0.0, 0.04]])
    fixed = d2_deterministic(gaussian_stats((0.0, 0.1), cov))(np.zeros((1, 1, 2, 2)), 1)
    np.testing.assert_array_equal(fixed.eps, np.full((1, 1, 2, 2), -0.1))
    assert fixed.var == 0.04


def test_no_error_at_all_leaves_the_output_as_it_is():
    """Facts 6.20: a float engine against itself fits C11 = 0."""
    q = np.random.default_rng(3).standard_normal((1, 2, 4, 4)).astype(np.float32)
    q[0, 0, 0, 0] = -0.0
    stats = gaussian_stats((0.2, 0.0), np.array([[1.0, 0.0], [0.0, 0.0]]))
    for correct in (d2_deterministic(stats), d2_stochastic(stats, seeded), correct_none):
        fixed = correct(q, 1)
        assert fixed.eps.tobytes() == q.tobytes()
        assert fixed.var == 0.0


@pytest.mark.parametrize("over", [1.0, 1.0 + 1e-9, 1.3])
def test_a_covariance_that_rounding_made_indefinite_keeps_a_positive_residual(over):
    cov = np.array([[1.0, 0.2 * over], [0.2 * over, 0.04]])
    law = error_law(gaussian_stats((0.0, 0.0), cov))
    assert law.rho.max() == 0.9999
    assert 0 < law.var.min() < 1e-4
    np.testing.assert_allclose(law.slope, 0.2, rtol=2e-4)


def test_negative_zero_variance_of_the_error_counts_as_none():
    law = error_law(gaussian_stats((0.0, 0.0), np.array([[1.0, 1e-20], [1e-20, -1e-18]])))
    assert law.var.max() == 0.0
    assert law.slope.max() == 0.0


def test_statistics_survive_their_file(tmp_path):
    stats = gaussian_stats(*joint(0.7), channels=8)
    save_stats(tmp_path / "e.safetensors", stats, Stamp("error_stats"))
    back = load_stats(tmp_path / "e.safetensors")
    assert back.binding == BINDING
    for name in ("timesteps", "mean", "cov", "count"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stats, name))
        assert getattr(back, name).dtype == (np.int64 if name == "timesteps" else np.float64)


def test_a_file_without_a_part_says_which_and_how_to_mend_it(tmp_path):
    save_tensors(tmp_path / "e.safetensors", {"timesteps": TIMESTEPS}, Stamp("error_stats"), meta={})
    with pytest.raises(ArtifactError, match=r"mean.*quaver stats"):
        load_stats(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "sha256:" + "c" * 64},
        {"backend": "tensorrt"},
        {"sampler": "ddpm"},
        {"steps": 50},
        {"eta": 1.0},
        {"guidance": 1.0},
        {"prediction": "epsilon"},
        {"latent_shape": (8, 32, 16)},
    ],
)
def test_statistics_of_another_run_are_refused_with_the_command_to_refit(change):
    """Facts 6.7 and 6.19."""
    stats = gaussian_stats(*joint(0.5))
    check_binding(stats, replace(BINDING, reference="sha256:other"))
    with pytest.raises(ArtifactError, match=rf"fitted on {next(iter(change))} .*quaver stats RECIPE"):
        check_binding(stats, replace(BINDING, **change))


def test_statistics_that_do_not_say_where_they_are_from_are_refused():
    with pytest.raises(ArtifactError, match="quaver stats"):
        check_binding(replace(gaussian_stats(*joint(0.5)), binding=None), BINDING)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": np.array([9.0, 1.0, 9.0])}, "1 pairs at timestep 501"),
        ({"mean": np.full((3, 1, 2), np.nan)}, "not finite"),
        ({"cov": np.zeros((3, 2, 2, 2))}, "expected"),
        ({"timesteps": np.array([951, 951, 1])}, "each once"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change, says):
    with pytest.raises(ArtifactError, match=says):
        replace(gaussian_stats(*joint(0.5)), **change)


def test_names_make_corrections_and_unknown_names_get_the_nearest():
    stats = gaussian_stats(*joint(0.5))
    q = np.ones((1, 1, 2, 2))
    assert make_correct("none", None, seeded) is correct_none
    for name, same in {
        "d2-deterministic": d2_deterministic(stats),
        "d2-consistent": d2_consistent(stats),
        "d2-stochastic": d2_stochastic(stats, seeded),
    }.items():
        made = make_correct(name, stats, seeded)(q, 1)
        np.testing.assert_array_equal(made.eps, same(q, 1).eps)
        assert made.variance_mode == same(q, 1).variance_mode
    with pytest.raises(RecipeError, match="d2-deterministic"):
        make_correct("d2-determinstic", stats, seeded)
    with pytest.raises(ArtifactError, match="quaver stats"):
        make_correct("d2-stochastic", None, seeded)
