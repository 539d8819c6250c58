"""Samplers: from noise to a sample, one plain function each.

DDIM (arXiv:2010.02502, eqs. 12 and 16), from noise level a = alpha_bar_t to a' = alpha_bar_{t'}:

    x_0' = (x - sqrt(1 - a) e) / sqrt(a)
    x'   = sqrt(a') x_0' + sqrt(1 - a' - s^2) e + s z               z ~ N(0, 1)
    s    = eta sqrt((1 - a') / (1 - a) (1 - a / a'))                eta = 0: an ODE, eta = 1: DDPM's noise

so a unit change of e moves x' by exactly

    k(s) = sqrt(1 - a' - s^2) - sqrt(a' (1 - a) / a)

A correction that leaves an error of variance r^2 in e thus adds k^2 r^2 to x', which the sampler takes off its own
noise:  s_new^2 = max(s^2 - k^2 r^2, 0)  (D2-DPM Algorithm 1, lines 16-17). The published algorithm then uses s_new in
the direction term as well (`paper`), which moves the step to a smaller eta on top of the error; keeping s there gives
x' exactly the variance it has without error (`consistent`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from quaver.runtime.correct import Correct, Corrected, Noise, correct_none
from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.schedule import Schedule, alpha_bar_at, previous, timesteps

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Denoise = Callable[[Array, int], Array]  # x_t [B, C, H, W], t in 0..T-1 -> eps [B, C, H, W]

__all__ = ["Correct", "Corrected", "Denoise", "Noise", "SamplingSettings", "Step", "correct_none", "sample_ddim"]


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn: the table [sampling] of a recipe."""

    sampler: str = "ddim"
    steps: int = 20  # network calls per sample (each of two branches when guided)
    eta: float = 0.0  # 0 deterministic to 1 the full noise of DDPM
    guidance: float = 3.0  # classifier-free guidance scale; 1 is none
    seed: int = 0  # of the first sample; the others count on from it

    def __post_init__(self) -> None:
        bad = {
            "sampler": self.sampler not in SAMPLERS and f"one of {', '.join(SAMPLERS)}",
            "steps": self.steps < 1 and "1 or more",
            "eta": not 0.0 <= self.eta <= 1.0 and "0 to 1",
            "guidance": not (math.isfinite(self.guidance) and self.guidance >= 0.0) and "a finite number, 0 or more",
            "seed": not 0 <= self.seed < 2**32 and "0 to 4294967295",
        }
        for name, expected in bad.items():
            if expected:
                raise RecipeError(f"sampling.{name} is {getattr(self, name)!r}, expected {expected}")


@dataclass(frozen=True)
class Step:
    """One step of a sampler, as `on_step` sees it; arrays are [B, C, H, W].

    `clipped` counts the channels (1 when statistics are of the whole tensor) whose residual variance exceeded the
    noise the sampler had to give; it stays 0 where the sampler has no noise at all.
    """

    index: int  # 0 is the first, noisiest step
    t: int
    x_t: Array
    eps_raw: Array  # what the denoiser said
    eps: Array  # after the correction
    x_prev: Array
    clipped: int = 0


@dataclass(frozen=True)
class DDIMStep:
    """The numbers of one DDIM step, float64: a = alpha_bar_t, a_prev where the step ends, the noise it adds."""

    a: float
    a_prev: float
    sigma: float

    @property
    def k(self) -> float:
        """How far a unit change of eps moves the result; negative."""
        return _root(1.0 - self.a_prev - self.sigma**2) - math.sqrt(self.a_prev * (1.0 - self.a) / self.a)


def ddim_step(schedule: Schedule, t: int, *, steps: int, eta: float) -> DDIMStep:
    """The numbers of the step from timestep `t` when sampling in `steps` steps."""
    a, a_prev = alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous(schedule, t, steps))
    return DDIMStep(a, a_prev, eta * _root((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev)))


def sample_ddim(
    denoise: Denoise,
    x_T: Array,
    schedule: Schedule,
    *,
    steps: int,
    eta: float = 0.0,
    correct: Correct = correct_none,
    noise: Noise | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Array:
    """Draw samples x_0 [B, C, H, W] from noise x_T [B, C, H, W] with DDIM.

    `noise(index, shape)` is asked once per step that adds noise, so eta > 0 needs it. Raises: QuaverError without it.
    """
    x = x_T
    for index, t in enumerate(timesteps(schedule, steps).tolist()):
        eps_raw = denoise(x, t)
        fixed = correct(eps_raw, t)
        numbers = ddim_step(schedule, t, steps=steps, eta=eta)
        z = _draw(noise, index, x) if numbers.sigma > 0.0 else None
        x_prev, clipped = apply_ddim(numbers, x, fixed, z, clip=schedule.clip)
        if on_step is not None:
            on_step(Step(index, t, x, eps_raw, fixed.eps, x_prev, clipped))
        x = x_prev
    return x


SAMPLERS: dict[str, Callable[..., Array]] = {"ddim": sample_ddim}


def apply_ddim(
    numbers: DDIMStep, x: Array, fixed: Corrected, z: Array | None, *, clip: float | None
) -> tuple[Array, int]:
    """One step: x [B, C, H, W] and corrected eps to x' [B, C, H, W], and how many channels were clipped."""
    a, a_prev, s = numbers.a, numbers.a_prev, numbers.sigma
    s_new, clipped = reduce_sigma(s, numbers.k, fixed.var)
    s_direction = s_new if fixed.variance_mode == "paper" else s
    x_0 = (x - math.sqrt(1.0 - a) * fixed.eps) / math.sqrt(a)
    if clip is not None:
        x_0 = array_api_compat.array_namespace(x).clip(x_0, -clip, clip)
    x_prev = math.sqrt(a_prev) * x_0 + _factor(x, _root(1.0 - a_prev - s_direction**2)) * fixed.eps
    return (x_prev if z is None else x_prev + _factor(x, s_new) * z), clipped


def reduce_sigma(sigma: float, k: float, var: float | np.ndarray) -> tuple[Any, int]:
    """The sampler's noise less what a residual of variance `var` ([] or [C, 1, 1]) brings in, and the channels clipped.

    s_new = sqrt(max(sigma^2 - k^2 var, 0)). A clip is a channel that brings in more than sigma^2 > 0.
    """
    left = sigma**2 - k**2 * np.asarray(var, dtype=np.float64)
    return np.sqrt(np.maximum(left, 0.0)), int(np.count_nonzero(left < 0.0)) if sigma > 0.0 else 0


def _root(value: Any) -> Any:
    """sqrt of what is not negative but for rounding."""
    return np.sqrt(np.maximum(value, 0.0))


def _factor(x: Array, value: Any) -> Array:
    """A coefficient ([] or [C, 1, 1] float64) as what multiplies x: a number, or an array of x's kind."""
    if np.ndim(value) == 0:
        return float(value)
    return array_api_compat.array_namespace(x).asarray(value, dtype=x.dtype, device=array_api_compat.device(x))


def _draw(noise: Noise | None, index: int, x: Array) -> Array:
    if noise is None:
        raise QuaverError("eta > 0 adds noise in every step: pass noise=, or sample with eta = 0")
    z = noise(index, tuple(x.shape))
    return array_api_compat.array_namespace(x).asarray(z, dtype=x.dtype, device=array_api_compat.device(x))
