from __future__ import annotations

import warnings

import numpy as np
import pytest

from quaver.runtime.measure import frechet


def test_identical_sets_are_at_distance_zero():
    x = np.random.default_rng(0).normal(size=(300, 40)) @ np.random.default_rng(1).normal(size=(40, 40))
    assert frechet.frechet_distance(x, x) < 1e-6 * np.trace(frechet.moments(x)[1])


def test_identical_sets_with_a_singular_covariance_are_at_distance_zero():
    x = np.random.default_rng(0).normal(size=(20, 5)) @ np.random.default_rng(1).normal(size=(5, 64))
    with pytest.warns(RuntimeWarning, match="use more than 64 samples"):
        assert frechet.frechet_distance(x, x) < 1e-6 * np.trace(frechet.moments(x)[1])


def test_diagonal_gaussians_match_the_closed_form():
    s1, s2, shift = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0]), np.array([1.0, -2.0, 0.5])
    expected = shift @ shift + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum()
    got = frechet.frechet_gaussians(np.zeros(3), np.diag(s1), shift, np.diag(s2))
    assert got == pytest.approx(expected, rel=1e-6)


def test_two_dimensional_gaussians_match_the_closed_form():
    # For 2 x 2, Tr sqrt(M) = sqrt(Tr M + 2 sqrt(det M)) with M = S1 S2.
    s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    product = s1 @ s2
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    got = frechet.frechet_gaussians(np.zeros(2), s1, np.zeros(2), s2)
    assert got == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * cross, rel=1e-6)


def test_distance_equals_scipys_matrix_square_root():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(500, 24)), rng.normal(0.3, 1.5, size=(400, 24)) @ rng.normal(size=(24, 24))
    (m1, s1), (m2, s2) = frechet.moments(a), frechet.moments(b)
    assert s1 == pytest.approx(np.cov(a, rowvar=False))
    expected = np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_no_warning_with_more_samples_than_dimensions():
    x = np.random.default_rng(3).normal(size=(9, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet.frechet_distance(x, x)


def test_halves_of_one_set_give_the_floor_and_a_shift_shows_above_it():
    x = np.random.default_rng(4).normal(size=(400, 4))
    floor, same = frechet.half_distances(x, x, rng=np.random.default_rng(5))
    assert same == pytest.approx(floor)
    _, shifted = frechet.half_distances(x, x + 1.0, rng=np.random.default_rng(5))
    assert shifted.mean() - floor.mean() == pytest.approx(4.0, rel=0.1)  # |m1 - m2|^2 with 4 dimensions


def test_features_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"features are \[N, D\] with N >= 2, got shape \(1, 3\)"):
        frechet.moments(np.ones((1, 3)))


def test_sets_smaller_than_their_dimensions_give_what_their_covariances_give():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(30, 50)), rng.normal(0.2, 1.3, size=(40, 50))
    expected = frechet.frechet_gaussians(*frechet.moments(a), *frechet.moments(b))
    assert frechet.frechet_of_sets(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_frames_of_clips_are_pooled():
    a, b = np.random.default_rng(7).normal(size=(2, 20, 3, 4))
    assert frechet.frechet_of_sets(a, b) == frechet.frechet_of_sets(a.reshape(60, 4), b.reshape(60, 4))


def test_statement_21_holds_for_the_frechet_distance():
    """Statement 21: identical sets are at 0, known Gaussians at the closed form, small sets warn."""
    x = np.random.default_rng(8).normal(size=(50, 6))
    assert frechet.frechet_of_sets(x, x) < 1e-6 * np.trace(frechet.moments(x)[1])
    assert frechet.frechet_gaussians(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2)) == pytest.approx(4.0, rel=1e-6)
    with pytest.warns(RuntimeWarning, match="use more than 6 samples"):
        frechet.frechet_distance(x[:6], x)
