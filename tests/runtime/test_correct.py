"""Corrections against synthetic joint Gaussians whose law is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quaver.runtime.correct import (
    CORRECTIONS,
    auto,
    convolve,
    correct_none,
    d2_consistent,
    d2_deterministic,
    d2_local,
    d2_stochastic,
    make_correct,
    mean,
    ptqd,
)
from quaver.runtime.error_law import Local
from quaver.runtime.errors import ArtifactError, RecipeError
from tests.runtime.gaussians import TIMESTEPS, gaussian_stats, joint


def seeded(index, shape):
    return np.random.default_rng([11, index]).standard_normal(shape)


def drawn(mean, cov, size=400_000):
    """Outputs and errors [1, 1, size] of a joint Gaussian; the true eps is their difference."""
    pairs = np.random.default_rng(0).multivariate_normal(mean, cov, size=size)
    q, D = pairs.T.reshape(2, 1, 1, -1)
    return q, q - D


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.8, -0.8])
def test_deterministic_correction_leaves_only_the_unexplained_error(rho):
    """Statement 2: E (e' - e)^2 = C11 (1 - rho^2), the formula of the mean, and the residual handed to the sampler."""
    mean, cov = joint(rho)
    q, eps = drawn(mean, cov)
    fixed = d2_deterministic(gaussian_stats(mean, cov))(q, 501, q)
    np.testing.assert_allclose(fixed.eps, q - mean[1] - cov[0, 1] / cov[0, 0] * (q - mean[0]), atol=1e-12)
    assert np.mean((fixed.eps - eps) ** 2) == pytest.approx(0.04 * (1 - rho**2), rel=0.01)
    assert fixed.var == pytest.approx(0.04 * (1 - rho**2), rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.8])
def test_stochastic_correction_doubles_that_error_and_restores_the_variance(rho):
    """Statement 2: the error of S-D2 is twice that of D-D2, its variance is that of the true eps."""
    mean, cov = joint(rho)
    q, eps = drawn(mean, cov)
    fixed = d2_stochastic(gaussian_stats(mean, cov), seeded)(q, 501, q)
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
    assert np.mean((d2_deterministic(stats)(q, 1, q).eps - eps) ** 2) == pytest.approx(deterministic, rel=0.01)
    assert np.mean((d2_stochastic(stats, seeded)(q, 1, q).eps - eps) ** 2) == pytest.approx(stochastic, rel=0.01)


def test_the_mean_is_taken_off_and_nothing_else():
    q = np.random.default_rng(1).standard_normal((2, 1, 4, 5))
    fixed = mean(gaussian_stats(*joint(0.5)))(q, 501, q)
    np.testing.assert_allclose(fixed.eps, q + 0.05, atol=1e-15)
    assert fixed.var == 0.0


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.2])
def test_ptqd_regresses_the_error_on_the_true_eps(slope):
    """PTQD: D = k eps + R; what is left is R / (1 + k) less its mean. A negative slope is left alone."""
    draw = np.random.default_rng(2)
    eps, R = 0.8 * draw.standard_normal((1, 1, 400_000)) + 0.1, 0.2 * draw.standard_normal((1, 1, 400_000)) - 0.05
    q = eps + slope * eps + R
    measured = np.cov(q.ravel(), (q - eps).ravel())
    fixed = ptqd(gaussian_stats((q.mean(), (q - eps).mean()), measured))(q, 1, q)
    k = max(slope, 0.0)
    left = (q - eps) - k * eps
    np.testing.assert_allclose(fixed.eps, (q - left.mean()) / (1 + k), atol=5e-3)
    assert float(fixed.var) == pytest.approx(left.var() / (1 + k) ** 2, rel=0.01)
    assert np.mean((fixed.eps - eps) ** 2) == pytest.approx(left.var() / (1 + k) ** 2, rel=0.01)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_local_law_is_a_convolution_padded_with_zeros(k):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(3)
    weight, q, x = (draw.standard_normal(shape) for shape in ((3, 6, k, k), (2, 3, 5, 4), (2, 3, 5, 4)))
    both = torch.from_numpy(np.concatenate([q, x], axis=1))
    expected = torch.nn.functional.conv2d(both, torch.from_numpy(weight), padding=k // 2)
    np.testing.assert_allclose(convolve(weight, q, x), expected.numpy(), atol=1e-12)
    in_torch = convolve(weight, torch.from_numpy(q), torch.from_numpy(x))
    np.testing.assert_allclose(in_torch.numpy(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (4, 3)])
def test_a_neighbourhood_larger_than_the_latent_reads_zeros_outside(size):
    draw = np.random.default_rng(5)
    weight, q, x = (draw.standard_normal(shape) for shape in ((2, 4, 7, 7), (3, 2, *size), (3, 2, *size)))
    wide = np.pad(np.concatenate([q, x], axis=1), ((0, 0), (0, 0), (3, 3), (3, 3)))
    places = np.lib.stride_tricks.sliding_window_view(wide, (7, 7), axis=(2, 3))
    expected = np.einsum("cfij,bfhwij->bchw", weight, places)
    np.testing.assert_allclose(convolve(weight, q, x), expected, atol=1e-12)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_correction_takes_any_array_of_the_array_api(name, library):
    xp = pytest.importorskip(library)
    laws = np.random.default_rng(6).standard_normal((2, 3, 2, 4, 3, 3))
    parts = {part: Local(w, np.ones((3, 2)), np.ones((3, 2))) for part, w in zip(("local", "path"), laws, strict=True)}
    correct = make_correct(name, replace(gaussian_stats(*joint(0.6), channels=2), **parts), seeded)
    q, x = np.random.default_rng(7).standard_normal((2, 3, 2, 4, 5)).astype(np.float32)
    fixed = correct(xp.asarray(q), 501, xp.asarray(x)).eps
    assert type(fixed) is type(xp.asarray(q)) and fixed.dtype == xp.asarray(q).dtype
    np.testing.assert_allclose(np.from_dlpack(fixed), correct(q, 501, x).eps, rtol=1e-5, atol=1e-5)


def local_stats(weight, bias, part="local"):
    """Per channel of two, with a law of 1 x 1 at every timestep."""
    every = (np.broadcast_to(v, (len(TIMESTEPS), *np.shape(v))) for v in (weight, bias, np.zeros(2)))
    return replace(gaussian_stats(*joint(0.6), channels=2), **{part: Local(*every)})


@pytest.mark.parametrize(("make", "part"), [(d2_local, "local"), (auto, "path")])
def test_a_law_over_a_neighbourhood_is_taken_off(make, part):
    q, x = np.random.default_rng(4).standard_normal((2, 3, 2, 4, 5))
    weight = np.zeros((2, 4, 1, 1))
    weight[0, 1], weight[1, 2] = 0.5, -0.25  # channel 0 from q of channel 1, channel 1 from x of channel 0
    fixed = make(local_stats(weight, np.array([0.1, 0.0]), part))(q, 501, x)
    np.testing.assert_allclose(fixed.eps[:, 0], q[:, 0] - (0.5 * q[:, 1] + 0.1), atol=1e-12)
    np.testing.assert_allclose(fixed.eps[:, 1], q[:, 1] + 0.25 * x[:, 0], atol=1e-12)
    assert fixed.var == 0.0
    nothing = make(local_stats(0 * weight, np.zeros(2), part))(q, 501, x)
    assert nothing.eps.tobytes() == q.tobytes()
    with pytest.raises(ArtifactError, match=rf"no law '{part}', .*'quaver stats RECIPE --sampler ddim --steps 3"):
        make(gaussian_stats(*joint(0.5)))


def test_the_same_stream_gives_the_same_bits_and_another_gives_others():
    """Statement 3: S-D2 reads the stream it is given, by the row of the timestep, and nothing else."""
    stats = gaussian_stats(*joint(0.5))
    q = np.random.default_rng(1).standard_normal((2, 4, 5))
    asked = []

    def stream(index, shape):
        asked.append((index, shape))
        return seeded(index, shape)

    first, second = (d2_stochastic(stats, stream)(q, 501, q).eps for _ in range(2))
    other = d2_stochastic(stats, lambda i, shape: seeded(i + 50, shape))(q, 501, q).eps
    assert asked == [(1, (2, 4, 5))] * 2
    assert first.tobytes() == second.tobytes()
    assert np.abs(first - other).max() > 0.01


def test_a_timestep_without_statistics_raises_and_says_what_there_is():
    """Statement 6: never an identity covariance; statement 11: never the nearest timestep."""
    q = np.zeros((1, 2, 4, 4))
    for correct in (d2_deterministic(gaussian_stats(*joint(0.5))), d2_stochastic(gaussian_stats(*joint(0.5)), seeded)):
        with pytest.raises(
            ArtifactError, match=r"timestep 500, they were fitted at 951, 501, 1: .*quaver stats RECIPE --steps N'"
        ):
            correct(q, 500, q)


@pytest.mark.parametrize("batch", [1, 3])
def test_each_of_eight_channels_is_corrected_by_its_own_statistics_only(batch):
    """Statement 9: one channel's numbers never reach another, at any batch size."""
    rng = np.random.default_rng(2)
    mean = rng.standard_normal((8, 2)) * 0.1
    rho, s_D = np.linspace(-0.9, 0.9, 8), np.linspace(0.05, 0.4, 8)
    cov = np.stack([joint(r, s_D=s)[1] for r, s in zip(rho, s_D, strict=True)])
    q = rng.standard_normal((batch, 8, 4, 6))
    fixed = d2_deterministic(gaussian_stats(mean, cov, channels=8))(q, 951, q)
    assert fixed.var.shape == (8, 1, 1)
    for c in range(8):
        alone = d2_deterministic(gaussian_stats(mean[c], cov[c]))(q[:, c : c + 1], 951, None)
        np.testing.assert_allclose(fixed.eps[:, c : c + 1], alone.eps, atol=1e-12)
        assert fixed.var[c, 0, 0] == pytest.approx(float(alone.var), rel=1e-12)


def test_statistics_of_another_channel_count_are_refused():
    stats = gaussian_stats(*joint(0.5), channels=3)
    with pytest.raises(ArtifactError, match="3 channels, the latent has 8"):
        d2_deterministic(stats)(np.zeros((1, 8, 4, 4)), 1, None)


def test_a_dead_channel_has_its_mean_taken_off_and_its_whole_variance_left():
    cov = np.array([[0.0, 0.0], [0.0, 0.04]])
    fixed = d2_deterministic(gaussian_stats((0.0, 0.1), cov))(np.zeros((1, 1, 2, 2)), 1, None)
    np.testing.assert_array_equal(fixed.eps, np.full((1, 1, 2, 2), -0.1))
    assert fixed.var == 0.04


@pytest.mark.parametrize(("C00", "C01", "C11"), [(0.0, 0.0, 0.0), (0.04, 0.04, 0.04)])
def test_ptqd_takes_the_mean_off_a_channel_whose_true_eps_never_changes(C00, C01, C11):
    """Var[eps] = C00 - 2 C01 + C11 = 0: there is nothing to regress on, and no number that is none."""
    q = np.random.default_rng(0).standard_normal((1, 1, 2, 2))
    fixed = ptqd(gaussian_stats((0.3, 0.1), np.array([[C00, C01], [C01, C11]])))(q, 1, None)
    np.testing.assert_allclose(fixed.eps, q - 0.1, atol=1e-12)
    assert fixed.var == pytest.approx(C11)


def test_no_error_at_all_leaves_the_output_as_it_is():
    """Statement 20: a float engine against itself fits C11 = 0."""
    q = np.random.default_rng(3).standard_normal((1, 2, 4, 4)).astype(np.float32)
    q[0, 0, 0, 0] = -0.0
    stats = gaussian_stats((0.2, 0.0), np.array([[1.0, 0.0], [0.0, 0.0]]))
    for correct in (d2_deterministic(stats), d2_stochastic(stats, seeded), correct_none):
        fixed = correct(q, 1, q)
        assert fixed.eps.tobytes() == q.tobytes()
        assert fixed.var == 0.0


def test_names_make_corrections_and_unknown_names_get_the_nearest():
    stats = gaussian_stats(*joint(0.5))
    q = np.ones((1, 1, 2, 2))
    assert make_correct("none", None, seeded) is correct_none
    assert set(CORRECTIONS) >= {"mean", "ptqd", "d2-local", "auto"}
    for name, same in {
        "d2-deterministic": d2_deterministic(stats),
        "d2-consistent": d2_consistent(stats),
        "d2-stochastic": d2_stochastic(stats, seeded),
    }.items():
        made = make_correct(name, stats, seeded)(q, 1, q)
        np.testing.assert_array_equal(made.eps, same(q, 1, q).eps)
        assert made.variance_mode == same(q, 1, q).variance_mode
    with pytest.raises(RecipeError, match="d2-deterministic"):
        make_correct("d2-determinstic", stats, seeded)
    with pytest.raises(ArtifactError, match="quaver stats"):
        make_correct("d2-stochastic", None, seeded)
