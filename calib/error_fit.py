"""Error statistics out of what was seen, and what trimming did to them.

cov     m2 / (count - 1)                     of (q, D), and of (q_u, q_c, D_u, D_c)
C11, rho^2 against those of all pairs        the price of leaving outliers out: C11 is too low
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from quaver.calib.evidence import Seen
from quaver.calib.explained import explained, ratio
from quaver.calib.local_law import fit_laws, pairs
from quaver.calib.moments import Joint, covariance, merge_joint
from quaver.runtime.error_law import Binding, ErrorStats, Gaussian, Local


@dataclass(frozen=True)
class Fitted:
    """Statistics, and what is to be known of them per timestep [S].

    held: the share of the squared error that each law takes off on the half that had no part in its fit ({} where a
    half is empty). dropped: trajectories that were not finite. trimmed: the share of pairs left out, C11 over that of
    all pairs, and the difference of rho^2.
    """

    stats: ErrorStats
    held: Mapping[str, list[float]]
    dropped: np.ndarray
    trimmed: Mapping[str, np.ndarray]


def fit(seen: Seen, at: np.ndarray, bound: Binding, *, k: int, tensor: bool = False) -> Fitted:
    """The statistics of what was seen at timesteps `at` [S]: per channel, or of the whole tensor; k x k places."""
    C = bound.latent_shape[0]
    group = pool if tensor else _as_it_is
    joint = group(seen.channels)
    parts: dict[str, Any] = {"simulated": gaussian(group(seen.simulated)) if seen.simulated else None}
    if joint.mean.shape[-1] > 2:
        parts["branches"] = gaussian(_of(joint, slice(2, None)))
    pair = gaussian(_of(joint, slice(2)))
    stats = ErrorStats(at, pair.mean, pair.cov, joint.count.min(axis=1), bound, **parts)
    first, second = (Joint(*(values[h] for values in vars(seen.halves).values())) for h in (0, 1))
    whole = group(pairs(merge_joint(first, second), C, k))
    before = replace(stats, mean=whole.mean, cov=covariance(whole), branches=None, simulated=None)
    trimmed = {
        "share": 1 - joint.count.sum(axis=1) / whole.count.sum(axis=1),
        "C11": ratio(stats.cov[..., 1, 1].sum(axis=1), before.cov[..., 1, 1].sum(axis=1)),
        "rho^2": explained(stats) - explained(before),
    }
    local, held = fit_local(first, second, C, k) if seen.halves.count.min() >= 2 else (None, {})
    return Fitted(replace(stats, local=local), held, seen.dropped, trimmed)


def fit_local(first: Joint, second: Joint, C: int, k: int) -> tuple[Local, dict[str, list[float]]]:
    """The law over a neighbourhood from the two halves [S], and per timestep the shares of both laws held out."""
    S = len(first.count)
    steps = [tuple(Joint(*(v[s] for v in vars(half).values())) for half in (first, second)) for s in range(S)]
    channel, local = zip(*(fit_laws((a, b), C, k) for a, b in steps), strict=True)
    weight = np.stack([W for (W, _), _ in local]).reshape(S, C, 2 * C, k, k).astype(np.float32)
    rest = np.stack([held.rest for _, held in local]) / 2  # two halves
    shares = {"channel": [held.share for _, held in channel], "local": [held.share for _, held in local]}
    return Local(weight, np.stack([b for (_, b), _ in local]), rest), shares


def gaussian(joint: Joint) -> Gaussian:
    """Mean and covariance."""
    return Gaussian(joint.mean, covariance(joint))


def pool(joint: Joint) -> Joint:
    """Joint moments [S, 1] of all groups [S, G] together."""
    groups = [Joint(joint.count[:, [g]], joint.mean[:, [g]], joint.m2[:, [g]]) for g in range(joint.count.shape[1])]
    return reduce(merge_joint, groups)


def _as_it_is(joint: Joint) -> Joint:
    return joint


def _of(joint: Joint, some: slice) -> Joint:
    """Of some of the numbers."""
    return Joint(joint.count, joint.mean[..., some], joint.m2[..., some, some])
