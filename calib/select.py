"""Activation-aware sampling of the calibration set, and what it is compared with.

    P[l, s] = w[l, s] / sum w,      w = variance of the input of layer l at timestep s, where it reaches tau

PTQ4ADM, Algorithm 2. Its text and Figure 4 speak of timesteps of high activation variance, its algorithm of layers; a
record that the network can be fed is (x_t, t, conditioning), so pairs (layer, timestep) are drawn and the layer is
kept as a tag. The marginals over timesteps and over layers are the two readings. `normalized` divides each layer by its
own mean over timesteps first: variances of different layers differ by orders of magnitude, and raw ones (`paper`)
pick the few largest layers. A threshold is applied before drawing, which is the same law as rejecting afterwards and
always ends. Draws are with replacement.

Baselines: `uniform` (timesteps at random), `normal` (PTQ4DM: t ~ N(0.4 T, 0.4 T)), `even` (Q-Diffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quaver.runtime.errors import RecipeError

NO_LAYER = -1  # the layer tag of a record that no layer asked for


@dataclass(frozen=True)
class Field:
    """What a record can be drawn from: variance [L, S] and the S sampled timesteps out of `training_steps`."""

    variance: np.ndarray
    timesteps: np.ndarray
    training_steps: int


def pair_probabilities(variance: np.ndarray, *, mode: str = "normalized", tau: float = 0.1) -> np.ndarray:
    """Probability of each pair [L, S]; uniform when every variance is zero.

    `mode` is "paper" (raw variances) or "normalized" (each layer over its mean); `tau` is the threshold as a
    fraction of the largest weight. Raises: RecipeError for another mode or tau, or a variance that is not finite.
    """
    variance = np.asarray(variance, np.float64)
    if not (np.isfinite(variance).all() and (variance >= 0).all()):
        raise RecipeError("activation variances must be finite and not negative: capture again")
    if not 0 <= tau < np.inf:
        raise RecipeError(f"capture.tau is {tau}, expected a finite number, 0 or more")
    if mode not in ("paper", "normalized"):
        raise RecipeError(f"unknown capture.mode {mode!r}: 'paper' or 'normalized'")
    scale = variance.mean(axis=1, keepdims=True) if mode == "normalized" else np.ones((len(variance), 1))
    weight = np.divide(variance, scale, out=np.zeros_like(variance), where=scale > 0)
    if not weight.any():
        return np.full(variance.shape, 1 / variance.size)
    weight = np.where(qualifying(weight, tau * weight.max()), weight, 0.0)
    return weight / weight.sum()


def qualifying(weight: np.ndarray, tau: float) -> np.ndarray:
    """Where `weight` reaches `tau`, which is halved until somewhere does (`weight` must have a positive entry)."""
    while not (weight >= tau).any():
        tau /= 2
    return weight >= tau


def activation(
    field: Field, records: int, rng: np.random.Generator, *, mode: str = "normalized", tau: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs with probability proportional to the activation variance (PTQ4ADM, Algorithm 2)."""
    p = pair_probabilities(field.variance, mode=mode, tau=tau)
    layer, step = np.unravel_index(rng.choice(p.size, size=records, p=p.ravel()), p.shape)
    return layer, step


def uniform(field: Field, records: int, rng: np.random.Generator, **_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draw timesteps at random."""
    return _untagged(rng.integers(len(field.timesteps), size=records))


def normal(field: Field, records: int, rng: np.random.Generator, **_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draw t ~ N(0.4 T, 0.4 T), cut to the schedule, then the nearest sampled timestep (PTQ4DM)."""
    T = field.training_steps
    t = np.clip(rng.normal(0.4 * T, 0.4 * T, records), 0, T - 1)
    return _untagged(np.abs(t[:, None] - np.asarray(field.timesteps)[None]).argmin(axis=1))


def even(field: Field, records: int, rng: np.random.Generator, **_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Take every timestep equally often (Q-Diffusion)."""
    return _untagged(np.arange(records) * len(field.timesteps) // records)


# name -> (field, records, generator, mode=, tau=) -> layer [K], index of the timestep [K]
SELECT: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "activation": activation,
    "uniform": uniform,
    "normal": normal,
    "even": even,
}


def assign_prompts(step: np.ndarray, prompts: int, rng: np.random.Generator, *, cap: int = 0) -> np.ndarray:
    """Give each drawn timestep [K] a prompt [K], none more than `cap` times (0: as evenly as can be).

    A prompt is used for a timestep again only when every prompt has been: x_t repeats as late as possible.
    Raises: RecipeError when prompts x cap is less than the records asked for.
    """
    require_prompts(len(step), prompts, cap=cap)
    cap = cap or -(-len(step) // prompts)
    total = np.zeros(prompts, int)
    used = np.zeros((int(step.max(initial=0)) + 1, prompts), int)
    chosen = np.empty(len(step), int)
    for k in rng.permutation(len(step)):
        rank = np.where(total < cap, used[step[k]] * (cap + 1) + total, np.iinfo(int).max)
        chosen[k] = rng.choice(np.flatnonzero(rank == rank.min()))
        total[chosen[k]] += 1
        used[step[k], chosen[k]] += 1
    return chosen


def require_prompts(records: int, prompts: int, *, cap: int) -> None:
    """Raises: RecipeError when prompts x cap is less than the records asked for."""
    if cap and prompts * cap < records:
        raise RecipeError(
            f"{records} records from {prompts} prompts at most {cap} times each: raise capture.cap or"
            " capture.prompts, or lower capture.records"
        )


def _untagged(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(step), NO_LAYER), step
