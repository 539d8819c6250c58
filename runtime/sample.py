"""Samplers: from noise to a sample, one loop for all of them; `samplers` has the numbers of each step.

    x_0' = (x - sqrt(1 - a) e) / sqrt(a)
    x'   = sqrt(a') x_0' + sqrt(room - s^2) e + bend (x_0' - x_0'_before) + s z                       z ~ N(0, 1)

A unit change of e moves x' by k(s), so a correction that leaves an error of variance r^2 in e adds k^2 r^2 to x', which
the sampler takes off its own noise:  s_new^2 = max(s^2 - k^2 r^2, 0)  (D2-DPM, arXiv:2408.11275, Algorithm 1, lines
16-17). The published algorithm then uses s_new in the direction term as well (`paper`), which moves the step to a
smaller eta on top of the error; keeping s there gives x' exactly the variance it has without error (`consistent`).
What a multistep sampler remembers, x_0'_before, is of the corrected e.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import array_api_compat
import numpy as np

from quaver.runtime.config import to_config
from quaver.runtime.correct import Correct, Corrected, Noise, correct_none
from quaver.runtime.errors import QuaverError, RecipeError, unknown
from quaver.runtime.samplers import PLANS, Move, Plan, plan
from quaver.runtime.schedule import Schedule

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Denoise = Callable[[Array, float], Array]  # x_t [B, C, H, W], t in 0..T-1 -> eps [B, C, H, W]

__all__ = [
    "SAMPLERS",
    "Correct",
    "Corrected",
    "Denoise",
    "Noise",
    "SamplingSettings",
    "Step",
    "advance",
    "correct_none",
    "sample",
    "sample_ddim",
    "varied",
    "visited",
]


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn: the table [sampling] of a recipe."""

    sampler: str = "ddim"
    steps: int = 20  # network calls per sample (each of two branches when guided)
    eta: float = 0.0  # 0 deterministic to 1 the full noise of DDPM
    guidance: float = 3.0  # classifier-free guidance scale; 1 is none

    def __post_init__(self) -> None:
        if self.sampler not in PLANS:
            raise RecipeError(f"{unknown('sampler', self.sampler, PLANS)} (there are {', '.join(PLANS)})")
        bad = {
            "steps": self.steps < 1 and "1 or more",
            "eta": not 0.0 <= self.eta <= (1.0 if self.sampler == "ddim" else 0.0)
            and ("0 to 1" if self.sampler == "ddim" else f"0: {self.sampler} has noise of its own, or none"),
            "guidance": not (math.isfinite(self.guidance) and self.guidance >= 0.0) and "a finite number, 0 or more",
        }
        for name, expected in bad.items():
            if expected:
                raise RecipeError(f"sampling.{name} is {getattr(self, name)!r}, expected {expected}")


def varied(own: SamplingSettings, **given: str | float | None) -> SamplingSettings:
    """A way of sampling with what is given, and not None, put in its place; another sampler leaves eta behind.

    Raises: RecipeError when a setting cannot be meant.
    """
    table = asdict(own)
    if given.get("sampler") not in (None, own.sampler):
        table.pop("eta")
    table |= {name: value for name, value in given.items() if value is not None}
    return to_config(SamplingSettings, table, where="sampling")


@dataclass(frozen=True)
class Step:
    """One step of a sampler, as `on_step` sees it; arrays are [B, C, H, W].

    `clipped` counts the channels (1 when statistics are of the whole tensor) whose residual variance exceeded the
    noise the sampler had to give; it stays 0 where the sampler has no noise at all.
    """

    index: int  # 0 is the first, noisiest step
    t: float
    x_t: Array
    eps_raw: Array  # what the denoiser said
    eps: Array  # after the correction
    x_prev: Array
    x_0: Array  # what the sampler takes the clean sample to be
    clipped: int = 0


def sample(
    denoise: Denoise,
    x_T: Array,
    plan: Plan,
    *,
    correct: Correct = correct_none,
    noise: Noise | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Array:
    """Draw samples x_0 [B, C, H, W] from noise x_T [B, C, H, W], which is N(0, 1), along a plan.

    `noise(index, shape)` is asked once per step that adds noise.
    Raises: QuaverError when it is not there.
    """
    x, before = x_T if plan.start == 1.0 else x_T * plan.start, None
    for index, move in enumerate(plan.moves):
        eps_raw = denoise(x, move.t)
        fixed = correct(eps_raw, move.t, x)
        z = _draw(noise, index, x) if move.sigma > 0.0 else None
        x_prev, before, clipped = advance(move, x, fixed, z, clip=plan.clip, before=before)
        if on_step is not None:
            on_step(Step(index, move.t, x, eps_raw, fixed.eps, x_prev, before, clipped))
        x = x_prev
    return x


def visited(settings: SamplingSettings, schedule: Schedule) -> np.ndarray:
    """The timesteps [S] that samples drawn with `settings` visit, descending."""
    return plan(settings.sampler, schedule, steps=settings.steps, eta=settings.eta).timesteps


def sample_with(sampler: str) -> Callable[..., Array]:
    """A sampler by name: (denoise, x_T, schedule, *, steps, eta=0, correct, noise, on_step) -> x_0 [B, C, H, W]."""

    def draw(denoise: Denoise, x_T: Array, schedule: Schedule, *, steps: int, eta: float = 0.0, **rest: Any) -> Array:
        return sample(denoise, x_T, plan(sampler, schedule, steps=steps, eta=eta), **rest)

    return draw


SAMPLERS: dict[str, Callable[..., Array]] = {name: sample_with(name) for name in PLANS}
sample_ddim = SAMPLERS["ddim"]


def advance(
    move: Move, x: Array, fixed: Corrected, z: Array | None, *, clip: float | None = None, before: Array | None = None
) -> tuple[Array, Array, int]:
    """One step: x [B, C, H, W] and corrected eps to x', to x_0' [B, C, H, W], and how many channels were clipped.

    `clip` bounds |x_0'|. `before` is the x_0' of the step before, None in the first one.
    """
    a, s, eps = move.a, move.sigma, fixed.eps
    s_new, clipped = reduce_sigma(s, move.k, fixed.var)
    x_0 = (x - math.sqrt(1.0 - a) * eps) / math.sqrt(a)
    if clip is not None:
        x_0 = array_api_compat.array_namespace(x).clip(x_0, -clip, clip)
        eps = (x - math.sqrt(a) * x_0) / math.sqrt(1.0 - a) if move.implied else eps
    direction = _root(move.room - (s_new if fixed.variance_mode == "paper" else s) ** 2)
    x_prev = math.sqrt(move.a_prev) * x_0 + _factor(x, direction) * eps
    if move.bend and before is not None:
        x_prev = x_prev + move.bend * (x_0 - before)
    return (x_prev if z is None else x_prev + _factor(x, s_new) * z), x_0, clipped


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
        raise QuaverError("this sampler adds noise in every step: pass noise=, or sample with ddim and eta = 0")
    z = noise(index, tuple(x.shape))
    return array_api_compat.array_namespace(x).asarray(z, dtype=x.dtype, device=array_api_compat.device(x))
