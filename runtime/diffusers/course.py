"""The steps that a scheduler of diffusers will take, as ours: decided when it is told how many, and held against both.

scheduler.timesteps, sigmas = sqrt((1 - a) / a)     those of the `Plan` of the sampler of the same name
sampler, steps, eta, prediction, [C, H, W]          those that error statistics were fitted on
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quaver.runtime.correct import Correct
from quaver.runtime.error_law import Binding, ErrorStats, check_binding
from quaver.runtime.errors import ArtifactError, QuaverError, RecipeError
from quaver.runtime.samplers import Move, Plan, plan
from quaver.runtime.schedule import Schedule, read_schedule

# What each sampler is called in diffusers, and the configuration in which it is that.
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "sde-dpmsolver++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
}


@dataclass(frozen=True)
class Correction:
    """A correction, its statistics, and the engine, settings and noise schedule they are held against."""

    correct: Correct
    stats: ErrorStats
    binding: Binding
    alpha_bar: np.ndarray  # [T]

    def check(self, schedule: Schedule, made: Plan, eta: float, shape: tuple[int, ...] | None) -> None:
        """Raise ArtifactError unless the statistics are of this run; `shape` [C, H, W] is None until it is known."""
        wanted = replace(
            self.binding,
            steps=len(made.moves),
            eta=float(eta),
            prediction=schedule.prediction,
            latent_shape=shape or self.binding.latent_shape,
        )
        check_binding(self.stats, wanted)
        if not (len(schedule.alpha_bar) == len(self.alpha_bar) and np.allclose(schedule.alpha_bar, self.alpha_bar)):
            raise ArtifactError(
                "this scheduler has other betas than the bundle's, which the error statistics are of: make it with "
                "from_config(config) of the bundle's scheduler/"
            )
        if not np.isin(made.timesteps, self.stats.timesteps).all():
            raise ArtifactError(
                f"error statistics are of timesteps {listed(self.stats.timesteps)}, this scheduler visits "
                f"{listed(made.timesteps)}: make it with the model's timestep_spacing and steps_offset, "
                "from_config(config, timestep_spacing='leading', steps_offset=1) for example"
            )


@dataclass(frozen=True)
class Course:
    """One run of a scheduler: its steps, and what they were decided for."""

    sampler: str
    plan: Plan
    schedule: Schedule
    eta: float
    shape: tuple[int, ...] | None

    def move(self, timestep: Any) -> Move:
        """The step at a timestep. Raises: QuaverError when it is none of this run."""
        index = int(np.abs(self.plan.timesteps - float(timestep)).argmin())
        if abs(self.plan.timesteps[index] - float(timestep)) > 1e-2:
            raise QuaverError(
                f"timestep {float(timestep):g} is none of this scheduler's {listed(self.plan.timesteps)}: pass one of "
                "scheduler.timesteps"
            )
        return self.plan.moves[index]


def sampler_of(name: str, config: Mapping[str, Any]) -> str:
    """The sampler that a scheduler is. Raises: RecipeError when it is configured to be none."""
    found = {sampler: settings for sampler, (kind, settings) in KINDS.items() if kind == name}
    for sampler, settings in found.items():
        if all(config[key] == value for key, value in settings.items()):
            return sampler
    wanted = " or ".join(", ".join(f"{k} = {v!r}" for k, v in settings.items()) for settings in found.values())
    raise RecipeError(f"{name} is corrected with {wanted}: make it so with from_config")


def chart(scheduler: Any, name: str, eta: float, shape: tuple[int, ...] | None) -> Course:
    """The steps of a scheduler that was told how many.

    Raises: QuaverError when they are not those of its counterpart; ArtifactError when the statistics are of others.
    """
    keys = inspect.signature(type(scheduler).__init__).parameters  # from_config keeps what only others know
    config = {key: value for key, value in scheduler.config.items() if key in keys}
    schedule, sampler = read_schedule({**config, "_class_name": name}), sampler_of(name, config)
    made = plan(sampler, schedule, steps=len(scheduler.timesteps), eta=eta)
    check_levels(scheduler, made)
    if scheduler.correction:
        scheduler.correction.check(schedule, made, eta, shape)
    return Course(sampler, made, schedule, eta, shape)


def check_levels(scheduler: Any, made: Plan) -> None:
    """Raise QuaverError unless a scheduler visits the timesteps and noise levels of a plan."""
    visited = np.array(scheduler.timesteps.tolist())
    levels = [math.sqrt(1.0 / a - 1.0) for a in (*(move.a for move in made.moves), made.moves[-1].a_prev)]
    sigmas = scheduler.sigmas.tolist() if hasattr(scheduler, "sigmas") else levels
    if len(visited) == len(made.moves) and np.allclose(visited, made.timesteps) and np.allclose(sigmas, levels, 1e-3):
        return
    raise QuaverError(
        f"this {type(scheduler).__name__} visits timesteps {listed(visited)}, its counterpart "
        f"{listed(made.timesteps)}, or ends elsewhere: leave out sigmas of another spacing (karras, exponential, beta, "
        "lu, sigma_min) and timesteps of your own"
    )


def listed(values: np.ndarray) -> str:
    """The first of some numbers, and the last."""
    shown = [f"{value:g}" for value in values.tolist()]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:3], "…", shown[-1]])
