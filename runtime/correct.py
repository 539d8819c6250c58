"""Corrections of the quantization error between engine calls: (q, t, x_t) -> Corrected.

q is what the quantized denoiser says (guided eps), D = q - eps its error; `error_law` has D given q. A correction takes
off what it expects of D, and says what variance is left for a sampler that has noise to take it off:

    none               e' = q
    mean               e' = q - mu_D
    ptqd               e' = (q - b) / (1 + k)   D = k eps + R, b = E[R], k >= 0; leaves Var[R] / (1 + k)^2
    d2-deterministic   e' = q - m(q)            leaves r^2; the step of D2-DPM's Algorithm 1, lines 15-17
    d2-consistent      e' = q - m(q)            leaves r^2; a step whose variance is that without error
    d2-stochastic      e' = q - (m(q) + r z)    z ~ N(0, 1) from a stream of its own (Algorithm 1, lines 11-13)
    d2-local           e' = q - m(q, x_t)       the same law over a neighbourhood of all channels, and of x_t
    auto               e' = q - m*(q, x_t)      the law of what keeps the engine on the float model's path

E[(e' - eps)^2] is mu_D^2 + C11 without correction, r^2 with D-D2 and 2 r^2 with S-D2; Var[e'] = Var[eps] with S-D2.
The last two leave the sampler's noise alone: their aim is the path that the float model takes, and what is taken off
the noise is off that path too. A correction knows nothing of the sampler: the sampler knows how far a change of eps
moves its step, and derives from `Corrected.var` what it can absorb. Sources: D2-DPM (arXiv:2408.11275), PTQD
(arXiv:2305.10657).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import array_api_compat
import numpy as np

from quaver.runtime.error_law import SAMPLING, ErrorLaw, ErrorStats, Local, error_law, refit, row_of
from quaver.runtime.errors import ArtifactError
from quaver.runtime.plug import plug

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Noise = Callable[[int, tuple[int, ...]], Array]  # index of the step, shape [B, C, H, W] -> that many standard normals
VarianceMode = Literal["paper", "consistent"]

# Multiply-adds that BLAS does on the caller's thread. More threads would wait, for up to a scheduler's slice, for those
# of an engine that spin between its calls.
ALONE = 1 << 18


@dataclass(frozen=True)
class Corrected:
    """The corrected eps [B, C, H, W], and the residual variance `var` ([] or [C, 1, 1] float64) left for the sampler.

    `variance_mode` places the reduced sigma: `paper` also in the direction term, `consistent` in the noise term only.
    """

    eps: Array
    var: float | np.ndarray = 0.0
    variance_mode: VarianceMode = "paper"


Correct = Callable[[Array, float, Array], Corrected]  # guided eps [B, C, H, W], timestep, x_t [B, C, H, W] -> Corrected


def correct_none(q: Array, t: float, x: Array) -> Corrected:
    """No correction: eps [B, C, H, W] as it is."""
    return Corrected(q)


def plain(stats: ErrorStats | None = None, noise: Noise | None = None) -> Correct:
    """The maker of `correct_none`."""
    return correct_none


def mean(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """Take off the mean of the error. `noise` is not used."""

    def correct(q: Array, t: float, x: Array) -> Corrected:
        return Corrected(q - _column(stats.mean[row_of(stats, q, t), :, 1], q))

    return correct


def ptqd(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """Divide by what the error has in common with eps, take off the rest's mean, leave its variance (PTQD, eqs. 7-13).

    The regression on eps = q - D follows from the statistics: Var[eps] = C00 - 2 C01 + C11, Cov[eps, D] = C01 - C11.
    A slope below 0 counts as none. The sampler's step is that of `d2-deterministic`. `noise` is not used.
    """
    C00, C01, C11 = stats.cov[..., 0, 0], stats.cov[..., 0, 1], stats.cov[..., 1, 1]
    spread, common = C00 - 2 * C01 + C11, C01 - C11
    k = np.maximum(np.divide(common, spread, out=np.zeros_like(common), where=spread > 1e-12), 0.0)
    bias = (1 + k) * stats.mean[..., 1] - k * stats.mean[..., 0]
    var = np.maximum(C11 - 2 * k * common + k**2 * spread, 0.0) / (1 + k) ** 2

    def correct(q: Array, t: float, x: Array) -> Corrected:
        s = row_of(stats, q, t)
        return Corrected((q - _column(bias[s], q)) / _column(1 + k[s], q), _spread(var[s], q))

    return correct


def d2_deterministic(
    stats: ErrorStats, noise: Noise | None = None, *, variance_mode: VarianceMode = "paper"
) -> Correct:
    """D-D2: take off the expected error and leave its residual variance to the sampler (D2-DPM Alg. 1, lines 15-17).

    With `paper` the sampler's step is that of Algorithm 1, where the reduced sigma also enters the direction term;
    with `consistent` it enters the noise term only, which gives a step the variance it has without error. At eta = 0
    there is no noise to reduce, and both are the correction of the mean alone. `noise` is not used.
    """
    law = error_law(stats)

    def correct(q: Array, t: float, x: Array) -> Corrected:
        s = row_of(stats, q, t)
        return Corrected(q - _expected(law, s, q), _spread(law.var[s], q), variance_mode)

    return correct


def d2_consistent(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """D-D2 with the variance mode `consistent`."""
    return d2_deterministic(stats, noise, variance_mode="consistent")


def d2_stochastic(stats: ErrorStats, noise: Noise) -> Correct:
    """S-D2: take off an error drawn from its law given the output (D2-DPM Alg. 1, lines 11-13).

    `noise` is asked with the row of the timestep in the statistics; it must not be the sampler's own stream.
    """
    law = error_law(stats)

    def correct(q: Array, t: float, x: Array) -> Corrected:
        s = row_of(stats, q, t)
        z = _like(q, noise(s, tuple(q.shape)))
        return Corrected(q - (_expected(law, s, q) + _column(np.sqrt(law.var[s]), q) * z))

    return correct


def d2_local(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """Take off what a neighbourhood of q and x_t in all channels says of the error. `noise` is not used.

    Raises: ArtifactError when the statistics have no local law.
    """
    return _take_off(stats, "local")


def auto(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """Take off what keeps the engine on the float model's path: per timestep and channel as much as held elsewhere.

    Nothing where nothing did. `noise` is not used. Raises: ArtifactError when the statistics have no such law.
    """
    return _take_off(stats, "path")


def _take_off(stats: ErrorStats, part: str) -> Correct:
    law: Local | None = getattr(stats, part)
    if law is None:
        bound = stats.binding
        wanted = {name: getattr(bound, name) for name in SAMPLING if bound}
        raise ArtifactError(
            f"these error statistics have no law {part!r}, which takes two trajectories or more, and serves only "
            f"the guidance and the timesteps of its fit: use --correct mean or ptqd, or fit it with {refit(wanted)}"
        )

    def correct(q: Array, t: float, x: Array) -> Corrected:
        s = row_of(stats, q, t)
        if not (law.weight[s].any() or law.bias[s].any()):
            return Corrected(q)
        return Corrected(q - (convolve(law.weight[s], q, x) + _column(law.bias[s], q)))

    return correct


# Every maker is called as maker(stats, noise) and returns a Correct.
CORRECTIONS = {
    "none": "quaver.runtime.correct:plain",
    "mean": "quaver.runtime.correct:mean",
    "ptqd": "quaver.runtime.correct:ptqd",
    "d2-deterministic": "quaver.runtime.correct:d2_deterministic",
    "d2-consistent": "quaver.runtime.correct:d2_consistent",
    "d2-stochastic": "quaver.runtime.correct:d2_stochastic",
    "d2-local": "quaver.runtime.correct:d2_local",
    "auto": "quaver.runtime.correct:auto",
}


def make_correct(name: str, stats: ErrorStats | None, noise: Noise) -> Correct:
    """The correction of a name in `CORRECTIONS`, or of a user's own maker `package.module:function`.

    Raises: RecipeError for an unknown name, ArtifactError when there are no statistics and the correction reads them.
    """
    maker = plug(name, CORRECTIONS, what="correction")
    if stats is None and name != "none":
        raise ArtifactError(f"correction {name!r} needs error statistics: fit them with 'quaver stats RECIPE'")
    return maker(stats, noise)


def convolve(weight: np.ndarray, q: Array, x: Array) -> Array:
    """weight [C, 2 C, k, k] * [q, x], padded with zeros; q, x [B, C, H, W] -> [B, C, H, W] in q's type.

    Products of matrices for all k^2 places at once, whose results are added where they belong, so that any array of the
    array API will do.
    """
    xp, (B, C, H, W), k = array_api_compat.array_namespace(q), q.shape, weight.shape[-1]
    both = _beside(xp, q, x, k // 2)
    places = _like(q, weight.transpose(2, 3, 0, 1).reshape(k * k * C, 2 * C))
    wide = (H + k - 1, W + k - 1)
    flat, most = xp.reshape(both, (B, 2 * C, -1)), max(1, ALONE // (places.shape[0] * places.shape[1]))
    size = flat.shape[-1]  # a slice beyond it is no part of the array API
    parts = [places @ flat[:, :, start : min(start + most, size)] for start in range(0, size, most)]
    each = xp.reshape(xp.concat(parts, axis=-1), (B, k, k, C, *wide))
    total = each[:, 0, 0, :, :H, :W]
    for i, j in [(i, j) for i in range(k) for j in range(k)][1:]:
        total = total + each[:, i, j, :, i : i + H, j : j + W]
    return total


def _beside(xp: Any, q: Array, x: Array, width: int) -> Array:
    """[q, x] [B, 2 C, ..], with `width` zeros around the last two axes."""
    B, C, H, W = q.shape
    both = xp.zeros((B, 2 * C, H + 2 * width, W + 2 * width), dtype=q.dtype, device=array_api_compat.device(q))
    both[:, :C, width : width + H, width : width + W] = q
    both[:, C:, width : width + H, width : width + W] = x
    return both


def _expected(law: ErrorLaw, s: int, q: Array) -> Array:
    """m(q) [B, C, H, W], the mean of the error given q."""
    return _column(law.mu_D[s], q) + _column(law.slope[s], q) * (q - _column(law.mu_q[s], q))


def _spread(var: np.ndarray, q: Array) -> np.ndarray:
    """A variance [C|1] as [] or [C, 1, 1] float64."""
    return var[0] if len(var) == 1 else var.reshape(-1, *[1] * (q.ndim - 2))


def _column(values: np.ndarray, q: Array) -> Array:
    """Values [C|1] so that they broadcast against q [B, C, H, W]: a number, or an array of q's kind [C, 1, 1]."""
    return float(values[0]) if len(values) == 1 else _like(q, values.reshape(-1, *[1] * (q.ndim - 2)))


def _like(q: Array, values: Array) -> Array:
    """Values as an array of q's namespace, type and device."""
    return array_api_compat.array_namespace(q).asarray(values, dtype=q.dtype, device=array_api_compat.device(q))
