"""Statistics at another guidance scale against np.cov of the guided outputs, and between timesteps by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quaver.runtime.correct import auto, d2_deterministic
from quaver.runtime.error_law import ErrorStats, Gaussian, Local, row_of
from quaver.runtime.error_transfer import interpolate, rescale, serve
from quaver.runtime.errors import ArtifactError
from tests.runtime.gaussians import BINDING, TIMESTEPS, gaussian_stats, joint

W, N = 3.0, 500


def branches() -> np.ndarray:
    """q_u, q_c, D_u, D_c [S, C, 4, N], all correlated with each other."""
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((3, 2, 4, 4)) @ rng.standard_normal((3, 2, 4, N))
    return mixed + rng.standard_normal((3, 2, 4, 1))


def guided(v: np.ndarray, w: float) -> np.ndarray:
    """q, D [S, C, 2, N] of the branches."""
    q_u, q_c, D_u, D_c = np.moveaxis(v, 2, 0)
    return np.stack([q_u + w * (q_c - q_u), D_u + w * (D_c - D_u)], axis=2)


def moments(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-shot mean [S, C, n] and covariance [S, C, n, n]."""
    return v.mean(axis=-1), np.array([[np.cov(group) for group in row] for row in v])


def fitted(v: np.ndarray) -> ErrorStats:
    every = Local(np.zeros((3, 2, 4, 1, 1)), np.zeros((3, 2)), np.zeros((3, 2)))
    pair = Gaussian(*moments(guided(v, W)))
    rest = {"local": every, "path": every, "branches": Gaussian(*moments(v)), "simulated": pair}
    return ErrorStats(TIMESTEPS, pair.mean, pair.cov, np.full(3, float(N)), BINDING, **rest)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, 3.0, 7.0])
def test_branches_give_the_guided_gaussian_at_any_scale_to_1e_10(w: float) -> None:
    """Statement 7: Var[D_u + w (D_c - D_u)] with the covariance of the branches."""
    v = branches()
    got = rescale(fitted(v), w)
    mean, cov = moments(guided(v, w))
    np.testing.assert_allclose(got.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got.cov, cov, rtol=1e-10, atol=1e-12)
    assert got.binding == replace(BINDING, guidance=w)


def test_laws_of_one_scale_stay_behind_and_say_how_to_get_them() -> None:
    got = rescale(fitted(branches()), 2.0)
    assert got.local is None and got.path is None and got.simulated is None
    q = np.zeros((1, 2, 4, 4))
    d2_deterministic(got)(q, 501, q)
    with pytest.raises(
        ArtifactError,
        match=r"no law 'path'.*RECIPE --sampler ddim --steps 3 --eta 0 --guidance 2'",
    ):
        auto(got)


def test_statistics_without_branches_serve_one_scale() -> None:
    """Statement 7: at another scale they raise, with the command that refits."""
    with pytest.raises(ArtifactError, match=r"quaver stats RECIPE --guidance 2'"):
        rescale(gaussian_stats(*joint(0.5)), 2.0)
    with pytest.raises(ArtifactError, match=r"guidance 3\.0, now 2\.0.*--guidance 2'"):
        serve(gaussian_stats(*joint(0.5)), replace(BINDING, guidance=2.0))


def test_what_runs_at_another_scale_is_served_and_at_its_own_left_alone() -> None:
    stats = fitted(branches())
    assert serve(stats, BINDING) is stats
    other = replace(BINDING, guidance=5.0)
    np.testing.assert_array_equal(serve(stats, other).cov, rescale(stats, 5.0).cov)
    with pytest.raises(ArtifactError, match=r"eta 0\.0, now 1\.0"):
        serve(stats, replace(other, eta=1.0))


def test_between_timesteps_mean_and_covariance_are_linear_and_beyond_them_constant() -> None:
    """Statement 11: only where it is asked for; 726 is half way from 951 to 501."""
    stats = fitted(branches())
    got = interpolate(stats, [999, 951, 726, 101, 0])
    for name in ("mean", "cov"):
        v = getattr(stats, name)
        expected = np.stack([v[0], v[0], (v[0] + v[1]) / 2, 0.2 * v[1] + 0.8 * v[2], v[2]])
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-12)
    assert np.linalg.eigvalsh(got.cov).min() > 0
    assert got.binding == replace(BINDING, steps=5) and got.local is None and got.path is None
    assert row_of(got, np.zeros((1, 2, 4, 4)), 726) == 2


def test_other_timesteps_are_served_on_request_and_refused_without() -> None:
    """Statement 11: a run with other steps finds no statistics unless interpolation is asked for."""
    stats, wanted, at = fitted(branches()), replace(BINDING, steps=2), np.array([701, 201])
    assert serve(stats, wanted, at=at).timesteps.tolist() == [701, 201]
    with pytest.raises(ArtifactError, match=r"steps 3, now 2"):
        serve(stats, wanted)
    assert serve(stats, BINDING, at=TIMESTEPS) is stats
    with pytest.raises(ArtifactError, match=r"no error statistics for timestep 701"):
        row_of(stats, np.zeros((1, 2, 4, 4)), 701)
