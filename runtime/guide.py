"""Classifier-free guidance (arXiv:2207.12598, eq. 6):   e = e_u + w (e_c - e_u)

Both branches go through the network as one batch of two halves, the unconditional one first. The combination is linear
with weights that sum to 1, so it is the same whether taken on eps, v or x_0. w = 1 is the conditional branch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat

from quaver.runtime.errors import RecipeError
from quaver.runtime.sample import Denoise

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Rows = Mapping[str, Array]  # conditioning by name, each [B, ...]: one row per sample
Predict = Callable[[Array, float, Rows], Array]  # x_t [N, C, H, W], t, rows [N, ...] -> eps [N, C, H, W]


def guide(predict: Predict, cond: Rows, uncond: Rows, scale: float) -> Denoise:
    """A denoiser of x_t [B, C, H, W] guided with `scale`; `cond` has a row per sample, `uncond` too or one for all.

    Raises: RecipeError when there is something to guide and no unconditional row of it.
    """
    if scale == 1.0 or not cond:
        return lambda x, t: predict(x, t, cond)
    if missing := [name for name in cond if name not in uncond]:
        raise RecipeError(
            f"guidance {scale:g} needs an unconditional row of {missing[0]!r}: add uncond_{missing[0]} to model.samples"
            ", or set sampling.guidance = 1"
        )
    both = {name: _stack(_rows_like(uncond[name], rows), rows) for name, rows in cond.items()}

    def denoise(x: Array, t: float) -> Array:
        eps = predict(_stack(x, x), t, both)
        eps_u, eps_c = eps[: x.shape[0], ...], eps[x.shape[0] :, ...]
        return eps_u + scale * (eps_c - eps_u)

    return denoise


def _stack(first: Array, second: Array) -> Array:
    return array_api_compat.array_namespace(first, second).concat([first, second], axis=0)


def _rows_like(rows: Array, like: Array) -> Array:
    return array_api_compat.array_namespace(like).broadcast_to(rows, like.shape)
