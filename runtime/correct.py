"""Correction of the quantization error, as D2-DPM has it (AAAI 2025, arXiv:2408.11275).

q is what the quantized denoiser says (guided eps), D = q - eps its error against full precision. At each timestep the
pair (q, D) is taken as jointly Gaussian with mean (mu_q, mu_D) and covariance [[C00, C01], [C01, C11]], over the whole
tensor or per channel. Given q, the error is Gaussian too (eqs. 8-10):

    mean       m(q) = mu_D + rho sqrt(C11 / C00) (q - mu_q)       rho = C01 / sqrt(C00 C11)
    variance   r^2  = C11 (1 - rho^2)                             the residual: what q does not explain

    deterministic (D-D2)   e' = q - m(q)            the sampler absorbs r^2 into its own noise (Alg. 1, lines 15-17)
    stochastic (S-D2)      e' = q - (m(q) + r z)    z ~ N(0, 1) from a stream of its own (Alg. 1, lines 11-13)

E[(e' - eps)^2] is mu_D^2 + C11 without correction, r^2 with D-D2 and 2 r^2 with S-D2; Var[e'] = Var[eps] with S-D2.
A correction is a function `(q, t) -> Corrected`. It knows nothing of the sampler: the sampler knows how far a change
of eps moves its step, and derives from `Corrected.var` what it can absorb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import array_api_compat
import numpy as np

from quaver.runtime.artifact import Stamp, load_tensors, save_tensors
from quaver.runtime.errors import ArtifactError
from quaver.runtime.plug import plug

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Noise = Callable[[int, tuple[int, ...]], Array]  # index of the step, shape [B, C, H, W] -> that many standard normals
VarianceMode = Literal["paper", "consistent"]

KIND = "error_stats"
DEAD = 1e-12  # variance of q at or below which a channel says nothing about its error
RHO_MAX = 0.9999  # keeps r^2 positive when rounding makes C01^2 exceed C00 C11


@dataclass(frozen=True)
class Corrected:
    """The corrected eps [B, C, H, W], and the residual variance `var` ([] or [C, 1, 1] float64) left for the sampler.

    `variance_mode` places the reduced sigma: `paper` also in the direction term, `consistent` in the noise term only.
    """

    eps: Array
    var: float | np.ndarray = 0.0
    variance_mode: VarianceMode = "paper"


Correct = Callable[[Array, float], Corrected]  # guided eps [B, C, H, W], timestep -> Corrected


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
class ErrorStats:
    """The joint Gaussian of output and error per timestep, all float64.

    timesteps [S] int64; mean [S, C|1, 2] = (mu_q, mu_D); cov [S, C|1, 2, 2]; count [S], pairs behind each timestep.
    """

    timesteps: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    count: np.ndarray
    binding: Binding | None = None

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
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise ArtifactError("error statistics are not finite: 'quaver stats RECIPE' fits them anew")


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


def correct_none(eps: Array, t: float) -> Corrected:
    """No correction: eps [B, C, H, W] as it is."""
    return Corrected(eps)


def d2_deterministic(
    stats: ErrorStats, noise: Noise | None = None, *, variance_mode: VarianceMode = "paper"
) -> Correct:
    """D-D2: take off the expected error and leave its residual variance to the sampler (D2-DPM Alg. 1, lines 15-17).

    With `paper` the sampler's step is that of Algorithm 1, where the reduced sigma also enters the direction term;
    with `consistent` it enters the noise term only, which gives a step the variance it has without error. At eta = 0
    there is no noise to reduce, and both are the correction of the mean alone. `noise` is not used.
    """
    law = error_law(stats)

    def correct(q: Array, t: float) -> Corrected:
        s = _row(stats, q, t)
        return Corrected(q - _expected(law, s, q), _residual(law, s, q), variance_mode)

    return correct


def d2_consistent(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """D-D2 with the variance mode `consistent`."""
    return d2_deterministic(stats, noise, variance_mode="consistent")


def d2_stochastic(stats: ErrorStats, noise: Noise) -> Correct:
    """S-D2: take off an error drawn from its law given the output (D2-DPM Alg. 1, lines 11-13).

    `noise` is asked with the row of the timestep in the statistics; it must not be the sampler's own stream.
    """
    law = error_law(stats)

    def correct(q: Array, t: float) -> Corrected:
        s = _row(stats, q, t)
        z = _like(q, noise(s, tuple(q.shape)))
        return Corrected(q - (_expected(law, s, q) + _column(np.sqrt(law.var[s]), q) * z))

    return correct


def plain(stats: ErrorStats | None = None, noise: Noise | None = None) -> Correct:
    """The maker of `correct_none`."""
    return correct_none


# Every maker is called as maker(stats, noise) and returns a Correct.
CORRECTIONS = {
    "none": "quaver.runtime.correct:plain",
    "d2-deterministic": "quaver.runtime.correct:d2_deterministic",
    "d2-consistent": "quaver.runtime.correct:d2_consistent",
    "d2-stochastic": "quaver.runtime.correct:d2_stochastic",
}


def make_correct(name: str, stats: ErrorStats | None, noise: Noise) -> Correct:
    """The correction of a name in `CORRECTIONS`, or of a user's own maker `package.module:function`.

    Raises: RecipeError for an unknown name, ArtifactError when there are no statistics and the correction reads them.
    """
    maker = plug(name, CORRECTIONS, what="correction")
    if stats is None and name != "none":
        raise ArtifactError(f"correction {name!r} needs error statistics: fit them with 'quaver stats RECIPE'")
    return maker(stats, noise)


def save_stats(path: Path, stats: ErrorStats, stamp: Stamp) -> Path:
    """Write error statistics with what they belong to."""
    tensors = {
        "timesteps": np.asarray(stats.timesteps, dtype=np.int64),
        "mean": np.asarray(stats.mean, dtype=np.float64),
        "cov": np.asarray(stats.cov, dtype=np.float64),
        "count": np.asarray(stats.count, dtype=np.float64),
    }
    stamp = replace(stamp, kind=KIND)
    return save_tensors(path, tensors, stamp, meta={"binding": asdict(stats.binding) if stats.binding else None})


def load_stats(path: Path) -> ErrorStats:
    """Read error statistics.

    Raises: ArtifactError when the file is missing, damaged, of another kind, or holds something else.
    """
    tensors, meta = load_tensors(path, KIND)
    try:
        found = meta.get("binding")
        binding = Binding(**{**found, "latent_shape": tuple(found["latent_shape"])}) if found else None
        return ErrorStats(tensors["timesteps"], tensors["mean"], tensors["cov"], tensors["count"], binding)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} lacks a part of error statistics ({error}): 'quaver stats RECIPE' fits them anew"
        ) from error


def check_binding(stats: ErrorStats, wanted: Binding) -> None:
    """Refuse statistics that were fitted on something else than what is about to run (the reference may differ).

    Raises: ArtifactError naming every difference, and the command that fits them anew.
    """
    if stats.binding is None:
        raise ArtifactError(
            "error statistics do not say what they were fitted on: 'quaver stats RECIPE' fits them anew"
        )
    pairs = [(f.name, getattr(stats.binding, f.name), getattr(wanted, f.name)) for f in fields(Binding)]
    wrong = [
        f"{name} {_short(had)}, now {_short(now)}" for name, had, now in pairs if name != "reference" and had != now
    ]
    if wrong:
        raise ArtifactError(
            f"error statistics belong to another run (fitted on {'; '.join(wrong)}): sample as they were fitted, or "
            "refit with 'quaver stats RECIPE', or use --correct none"
        )


def _row(stats: ErrorStats, q: Array, t: float) -> int:
    """The row of timestep `t` in the statistics; never a made-up one."""
    found = np.flatnonzero(stats.timesteps == t)
    if len(found) == 0:
        raise ArtifactError(
            f"no error statistics for timestep {t:g}, they were fitted at {_listed(stats.timesteps)}: sample with "
            f"steps = {len(stats.timesteps)}, or refit with 'quaver stats RECIPE --set sampling.steps=N'"
        )
    if (C := stats.mean.shape[1]) not in (1, q.shape[1]):
        raise ArtifactError(
            f"error statistics have {C} channels, the latent has {q.shape[1]}: refit with 'quaver stats RECIPE'"
        )
    return int(found[0])


def _expected(law: ErrorLaw, s: int, q: Array) -> Array:
    """m(q) [B, C, H, W], the mean of the error given q."""
    return _column(law.mu_D[s], q) + _column(law.slope[s], q) * (q - _column(law.mu_q[s], q))


def _residual(law: ErrorLaw, s: int, q: Array) -> np.ndarray:
    """r^2 as [] or [C, 1, 1] float64."""
    return law.var[s, 0] if law.var.shape[1] == 1 else law.var[s].reshape(-1, *[1] * (q.ndim - 2))


def _column(values: np.ndarray, q: Array) -> Array:
    """Values [C|1] so that they broadcast against q [B, C, H, W]: a number, or an array of q's kind [C, 1, 1]."""
    return float(values[0]) if len(values) == 1 else _like(q, values.reshape(-1, *[1] * (q.ndim - 2)))


def _like(q: Array, values: Array) -> Array:
    """Values as an array of q's namespace, type and device."""
    return array_api_compat.array_namespace(q).asarray(values, dtype=q.dtype, device=array_api_compat.device(q))


def _short(value: Any) -> str:
    return f"{value[:15]}…" if isinstance(value, str) and value.startswith("sha256:") else str(value)


def _listed(values: np.ndarray) -> str:
    shown = [str(v) for v in values.tolist()]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:3], "…", shown[-1]])
