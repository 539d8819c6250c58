"""Frechet distance between two sets of features, each taken as a Gaussian.

    d^2 = |m1 - m2|^2 + Tr(S1) + Tr(S2) - 2 Tr (S1^1/2 S2 S1^1/2)^1/2

(Dowson and Landau 1982, Eq. 4; used as FID by Heusel et al. 2017, as FAD by Kilgour et al. 2019.) The last trace is the
sum of the singular values of S1^1/2 S2^1/2, with symmetric roots from an eigen-decomposition: real by construction,
exact for singular covariances, no matrix square root of a non-symmetric product. Of sets smaller than D, with S = A^T A
and A the centred features over sqrt(N - 1), it is the sum of the singular values of A1 A2^T, of N x M numbers alone.

A clip may have several frames of features, [N, F, D]: all frames of a set are one Gaussian.

The estimate is biased upward at small N, so it means something only beside its floor: the distance of the reference to
itself at the same N (`half_distances`).
"""

from __future__ import annotations

import warnings

import numpy as np

Array = np.ndarray


def moments(features: Array) -> tuple[Array, Array]:
    """Mean `[D]` and covariance `[D, D]` (divisor N - 1) of `features` `[N, D]`, in float64."""
    mean, rows = _scaled(np.asarray(features, np.float64))
    return mean, rows.T @ rows


def root(covariance: Array) -> Array:
    """Symmetric square root of a positive semi-definite `covariance` `[D, D]`; eigenvalues below zero are roundoff."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_gaussians(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """Squared Frechet distance of two Gaussians given by means `[D]` and covariances `[D, D]`."""
    cross = np.linalg.svd(root(cov1) @ root(cov2), compute_uv=False).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return float(max(distance, 0.0))


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Frechet distance of feature sets `a` `[N, D]` and `b` `[M, D]`; warns when a set is smaller than D."""
    note = few_samples(min(len(a), len(b)), np.shape(a)[1])
    if note:
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return frechet_of_sets(a, b)


def frechet_of_sets(a: Array, b: Array) -> float:
    """Squared Frechet distance of feature sets `a` `[N, D]` or `[N, F, D]` and `b`, of any size above 1, unwarned."""
    a, b = (np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1]) for x in (a, b))
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_gaussians(*moments(a), *moments(b))
    (mean1, rows1), (mean2, rows2) = _scaled(a), _scaled(b)
    cross = np.linalg.svd(rows1 @ rows2.T, compute_uv=False).sum()
    return float(max(np.sum((mean1 - mean2) ** 2) + np.sum(rows1**2) + np.sum(rows2**2) - 2 * cross, 0.0))


def _scaled(features: Array) -> tuple[Array, Array]:
    """Mean `[D]`, and A `[N, D]` whose A^T A is the covariance."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are [N, D] with N >= 2, got shape {features.shape}")
    mean = features.mean(axis=0)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def few_samples(count: int, dimensions: int) -> str | None:
    """The warning owed when `count` samples estimate a covariance of `dimensions`, else None."""
    if count > dimensions:
        return None
    return (
        f"{count} samples for {dimensions} feature dimensions: the covariance is singular and the Frechet distance"
        f" biased upward; read it only beside its floor, or use more than {dimensions} samples"
    )


def half_distances(
    reference: Array, candidate: Array, *, rng: np.random.Generator, splits: int = 20
) -> tuple[Array, Array]:
    """Floor and distance at one N, over random halves of the indices.

    The floor is one half of the reference against its other half; the distance is the candidate's half against that
    other half of the reference. `reference` and `candidate` `[N, D]` are paired; no seed is in both halves.
    Returns (floor `[splits]`, distance `[splits]`).
    """
    size = len(reference) // 2
    pairs = [rng.permutation(len(reference))[: 2 * size].reshape(2, size) for _ in range(splits)]
    floor = [frechet_of_sets(reference[i], reference[j]) for i, j in pairs]
    distance = [frechet_of_sets(candidate[i], reference[j]) for i, j in pairs]
    return np.array(floor), np.array(distance)
