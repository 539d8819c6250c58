"""The law over a neighbourhood: a convolution that is known, and halves that know nothing of each other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from quaver.calib.local_law import Held, channel_law, fit_laws, hold, nearest, pairs, ridge_law, vectors
from quaver.calib.moments import Joint, covariance, joint_of
from quaver.runtime.correct import convolve

C, K = 3, 3


def drawn(seed: int, B: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """q and x [B, C, 8, 6], correlated with each other."""
    draw = np.random.default_rng(seed)
    x, z = draw.standard_normal((2, B, C, 8, 6))
    return 0.6 * x + 0.8 * z + 0.2, x


def known() -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal((C, 2 * C, K, K))


def moments(seed: int, noise: float = 0.2, weight: np.ndarray | None = None, B: int = 40) -> Joint:
    """Joint moments of (phi, D) with D = weight * [q, x] + 0.05 + noise z."""
    q, x = drawn(seed, B)
    D = 0.05 + noise * np.random.default_rng(seed + 100).standard_normal(q.shape)
    return joint_of(vectors(q, x, D if weight is None else D + convolve(weight, q, x), K))


def test_the_known_convolution_comes_back_in_the_layout_that_corrections_read() -> None:
    W, b = ridge_law(moments(2, noise=0.0, weight=known(), B=200), C, 1e-9)
    np.testing.assert_allclose(W.reshape(known().shape), known(), atol=1e-6)
    np.testing.assert_allclose(b, 0.05, atol=1e-6)


def test_what_a_half_says_of_the_other_is_what_its_data_say() -> None:
    """E[(D - a m)^2] from moments against every element, both ways."""
    weight, fit = known(), partial(ridge_law, C=C, ridge=1e-2)
    held = hold((moments(3, weight=weight), moments(4, weight=weight)), fit, C)
    rest = np.zeros(C)
    for own, other in ((3, 4), (4, 3)):
        W, b = fit(moments(own, weight=weight))
        q, x = drawn(other)
        D = 0.05 + 0.2 * np.random.default_rng(other + 100).standard_normal(q.shape) + convolve(weight, q, x)
        m = convolve(W.reshape(weight.shape), q, x) + b[:, None, None]
        rest += ((D - held.shrink[:, None, None] * m) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(held.rest, rest, rtol=1e-9)
    assert held.rest / 2 == pytest.approx(np.full(C, 0.04), rel=0.1)  # the noise
    assert 0.95 < held.shrink.min() <= held.shrink.max() <= 1.0


def test_pairs_of_a_channel_are_those_of_its_own_place() -> None:
    q, x = drawn(5)
    D = np.random.default_rng(6).standard_normal(q.shape)
    found = pairs(joint_of(vectors(q, x, D, K)), C, K)
    for c in range(C):
        np.testing.assert_allclose(covariance(found)[c], np.cov(q[:, c].ravel(), D[:, c].ravel()), rtol=1e-10)
        np.testing.assert_allclose(found.mean[c], [q[:, c].mean(), D[:, c].mean()], rtol=1e-10)


def test_the_law_per_channel_is_the_regression_on_ones_own_output() -> None:
    q, x = drawn(7)
    D = 0.3 * q + 0.1 * x
    W, b = channel_law(joint_of(vectors(q, x, D, K)), C, K)
    for c in range(C):
        slope, offset = np.polyfit(q[:, c].ravel(), D[:, c].ravel(), 1)
        assert W[c].reshape(2 * C, K, K)[c, 1, 1] == pytest.approx(slope, rel=1e-9)
        assert b[c] == pytest.approx(offset, rel=1e-9)
    assert np.count_nonzero(W) == C


def test_a_law_of_pure_noise_is_shrunk_until_it_does_no_harm() -> None:
    """Of 20 draws without any law none gets worse on its own halves, and on fresh data none by more than 0.2%."""
    for seed in range(0, 60, 3):
        draw = [np.random.default_rng(seed + i).standard_normal((8, C, 8, 6)) for i in range(9)]
        halves = [joint_of(vectors(*draw[3 * h : 3 * h + 3], K)) for h in (0, 1)]
        _, ((W, b), local) = fit_laws((halves[0], halves[1]), C, K)
        assert (local.rest <= local.raw).all() and local.share < 0.02
        q, x, D = draw[6:]
        m = convolve(W.reshape(C, 2 * C, K, K), q, x) + b[:, None, None]
        assert ((D - local.shrink[:, None, None] * m) ** 2).mean() < 1.002 * (D**2).mean()


def test_no_error_has_no_law() -> None:
    q, x = drawn(8)
    joint = joint_of(vectors(q, x, np.zeros_like(q), K))
    for (W, b), held in fit_laws((joint, joint), C, K):
        assert not W.any() and not b.any() and not held.shrink.any() and held.share == 0.0


def test_of_two_laws_each_channel_takes_the_one_that_leaves_less() -> None:
    raw, laws = np.ones(2), [(np.full((2, 4), n), np.full(2, n)) for n in (1.0, 2.0)]
    channel = Held(raw, np.array([0.5, 0.9]), np.array([0.7, 0.2]))
    local = Held(raw, np.array([0.6, 0.3]), np.array([0.8, 1.0]))
    (W, b), held = nearest((laws[0], channel), (laws[1], local))
    assert W[:, 0].tolist() == b.tolist() == [1.0, 2.0]
    assert (held.rest.tolist(), held.shrink.tolist()) == ([0.5, 0.3], [0.7, 1.0])
