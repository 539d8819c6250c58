"""Streaming moments against numpy on the whole sample."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from quaver.calib import moments
from quaver.runtime.errors import EngineError


@pytest.fixture
def values() -> np.ndarray:
    # A mean far from zero: naive sums of squares lose eight digits here.
    return 1e4 + np.random.default_rng(3).standard_normal((5, 4096)) * np.array([[1.0], [2], [3], [0.1], [10]])


def moments_of(values: np.ndarray) -> moments.Moments:
    """Over the last axis, by numpy."""
    low, high, count = values.min(axis=-1), values.max(axis=-1), float(values.shape[-1])
    return moments.Moments(np.full(len(values), count), values.mean(axis=-1), count * values.var(axis=-1), low, high)


def stream(parts: list[np.ndarray]) -> moments.Moments:
    seen = (moments_of(part) for part in parts)
    return reduce(moments.merge_moments, seen, moments.no_moments((5,)))


@pytest.mark.parametrize("shards", [1, 4, 7])
def test_streaming_equals_numpy_whatever_the_shards(values: np.ndarray, shards: int) -> None:
    got = stream(np.array_split(values, shards, axis=1))
    assert np.array_equal(got.count, np.full(5, 4096.0))
    np.testing.assert_allclose(got.mean, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(got), values.var(axis=1), rtol=1e-10)
    assert np.array_equal(got.amin, values.min(axis=1)) and np.array_equal(got.amax, values.max(axis=1))


def test_merging_is_associative(values: np.ndarray) -> None:
    a, b, c, d = (moments_of(part) for part in np.array_split(values, [100, 101, 3000], axis=1))
    left = moments.merge_moments(moments.merge_moments(moments.merge_moments(a, b), c), d)
    right = moments.merge_moments(moments.merge_moments(a, b), moments.merge_moments(c, d))
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-10)


def test_merging_with_nothing_changes_nothing(values: np.ndarray) -> None:
    some = moments_of(values)
    for got in (
        moments.merge_moments(some, moments.no_moments((5,))),
        moments.merge_moments(moments.no_moments((5,)), some),
    ):
        assert np.array_equal(got.m2, some.m2) and np.array_equal(got.mean, some.mean)
    assert np.array_equal(moments.variance(moments.no_moments((2,))), [0, 0])


def test_a_variance_below_the_resolution_of_float32_is_zero() -> None:
    noise = np.random.default_rng(0).standard_normal(100)
    values = np.stack([7 + 1e-7 * noise, 7 + 1e-4 * noise, 1e-9 * noise, np.zeros(100)])
    assert (moments.resolved_variance(moments_of(values)) > 0).tolist() == [False, True, True, False]
    assert moments.resolved_variance(moments.no_moments((1,))).tolist() == [0]


def test_joint_streaming_equals_numpy_cov_to_1e_10() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 5000, 2)) @ np.array([[1.0, 0.3], [0.0, 0.2]]) + [100.0, -3.0]
    parts = np.array_split(vectors[:, rng.permutation(5000)], 6, axis=1)
    got = reduce(moments.merge_joint, map(moments.joint_of, parts), moments.no_joint((3,), 2))
    for channel in range(3):
        np.testing.assert_allclose(moments.covariance(got)[channel], np.cov(vectors[channel].T), rtol=1e-10)
    np.testing.assert_allclose(got.mean, vectors.mean(axis=1), rtol=1e-12)


def test_joint_of_an_empty_batch_is_nothing() -> None:
    got = moments.joint_of(np.empty((4, 0, 2)))
    assert np.array_equal(got.count, np.zeros(4)) and np.isnan(moments.covariance(got)).all()


def test_a_value_that_is_not_finite_is_refused_with_layer_and_timestep() -> None:
    with pytest.raises(EngineError, match=r"mid\.conv is not finite at timestep 951 \(1 of 2 places"):
        moments.require_finite(np.array([[0.0, 1], [np.nan, 1]]), ["down.conv", "mid.conv"], 951)
