"""QDrop: while rounding is learned, activations are quantized only half of the time, element by element.

    x~ = x_hat with probability 1 - p, x with probability p          p = 0.5, drawn anew for every call

What a block reads from those before it is mixed in the same way, between what the float model and what the quantized
one carries there. A rounding that serves both is flat: it holds beyond the calibration set.

Source: Wei et al. 2022 (arXiv:2203.05740), equations 8-10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quaver.calib.reconstruct.operators import torch

if TYPE_CHECKING:
    from torch import Tensor


def mix(x: Tensor, coded: Tensor, drop: float, generator: Any) -> Tensor:
    """Elements of x with probability `drop`, else of its quantized twin; nothing is drawn where drop is 0 or 1."""
    if drop in (0.0, 1.0):
        return x if drop else coded
    chosen = torch().rand(x.shape, generator=generator, device=x.device) < drop
    return torch().where(chosen, x, coded)
