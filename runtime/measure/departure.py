"""Where a quantized engine's trajectory leaves what the float model's own trajectories span.

    drift[s]    mean over samples of |q_s - y_s| / |y_s|: the same prompt, seed and noise through both engines
    spread[s]   a low quantile, over pairs of float samples i != j of one prompt, of |y_s^i - y_s^j| / |y_s^j|

Below the spread the engine is nearer to its own float trajectory than nearly all pairs of seeds are to each other:
which sample of a prompt comes out is still decided by the seed. Samples of different prompts lie further apart (of the
embedded model three times as far after the last step) and would hide an engine that leaves. From the first step on
where the drift exceeds the spread, an engine's error moves a sample as far as another seed would. That is a coarse
yardstick: an engine that never leaves can be audibly worse, since seeds differ in what is allowed to differ and errors
do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def seed_spread(states: Array, prompts: Sequence[str], *, quantile: float = 0.05) -> Array:
    """A low quantile of the relative distances between float trajectories `[S, N, ...]` of one prompt: `[S]`.

    `prompts` [N] says which belong together. Raises: ValueError when there is no pair.
    """
    pairs = (np.asarray(prompts)[:, None] == np.asarray(prompts)) & ~np.eye(len(prompts), dtype=bool)
    if not pairs.any():
        raise ValueError(f"{states.shape[1]} trajectories hold no pair: draw a prompt with two seeds or more")
    return np.array([np.quantile(_relative_distances(step)[pairs], quantile) for step in states])


def leaves(drift: Array, spread: Array) -> int | None:
    """The first step where a `drift` `[S]` or `[S, N]` (its mean) exceeds the `spread` `[S]`, None if it never does."""
    drift = np.asarray(drift, np.float64)
    beyond = (drift.mean(axis=1) if drift.ndim == 2 else drift) > np.asarray(spread)
    return int(beyond.argmax()) if beyond.any() else None


def _relative_distances(step: Array) -> Array:
    """|x_i - x_j| / |x_j| of samples `[N, ...]`: `[N, N]`; a row at a time, since differences cancel in products."""
    flat = np.asarray(step, np.float64).reshape(len(step), -1)
    sizes = np.maximum(np.linalg.norm(flat, axis=1), np.finfo(np.float64).tiny)
    return np.stack([np.linalg.norm(flat - row, axis=1) for row in flat]) / sizes
