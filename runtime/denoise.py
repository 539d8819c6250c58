"""An engine as a denoiser, and the noise that samples are drawn from.

Each sample has random generators of its own, one per stream and step of its seed, so that neither batch size nor order
changes it:

    x_T                             default_rng([seed, 0])
    the sampler's noise of step i   default_rng([seed, 1, i])
    a correction's noise of step i  default_rng([seed, 2, i])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from quaver.runtime.correct import Noise
from quaver.runtime.engine import Engine
from quaver.runtime.errors import EngineError, QuaverError
from quaver.runtime.family import Family
from quaver.runtime.guide import Rows, guide
from quaver.runtime.sample import Denoise
from quaver.runtime.samplers import whole
from quaver.runtime.schedule import Schedule, to_eps

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API

INITIAL, STEP, CORRECTION = 0, 1, 2  # streams of a seed


def denoiser(
    engine: Engine,
    family: Family,
    cond: Rows,
    uncond: Rows,
    schedule: Schedule,
    guidance: float,
    *,
    names: Sequence[str] | None = None,
) -> Denoise:
    """An engine as a guided denoiser x_t [B, C, T, F], t -> eps [B, C, T, F].

    `cond` has a row per sample, `uncond` too or one for all; `names` say which sample an error is about. What the
    network says is guided first and made eps then, as pipelines do: the order decides the last bit.
    Raises, when called: EngineError for an output that is not finite; QuaverError for a fraction of a timestep.
    """

    def predict(x: Array, t: float, rows: Rows) -> Array:
        xp = array_api_compat.array_namespace(x)
        at = xp.full((x.shape[0],), whole(t), dtype=xp.int64, device=array_api_compat.device(x))
        out = engine(family.feeds(x, at, rows))
        check_finite(out, t, names)
        return out

    guided = guide(predict, cond, uncond, guidance)
    return lambda x, t: to_eps(guided(x, t), x, t, schedule)


def check_finite(out: Array, t: float, names: Sequence[str] | None = None) -> None:
    """Raise EngineError naming the first sample whose row of `out` [N, ...] is not finite; N may hold two branches."""
    xp = array_api_compat.array_namespace(out)
    if bool(xp.all(xp.isfinite(out))):
        return
    rows = [row for row in range(out.shape[0]) if not bool(xp.all(xp.isfinite(out[row, ...])))]
    sample = names[rows[0] % len(names)] if names else f"row {rows[0]}"
    raise EngineError(
        f"the engine's output at timestep {t} is not finite for {sample} ({len(rows)} of {out.shape[0]} rows): check "
        "the graph with the engine 'float', and the ranges it was quantized with"
    )


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """x_T [B, *shape] float32, each sample from its own seed."""
    return _normal(seeds, tuple(shape), INITIAL)


def step_noise(seeds: Sequence[int], stream: int = STEP) -> Noise:
    """The noise of every step, each sample from its own seed; `stream` is STEP or CORRECTION."""

    def noise(index: int, shape: tuple[int, ...]) -> np.ndarray:
        if shape[0] != len(seeds):
            raise QuaverError(f"noise for {shape[0]} samples was asked of {len(seeds)} seeds: give one seed per sample")
        return _normal(seeds, shape[1:], stream, index)

    return noise


def _normal(seeds: Sequence[int], shape: tuple[int, ...], *stream: int) -> np.ndarray:
    rows = [np.random.default_rng([int(s), *stream]).standard_normal(shape, dtype=np.float32) for s in seeds]
    return np.stack(rows)
