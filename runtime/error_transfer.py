"""Error statistics carried to a guidance scale, or to timesteps, at which they were not fitted.

    q = q_u + w (q_c - q_u),   D = D_u + w (D_c - D_u)           v = (q_u, q_c, D_u, D_c) -> (q, D) = A(w) v
    mean(w) = A E[v]           cov(w) = A Cov[v] A'

Guidance is linear, so moments of both branches together give those of the guided pair at every w, and exactly: Var[D]
needs Cov[D_u, D_c], which statistics of one branch at a time do not have. What they cannot know is that x_t came from
trajectories at the fitted scale. Between timesteps mean and covariance are linear in t, which keeps a covariance
positive semidefinite; beyond the ends the nearest row stands. Laws fitted at one guidance and its timesteps (`local`,
`path`) stay behind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quaver.runtime.bundle import sampling_name
from quaver.runtime.error_law import SAMPLING, Binding, ErrorStats, check_binding, differing, load_stats, refit
from quaver.runtime.errors import ArtifactError

log = logging.getLogger(__name__)


def choose(paths: Sequence[Path], wanted: Binding, *, between: bool = False, fits: str) -> tuple[Path, ErrorStats]:
    """Of an engine's statistics files that of what is about to run, or else the first that `serve` carries there.

    `between`: also to timesteps between those fitted. Raises: ArtifactError when there is none, naming the samplings
    there are, and `fits`, the command that fits this one.
    """
    found = [(path, load_stats(path)) for path in paths]
    for free in (set[str](), {"guidance"}, {"guidance", "steps"} if between else set[str]()):
        for path, stats in found:
            if carried(stats, wanted, free):
                return path, stats
    mine = [s.binding for _, s in found if s.binding and differing(s.binding, wanted).keys() <= set(SAMPLING)]
    if not mine:
        check_binding(found[0][1], wanted, fits=fits)
    near = not between and any(carried(stats, wanted, {"guidance", "steps"}) for _, stats in found)
    hint = "; with --interpolate-stats (interpolate=True), mean, ptqd and D2 serve the timesteps between" * near
    raise ArtifactError(
        f"this engine's error statistics are of {', '.join(map(sampling_name, mine))}, and {sampling_name(wanted)} is "
        f"asked for: sample as they were fitted, or fit others beside them with {fits}, or use --correct none{hint}"
    )


def carried(stats: ErrorStats, wanted: Binding, free: set[str]) -> bool:
    """Whether statistics are of what is wanted but for what is `free`; guidance is so only to those with branches."""
    if stats.binding is None:
        return False
    wrong = differing(stats.binding, wanted).keys()
    return wrong <= free and ("guidance" not in wrong or stats.branches is not None)


def serve(stats: ErrorStats, wanted: Binding, *, at: np.ndarray | None = None) -> ErrorStats:
    """Statistics for what is about to run: carried to its guidance where they have both branches, and to the timesteps
    `at` [S'] where these are given and others than fitted.

    Raises: ArtifactError when they belong to another run all the same.
    """
    had = stats.binding
    if had and stats.branches and had.guidance != wanted.guidance:
        log.warning("error statistics fitted at guidance %g serve %g", had.guidance, wanted.guidance)
        stats = rescale(stats, wanted.guidance)
    if at is not None and set(at.tolist()) != set(stats.timesteps.tolist()):
        log.warning("error statistics fitted at %d timesteps serve %d", len(stats.timesteps), len(at))
        stats = interpolate(stats, at)
    check_binding(stats, wanted)
    return stats


def rescale(stats: ErrorStats, w: float) -> ErrorStats:
    """The joint Gaussian of the guided pair at scale `w`; exact but for where x_t is from.

    Raises: ArtifactError when the statistics do not have both branches.
    """
    if stats.branches is None:
        raise ArtifactError(
            f"error statistics without branches serve no guidance but their own: refit with {refit({'guidance': w})}"
        )
    A = np.array([[1 - w, w, 0, 0], [0, 0, 1 - w, w]])
    mean, cov = stats.branches.mean @ A.T, A @ stats.branches.cov @ A.T
    bound = replace(stats.binding, guidance=float(w)) if stats.binding else None
    return replace(stats, mean=mean, cov=cov, binding=bound, simulated=None, local=None, path=None)


def interpolate(stats: ErrorStats, timesteps: Sequence[int] | np.ndarray) -> ErrorStats:
    """The joint Gaussian at `timesteps` [S']: linear in t between those fitted, the nearest beyond their ends."""
    order = np.argsort(stats.timesteps)
    at = np.interp(np.asarray(timesteps), stats.timesteps[order], np.arange(len(order)))
    low = at.astype(int)
    high = np.minimum(low + 1, len(order) - 1)

    def between(values: np.ndarray) -> np.ndarray:
        share = (at - low).reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray((1 - share) * values[order][low] + share * values[order][high])

    mean, cov, count = (between(values) for values in (stats.mean, stats.cov, stats.count))
    bound = replace(stats.binding, steps=len(at)) if stats.binding else None
    return ErrorStats(np.asarray(timesteps, np.int64), mean, cov, count, bound)
