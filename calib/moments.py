"""Streaming moments: mean, variance and extremes of what is never held at once.

    count = n_a + n_b,   d = mean_b - mean_a
    mean  = mean_a + d * n_b / count
    m2    = m2_a + m2_b + d^2 * n_a * n_b / count          (m2 = sum of squared deviations)

and, for vectors, m2 = m2_a + m2_b + d d^T * n_a * n_b / count. Everything is float64; a merge of merges is the same
in any order up to rounding, so shards can be merged as they come.
Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quaver.runtime.errors import EngineError


@dataclass(frozen=True)
class Moments:
    """Count, mean, centred second moment and extremes, each float64 [...]; count 0 means nothing seen yet."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    amin: np.ndarray
    amax: np.ndarray


@dataclass(frozen=True)
class Joint:
    """Count [...], mean [..., D] and centred second moment [..., D, D] of vectors, float64."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Moments of nothing, for every element of `shape`."""
    zero = np.zeros(shape)
    return Moments(zero, zero, zero, np.full(shape, np.inf), np.full(shape, -np.inf))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both samples together, element by element."""
    count = a.count + b.count
    share = np.divide(b.count, count, out=np.zeros_like(count), where=count > 0)
    gap = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + gap * share,
        m2=a.m2 + b.m2 + gap**2 * a.count * share,
        amin=np.minimum(a.amin, b.amin),
        amax=np.maximum(a.amax, b.amax),
    )


def variance(moments: Moments) -> np.ndarray:
    """Population variance [...]; 0 where nothing was seen."""
    return np.divide(moments.m2, moments.count, out=np.zeros_like(moments.m2), where=moments.count > 0)


def resolved_variance(moments: Moments) -> np.ndarray:
    """Variance [...] of float32 values; 0 where it is rounding, below a millionth of the largest value squared."""
    seen = variance(moments)
    peak = np.where(moments.count > 0, np.maximum(np.abs(moments.amin), np.abs(moments.amax)), 0.0)
    return np.where(seen > (1e-6 * peak) ** 2, seen, 0.0)


def no_joint(shape: tuple[int, ...], dims: int) -> Joint:
    """Joint moments of nothing for every element of `shape`, vectors of `dims` entries."""
    return Joint(np.zeros(shape), np.zeros((*shape, dims)), np.zeros((*shape, dims, dims)))


def joint_of(vectors: np.ndarray) -> Joint:
    """Joint moments of vectors [..., N, D] over N."""
    vectors = np.asarray(vectors, np.float64)
    if not vectors.shape[-2]:
        return no_joint(vectors.shape[:-2], vectors.shape[-1])
    mean = vectors.mean(axis=-2)
    gap = vectors - mean[..., None, :]
    return Joint(np.full(mean.shape[:-1], float(vectors.shape[-2])), mean, np.swapaxes(gap, -1, -2) @ gap)


def merge_joint(a: Joint, b: Joint) -> Joint:
    """Joint moments of both samples together, element by element."""
    count = a.count + b.count
    share = np.divide(b.count, count, out=np.zeros_like(count), where=count > 0)[..., None]
    gap = b.mean - a.mean
    cross = gap[..., :, None] * gap[..., None, :] * (a.count[..., None] * share)[..., None]
    return Joint(count, a.mean + gap * share, a.m2 + b.m2 + cross)


def covariance(joint: Joint) -> np.ndarray:
    """Sample covariance [..., D, D], normalised by count - 1; NaN where fewer than two vectors were seen."""
    freedom = (joint.count - 1)[..., None, None]
    return np.divide(joint.m2, freedom, out=np.full_like(joint.m2, np.nan), where=freedom > 0)


def require_finite(values: np.ndarray, names: Sequence[str], timestep: int) -> None:
    """Refuse NaN and infinities in `values` [L, ...], a row per name.

    Raises: EngineError naming the first bad layer and the timestep.
    """
    bad = ~np.isfinite(values).reshape(len(names), -1).all(axis=1)
    if bad.any():
        raise EngineError(
            f"{names[int(bad.argmax())]} is not finite at timestep {timestep} ({int(bad.sum())} of {len(names)} places"
            " are not): the model is broken or overflows; check its weights, or trace it anew in float32"
        )
