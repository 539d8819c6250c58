"""Precision and recall of a set of samples, with the volume of each set estimated by k nearest neighbours.

    a set covers x   when, for any of its members m,  |x - m| <= distance of m to its k-th nearest fellow
    precision        share of samples that the reference set covers: are they like real ones?
    recall           share of the reference that the sample set covers: is all of it there?

Kynkäänniemi et al. 2019 (arXiv:1904.06991), Eq. 1 and 2, k = 3. Distances come in rows of CHUNK members, so memory is
CHUNK times the size of a set and never its square. Both shares depend on the sizes of the sets: compare at one N.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
CHUNK = 512
NEIGHBOURS = 3


def covered(x: Array, members: Array, *, k: int = NEIGHBOURS) -> Array:
    """Which of the features `x` `[N, D]` the set `members` `[M, D]` covers: `[N]` bool.

    Raises: ValueError when the set has no k-th neighbour.
    """
    reach = radii(members, k=k)
    return np.concatenate([(squared <= reach).any(axis=1) for squared in _squared_distances(x, members)])


def radii(members: Array, *, k: int = NEIGHBOURS) -> Array:
    """Squared distance of each of `members` `[M, D]` to its k-th nearest fellow, `[M]`."""
    if len(members) <= k:
        raise ValueError(f"{len(members)} samples have no neighbour number {k}: take more than {k}")
    # The nearest of all is a member itself, at distance 0. A view of the column would keep all distances alive.
    parts = _squared_distances(members, members)
    return np.concatenate([np.partition(part, k, axis=1)[:, k].copy() for part in parts])


def precision(reference: Array, judged: Array, *, k: int = NEIGHBOURS) -> float:
    """Share of `judged` `[N, D]` that `reference` `[M, D]` covers."""
    return float(covered(judged, reference, k=k).mean())


def recall(reference: Array, judged: Array, *, k: int = NEIGHBOURS) -> float:
    """Share of `reference` `[M, D]` that `judged` `[N, D]` covers."""
    return precision(judged, reference, k=k)


def _squared_distances(x: Array, members: Array) -> Iterator[Array]:
    """Squared distances of CHUNK rows of x to all members, `[CHUNK, M]`, around a common centre for accuracy."""
    centre = np.mean(members, axis=0, dtype=np.float64)
    x, members = np.asarray(x, np.float64) - centre, np.asarray(members, np.float64) - centre
    sizes = (members**2).sum(axis=1)
    for rows in (x[i : i + CHUNK] for i in range(0, len(x), CHUNK)):
        yield np.maximum((rows**2).sum(axis=1)[:, None] + sizes - 2 * rows @ members.T, 0.0)
