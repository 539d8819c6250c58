"""What error statistics say, as numbers to read: deployed beside simulated, timestep by timestep.

rho^2          share of the error's variance that the output explains (D2-DPM)
C11 / Var[e]   the error's variance beside that of what should have been said, Var[e] = C00 - 2 C01 + C11
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quaver.runtime.error_law import ErrorStats, error_law


def explained(stats: ErrorStats) -> np.ndarray:
    """rho^2 [S], over the groups weighted by the error's variance."""
    law, variance = error_law(stats), np.maximum(stats.cov[..., 1, 1], 0.0)
    return ratio((law.rho**2 * variance).sum(axis=1), variance.sum(axis=1))


def relative_variance(stats: ErrorStats) -> np.ndarray:
    """C11 / Var[e] [S], over all groups."""
    C00, C01, C11 = stats.cov[..., 0, 0], stats.cov[..., 0, 1], stats.cov[..., 1, 1]
    return ratio(C11.sum(axis=1), (C00 - 2 * C01 + C11).sum(axis=1))


def as_simulated(stats: ErrorStats) -> ErrorStats | None:
    """The statistics of the simulated engine in the place of the deployed one's."""
    part = stats.simulated
    return replace(stats, mean=part.mean, cov=part.cov, simulated=None) if part else None


def columns(stats: ErrorStats, held: Mapping[str, Any] | None = None) -> dict[str, list[float]]:
    """Columns of a table, a row per timestep: of the deployed engine, of the simulated one, and the shares `held` of
    the squared error that laws took off where they were not fitted.
    """
    table: dict[str, list[float]] = {"t": stats.timesteps.tolist()}
    for name, found in {"deployed": stats, "simulated": as_simulated(stats)}.items():
        if found:
            table |= {
                f"{name} C11/Var[e]": relative_variance(found).tolist(),
                f"{name} rho^2": explained(found).tolist(),
                f"{name} mean D": found.mean[..., 1].mean(axis=1).tolist(),
            }
    return table | {f"{name} law": list(share) for name, share in (held or {}).items()}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
