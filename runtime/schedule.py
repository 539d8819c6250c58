"""The noise schedule of a diffusion model, as diffusers' `scheduler_config.json` describes it.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,         a_t = alpha_bar_t = prod_{s<=t} (1 - beta_s),    t in 0..T-1

A network trained on it may predict any of three things, which say the same at a fixed x_t:

    eps                                              the noise
    x_0 = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)      the clean sample
    v   = sqrt(a_t) eps - sqrt(1 - a_t) x_0          the velocity, hence eps = sqrt(a_t) v + sqrt(1 - a_t) x_t

DDPM, arXiv:2006.11239 (eq. 4); v: arXiv:2202.00512 (appendix D); spacings: arXiv:2305.08891 (table 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.errors import ArtifactError, QuaverError

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
OURS = ("DDIMScheduler", "DDPMScheduler")  # whose defaults stand for absent keys
BETAS = {"beta_start", "beta_end", "beta_schedule", "trained_betas"}


@dataclass(frozen=True)
class Schedule:
    """What a sampler needs to know about the noise.

    alpha_bar [T] float64, falling from about 1; `alpha_bar_final` is where the last step ends (1, or alpha_bar[0] as
    latent diffusion has it); `clip` bounds |x_0| in every step (None for latents).
    """

    alpha_bar: np.ndarray
    prediction: str = "epsilon"
    spacing: str = "leading"
    steps_offset: int = 0
    alpha_bar_final: float = 1.0
    clip: float | None = None
    variance: str = "fixed_small"  # of the noise that ddpm adds


def load_schedule(path: Path) -> Schedule:
    """Read a diffusers `scheduler_config.json`.

    Raises: ArtifactError when it is missing, is not JSON, or asks for what is not supported.
    """
    try:
        return read_schedule(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): 'quaver run RECIPE' writes it") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is not a scheduler configuration ({error}): 'quaver run RECIPE' writes it anew"
        ) from error


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a diffusers scheduler configuration; absent keys mean what they mean to DDIMScheduler.

    Raises: ArtifactError naming a key that asks for what is not supported, or that is no number where one should be.
    """
    for key in ("rescale_betas_zero_snr", "thresholding"):  # zero SNR: alpha_bar = 0 has no eps form
        if config.get(key):
            raise ArtifactError(f"the scheduler configuration sets {key}, which is not supported: set it to false")
    named = config.get("_class_name", OURS[0])
    if named not in OURS and not BETAS & config.keys():  # flow matching, EDM: no noise level of theirs is an alpha_bar
        raise ArtifactError(
            f"the scheduler configuration is a {named} and has no betas (beta_start, beta_schedule), expected one "
            f"of a diffusion in discrete steps, as {' or '.join(OURS)}: name such a model"
        )
    alpha_bar = np.cumprod(1.0 - _betas(config))
    return Schedule(
        alpha_bar=alpha_bar,
        prediction=_one_of(config, "prediction_type", PREDICTIONS),
        spacing=_one_of(config, "timestep_spacing", SPACINGS),
        steps_offset=int(_number(config, "steps_offset", 0)),
        alpha_bar_final=1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0]),
        clip=_number(config, "clip_sample_range", 1.0) if _clips(config) else None,
        variance=str(config.get("variance_type", "fixed_small")),
    )


def timesteps(schedule: Schedule, steps: int) -> np.ndarray:
    """The timesteps [steps] int64 that a sampler of `steps` steps visits, descending, as DDIMScheduler.set_timesteps.

    Raises: QuaverError when the schedule has no such timesteps.
    """
    T = len(schedule.alpha_bar)
    if not 1 <= steps <= T:
        raise QuaverError(f"steps is {steps}, expected 1 to {T}: this model was trained with {T} timesteps")
    if schedule.spacing == "leading":
        visited = np.arange(steps)[::-1] * (T // steps) + schedule.steps_offset
    elif schedule.spacing == "linspace":
        visited = np.linspace(0, T - 1, steps).round()[::-1].astype(np.int64)
    else:
        visited = np.round(np.arange(T, 0, -T / steps)[:steps]).astype(np.int64) - 1  # arange may round to one more
    if visited[0] >= T:
        raise QuaverError(
            f"{steps} steps start at timestep {visited[0]}, beyond the last one, {T - 1}: use fewer steps"
        )
    return visited.astype(np.int64)


def previous(schedule: Schedule, t: int, steps: int) -> int:
    """The timestep whose noise level the step from `t` ends at; negative means the end (`alpha_bar_final`).

    DDIMScheduler goes down by T // steps from wherever it is. With leading spacing that is the next timestep visited;
    with the others it can lie one or two beside it, and is kept so that a seed gives the same sample in both.
    """
    return int(t) - len(schedule.alpha_bar) // steps


def alpha_bar_at(schedule: Schedule, t: float) -> float:
    """alpha_bar at a timestep; the value after the last step for a negative `t`.

    Between timesteps sqrt((1 - a) / a) is taken as linear, as EulerDiscreteScheduler does.
    Raises: QuaverError for a timestep the model was not trained with.
    """
    if t < 0:
        return schedule.alpha_bar_final
    if not t <= (last := len(schedule.alpha_bar) - 1):
        raise QuaverError(f"timestep {t:g} is beyond the last one of this model, {last}: use 0 to {last}")
    if t == int(t):
        return float(schedule.alpha_bar[int(t)])
    low, high = (math.sqrt(1.0 / float(schedule.alpha_bar[int(t) + i]) - 1.0) for i in (0, 1))
    return 1.0 / (1.0 + (low + (t - int(t)) * (high - low)) ** 2)


def to_eps(out: Array, x_t: Array, t: float, schedule: Schedule) -> Array:
    """What the network said, `out` [B, C, H, W], as eps [B, C, H, W]."""
    signal, noise = _levels(schedule, t)
    if schedule.prediction == "epsilon":
        return out
    if schedule.prediction == "v_prediction":
        return signal * out + noise * x_t
    return (x_t - signal * out) / noise


def _levels(schedule: Schedule, t: float) -> tuple[float, float]:
    """sqrt(a_t), sqrt(1 - a_t)."""
    a = alpha_bar_at(schedule, t)
    return math.sqrt(a), math.sqrt(1.0 - a)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """betas [T] float64, checked."""
    try:
        betas = _said_betas(config)
    except (TypeError, ValueError):  # no list of numbers, the root of a negative one, a negative count
        betas = np.empty(0)
    if betas.ndim != 1 or not betas.size or not ((betas >= 0) & (betas < 1)).all():
        raise ArtifactError(
            "the scheduler configuration gives no betas from 0 to below 1: look at its beta_start, beta_end, "
            "num_train_timesteps and trained_betas"
        )
    return betas


def _said_betas(config: Mapping[str, Any]) -> np.ndarray:
    if (trained := config.get("trained_betas")) is not None:
        return np.asarray(trained, dtype=np.float64)
    T = int(_number(config, "num_train_timesteps", 1000))
    start, end = _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
    kind = _one_of(config, "beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if kind == "linear":
        return np.linspace(start, end, T)
    if kind == "scaled_linear":  # linear in sqrt(beta): what latent diffusion calls linear
        return np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2
    level = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - level[1:] / level[:-1], 0.999)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArtifactError(f"the scheduler configuration has {key} = {value!r}, expected a number")
    return float(value)


def _one_of(config: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = config.get(key, known[0])
    if value not in known:
        raise ArtifactError(f"the scheduler configuration has {key} = {value!r}, expected one of {', '.join(known)}")
    return str(value)


def _clips(config: Mapping[str, Any]) -> bool:
    # Only these two know the key, and clip unless told not to; for the others its absence means no clipping.
    default = config.get("_class_name", OURS[0]) in OURS
    return bool(config.get("clip_sample", default))
