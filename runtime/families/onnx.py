"""Any denoiser, described by its card: which input is the sample, which the time, and rows for all others.

    inputs.sample    name of x                          [N, C, H, W]
    inputs.time      name of t or sigma                 [N], or [N, 1] when inputs.column
    inputs.dtype     of that input
    inputs.sigma     whether it is fed the noise level sigma_t instead of the timestep t
    inputs.scaling   "vp": x = x_t      "ve": x = x_t / sqrt(a_t) = x_0 + sigma_t eps

    sigma_t = sqrt((1 - a_t) / a_t),       a_t = alpha_bar_t

Inside, x_t and t are what they are to every model (`schedule`); a network that lives on sigma is met here, at its edge.
The two scalings are those of DDPM (arXiv:2006.11239) and EDM (arXiv:2206.00364, table 1).
"""

from __future__ import annotations

from dataclasses import replace

import array_api_compat
import numpy as np

from quaver.runtime.family import Array, Card, Family
from quaver.runtime.guide import Rows
from quaver.runtime.rows import embed, end_at_latents
from quaver.runtime.schedule import Schedule


def sigmas(schedule: Schedule) -> np.ndarray:
    """sigma_t [T] float64."""
    return np.sqrt((1.0 - schedule.alpha_bar) / schedule.alpha_bar)


def fit(card: Card, schedule: Schedule) -> Family:
    """The family with the inputs that a card names."""
    said = card["inputs"]
    level, shrink = sigmas(schedule), np.sqrt(schedule.alpha_bar)

    def feeds(x: Array, t: Array, rows: Rows) -> dict[str, Array]:
        xp = array_api_compat.array_namespace(x)
        device = array_api_compat.device(x)
        if said["scaling"] == "ve":
            x = x / xp.reshape(xp.take(xp.asarray(shrink, dtype=x.dtype, device=device), t, axis=0), (-1, 1, 1, 1))
        if said["sigma"]:
            t = xp.take(xp.asarray(level, dtype=xp.float64, device=device), t, axis=0)
        t = xp.astype(t, getattr(xp, said["dtype"]))
        return {said["sample"]: x, said["time"]: xp.reshape(t, (-1, 1)) if said["column"] else t, **rows}

    return replace(FAMILY, feeds=feeds)


def unfitted(x: Array, t: Array, rows: Rows) -> dict[str, Array]:
    """The inputs of a torch U-Net of diffusers, whose first two are always called the same."""
    return {"sample": x, "timestep": t, **rows}


FAMILY = Family("onnx", "latents", (), embed, unfitted, end_at_latents, fit=fit, free_length=True)
