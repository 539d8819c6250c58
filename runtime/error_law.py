"""What the deployed engine's error looks like, given what it says: statistics per timestep, and what they belong to.

q is what the quantized denoiser says (guided eps), D = q - eps its error against full precision. The pair (q, D) of a
channel, or of the whole tensor, is taken as jointly Gaussian with mean (mu_q, mu_D) and covariance
[[C00, C01], [C01, C11]]. Given q, the error is Gaussian too (D2-DPM, arXiv:2408.11275, eqs. 8-10):

    mean       m(q) = mu_D + rho sqrt(C11 / C00) (q - mu_q)       rho = C01 / sqrt(C00 C11)
    variance   r^2  = C11 (1 - rho^2)                             the residual: what q does not explain

A `Local` law drops the isotropy: the same joint Gaussian over a neighbourhood of all channels of q and of x_t beside D,
whose conditional mean is a convolution,  m(q, x_t) = b + W * [q, x_t].  There are two of them: of D at the float
model's own x_t, and of what keeps the engine on the float model's path, at the engine's own x_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.artifact import Stamp, load_tensors, save_tensors
from quaver.runtime.errors import ArtifactError

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API

KIND = "error_stats"
DEAD = 1e-12  # variance of q at or below which a channel says nothing about its error
SAMPLING = ("sampler", "steps", "eta", "guidance")  # what a binding has of a recipe's table of that name
RHO_MAX = 0.9999  # keeps r^2 positive when rounding makes C01^2 exceed C00 C11


@dataclass(frozen=True)
class Binding:
    """What error statistics belong to; statistics of another engine, guidance or step count correct nothing."""

    engine: str  # digest of the quantized denoiser
    reference: str  # digest of the float denoiser
    backend: str
    sampler: str
    steps: int
    eta: float
    guidance: float
    prediction: str
    latent_shape: tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """m(q, x_t) = bias + weight * [q, x_t] per timestep: weight [S, C, 2 C, k, k], bias [S, C], var [S, C] of the rest.

    The convolution is padded with zeros. `var` is that of trajectories which had no part in the fit.
    """

    weight: np.ndarray
    bias: np.ndarray
    var: np.ndarray


@dataclass(frozen=True)
class Gaussian:
    """mean [S, C|1, n] and cov [S, C|1, n, n] of n numbers, per timestep, float64."""

    mean: np.ndarray
    cov: np.ndarray


@dataclass(frozen=True)
class ErrorStats:
    """The joint Gaussian of output and error per timestep, all float64.

    timesteps [S] int64; mean [S, C|1, 2] = (mu_q, mu_D); cov [S, C|1, 2, 2]; count [S], pairs behind each timestep.
    local: the law of D at the float model's x_t; path: of what keeps the engine on the float model's path.
    branches: (q_u, q_c, D_u, D_c) of a guided engine (`error_transfer`); simulated: (q, D) of its graph in floats.
    """

    timesteps: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    count: np.ndarray
    binding: Binding | None = None
    local: Local | None = None
    path: Local | None = None
    branches: Gaussian | None = None
    simulated: Gaussian | None = None

    def __post_init__(self) -> None:
        S, C = len(self.timesteps), self.mean.shape[1] if self.mean.ndim == 3 else 0
        shapes = self.mean.shape == (S, C, 2) and self.cov.shape == (S, C, 2, 2) and self.count.shape == (S,)
        if not shapes or S == 0 or len(set(self.timesteps.tolist())) != S:
            raise ArtifactError(
                f"error statistics have mean {self.mean.shape}, cov {self.cov.shape}, count {self.count.shape} for {S} "
                "timesteps, expected [S, C, 2], [S, C, 2, 2], [S], each once: 'quaver stats RECIPE' fits them anew"
            )
        if self.count.min() < 2:
            raise ArtifactError(
                f"error statistics rest on {self.count.min():g} pairs at timestep "
                f"{self.timesteps[self.count.argmin()]}, expected 2 or more: 'quaver stats RECIPE' fits them anew"
            )
        found = [getattr(self, name) for name in PARTS]
        parts = [values for part in found if part for values in vars(part).values()]
        if any(len(part) != S for part in parts):
            raise ArtifactError("error statistics are not of one piece: 'quaver stats RECIPE' fits them anew")
        for name in LAWS:
            _check_law(name, getattr(self, name), S, C)
        if not all(np.isfinite(values).all() for values in (self.mean, self.cov, *parts)):
            raise ArtifactError("error statistics are not finite: 'quaver stats RECIPE' fits them anew")


LAWS = ("local", "path")  # convolutions
PARTS = {"local": Local, "path": Local, "branches": Gaussian, "simulated": Gaussian}  # that statistics may have


@dataclass(frozen=True)
class ErrorLaw:
    """The error given the output: D | q ~ N(mu_D + slope (q - mu_q), var), each [S, C|1] float64."""

    mu_q: np.ndarray
    mu_D: np.ndarray
    slope: np.ndarray
    var: np.ndarray
    rho: np.ndarray


def error_law(stats: ErrorStats) -> ErrorLaw:
    """The conditional law of the error at every timestep (D2-DPM eqs. 9, 10).

    A channel whose output does not vary (C00 <= 1e-12) explains nothing: slope 0, var C11. rho stays within +-0.9999.
    """
    C00, C01, C11 = stats.cov[..., 0, 0], stats.cov[..., 0, 1], np.maximum(stats.cov[..., 1, 1], 0.0)
    dead = (C00 <= DEAD) | (C11 <= 0.0)
    s_q, s_D = np.sqrt(np.where(dead, 1.0, C00)), np.sqrt(C11)
    rho = np.where(dead, 0.0, np.clip(C01 / (s_q * np.where(dead, 1.0, s_D)), -RHO_MAX, RHO_MAX))
    return ErrorLaw(stats.mean[..., 0], stats.mean[..., 1], rho * s_D / s_q, C11 * (1.0 - rho**2), rho)


def row_of(stats: ErrorStats, q: Array, t: float) -> int:
    """The row of timestep `t` in the statistics; never a made-up one."""
    found = np.flatnonzero(stats.timesteps == t)
    if len(found) == 0:
        raise ArtifactError(
            f"no error statistics for timestep {t:g}, they were fitted at {_listed(stats.timesteps)}: sample with "
            f"steps = {len(stats.timesteps)}, or refit with {refit({'steps': 'N'})}"
        )
    if (C := stats.mean.shape[1]) not in (1, q.shape[1]):
        raise ArtifactError(
            f"error statistics have {C} channels, the latent has {q.shape[1]}: refit with 'quaver stats RECIPE'"
        )
    return int(found[0])


def save_stats(path: Path, stats: ErrorStats, stamp: Stamp, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write error statistics with what they belong to, and what else is to be known of them."""
    tensors = {
        "timesteps": np.asarray(stats.timesteps, dtype=np.int64),
        "mean": np.asarray(stats.mean, dtype=np.float64),
        "cov": np.asarray(stats.cov, dtype=np.float64),
        "count": np.asarray(stats.count, dtype=np.float64),
    }
    for name in PARTS:
        part = getattr(stats, name)
        tensors |= {f"{name}.{key}": value for key, value in (vars(part) if part else {}).items()}
    stamp = replace(stamp, kind=KIND)
    bound = {"binding": asdict(stats.binding) if stats.binding else None}
    return save_tensors(path, tensors, stamp, meta={**(meta or {}), **bound})


def load_stats(path: Path) -> ErrorStats:
    """Read error statistics.

    Raises: ArtifactError when the file is missing, damaged, of another kind, or holds something else.
    """
    tensors, meta = load_tensors(path, KIND)
    try:
        found = meta.get("binding")
        binding = Binding(**{**found, "latent_shape": tuple(found["latent_shape"])}) if found else None
        parts = {name: _part(name, kind, tensors) for name, kind in PARTS.items()}
        timesteps, mean, cov, count = (tensors[name] for name in ("timesteps", "mean", "cov", "count"))
        return ErrorStats(timesteps, mean, cov, count, binding, **parts)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} lacks a part of error statistics ({error}): 'quaver stats RECIPE' fits them anew"
        ) from error


def check_binding(stats: ErrorStats, wanted: Binding, *, fits: str = "") -> None:
    """Refuse statistics that were fitted on something else than what is about to run (the reference may differ).

    `fits` is the command that fits them anew, where the caller knows it better. Raises: ArtifactError naming every
    difference, and that command.
    """
    if stats.binding is None:
        raise ArtifactError(f"error statistics do not say what they were fitted on: {fits or refit({})} fits them anew")
    wrong = differing(stats.binding, wanted)
    if wrong:
        said = "; ".join(
            f"{name} {_short(getattr(stats.binding, name))}, now {_short(now)}" for name, now in wrong.items()
        )
        others = {name: getattr(wanted, name) for name in SAMPLING if wrong.keys() & set(SAMPLING)}
        raise ArtifactError(
            f"error statistics belong to another run (fitted on {said}): sample as they were fitted, or "
            f"refit with {fits or refit(others)}, or use --correct none"
        )


def differing(had: Binding, wanted: Binding) -> dict[str, Any]:
    """What is wanted otherwise than it was fitted, by name; the reference may differ."""
    now = {f.name: getattr(wanted, f.name) for f in fields(Binding) if f.name != "reference"}
    return {name: value for name, value in now.items() if getattr(had, name) != value}


def refit(sampling: Mapping[str, Any]) -> str:
    """The command that fits statistics, those of `sampling` beside the recipe's own where it is another."""
    return f"'{' '.join(['quaver stats RECIPE', *options(sampling)])}'"


def options(sampling: Mapping[str, Any]) -> list[str]:
    """Settings of sampling as options of a command."""
    return [
        f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}" for name, value in sampling.items()
    ]


def _check_law(name: str, law: Local | None, S: int, groups: int) -> None:
    """Raise ArtifactError unless a law is a convolution of an odd width over as many channels as it answers."""
    if law is None:
        return
    C, k = (law.weight.shape[axis] if law.weight.ndim == 5 else 0 for axis in (1, 4))
    shapes = (law.weight.shape, law.bias.shape, law.var.shape)
    if shapes != ((S, C, 2 * C, k, k), (S, C), (S, C)) or k % 2 == 0 or groups not in (1, C):
        raise ArtifactError(
            f"the law {name!r} of error statistics has weight, bias, var {', '.join(map(str, shapes))} for {S}"
            f" timesteps and {groups} channels, expected [S, C, 2 C, k, k], [S, C], [S, C], k odd:"
            " 'quaver stats RECIPE' fits them anew"
        )


def _part(name: str, kind: type, tensors: Mapping[str, np.ndarray]) -> Any:
    """A part that a file may have or not."""
    found = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    return kind(**found) if found else None


def _short(value: Any) -> str:
    return f"{value[:15]}…" if isinstance(value, str) and value.startswith("sha256:") else str(value)


def _listed(values: np.ndarray) -> str:
    shown = [str(v) for v in values.tolist()]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:3], "…", shown[-1]])
