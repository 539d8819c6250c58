"""AdaRound: whether a weight is rounded down or up is learned, through a sigmoid that is stretched and cut.

    q = clip(floor(w / s) + h(V), qmin, qmax)        h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)
    f(V) = sum 1 - |2 h(V) - 1|^beta                 added to the loss, beta annealed from 20 to 2

h starts at w / s - floor(w / s), so that learning starts at the float weight; f is 0 where h is 0 or 1 and pulls the
rest there as beta falls. At the end V >= 0 rounds up. zeta = 1.1, gamma = -0.1; during the first part of the iterations
(warm-up) f is left out.

Source: Nagel et al. 2020 (arXiv:2004.10568), equations 21-25. beta falls linearly, as in the code of BRECQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.quant import Format
from quaver.calib.reconstruct.operators import torch

if TYPE_CHECKING:
    from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
BETA_FIRST, BETA_LAST = 20.0, 2.0


def rectified(v: Tensor) -> Tensor:
    """h(V) in [0, 1]."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(ratio: Tensor) -> Tensor:
    """The V for which h(V) is the fraction of w / s."""
    h = ratio - ratio.floor()
    return -torch().log((ZETA - GAMMA) / (h - GAMMA) - 1)


def regularizer(v: Tensor, beta: float) -> Tensor:
    """f(V), a number: 0 when every h(V) is 0 or 1."""
    return (1 - (2 * rectified(v) - 1).abs().pow(beta)).sum()


def temperature(step: int, iterations: int, warmup: float) -> float | None:
    """beta at a step; None during the share `warmup` of the iterations, which goes without f."""
    first = warmup * iterations
    if step < first:
        return None
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * (1 - (step - first) / (iterations - first))


def soft_codes(floor: Tensor, v: Tensor, fmt: Format) -> Tensor:
    """Codes that may lie between integers, differentiable in V."""
    return (floor + rectified(v)).clamp(fmt.qmin, fmt.qmax)


def hard_codes(floor: Tensor, v: Tensor, fmt: Format) -> np.ndarray:
    """The learned codes, in the type of the format."""
    return (floor + (v >= 0)).clamp(fmt.qmin, fmt.qmax).cpu().numpy().astype(fmt.dtype)
