"""What each sampler does at every step, as numbers: decided once, before anything is drawn.

Every sampler here is one equation with other numbers in it. From noise level a = alpha_bar_t to a':

    x_0' = (x - sqrt(1 - a) e) / sqrt(a)
    x'   = sqrt(a') x_0' + sqrt(room - s^2) e + bend (x_0' - x_0'_before) + s z                       z ~ N(0, 1)

    sampler            step to, end            s                                bend
    ddim               t - T / steps, final    eta sigma                        0
    ddpm               next visited, 1         sigma, or sqrt(1 - a / a') (*)   0
    euler              next visited, 1         0                                0
    euler-ancestral    next visited, 1         sigma                            0
    dpmsolver++        next visited, 1         0                                sqrt(a') (1 - e^-h) / 2r
    sde-dpmsolver++    next visited, 1         sigma                            sqrt(a') (1 - e^-2h) / 2r

with room = 1 - a', sigma = sqrt((1 - a') / (1 - a) (1 - a / a')), h = lambda' - lambda, lambda = log sqrt(a / (1 - a)),
and r the step before over this one in lambda. (*) "fixed_large", which adds the difference of variances to room.
DDIM and DDPM bound x_0' where a schedule says so; of the others diffusers' never do.

DDIM: arXiv:2010.02502, eqs. 12 and 16. DDPM: arXiv:2006.11239, eq. 7. Euler: arXiv:2206.00364, algorithm 2 without
churn, in sigma space, where the state is x / sqrt(a). DPM-Solver++ 2M and its SDE: arXiv:2211.01095, algorithm 2 and
section 5. Timesteps are those of the diffusers schedulers of these names.

A unit change of e moves x' by      k(s) = sqrt(room - s^2) - sqrt((1 - a) / a) (sqrt(a') + bend)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quaver.runtime.errors import QuaverError, RecipeError, unknown
from quaver.runtime.schedule import Schedule, alpha_bar_at, previous, timesteps


@dataclass(frozen=True)
class Move:
    """One step, float64: from timestep `t` at level `a` to level `a_prev`."""

    t: int | float  # a fraction only where a sampler visits fractions
    a: float
    a_prev: float
    sigma: float = 0.0  # of the noise it adds
    room: float = 0.0  # the variance that noise and direction share
    bend: float = 0.0  # of the change of x_0 since the step before
    implied: bool = False  # take e from the clipped x_0, as DDPM's posterior does

    @property
    def k(self) -> float:
        """How far a unit change of eps moves the result."""
        return self.direction(self.sigma) - math.sqrt((1.0 - self.a) / self.a) * (math.sqrt(self.a_prev) + self.bend)

    def direction(self, sigma: float) -> float:
        """The factor of eps when noise of `sigma` is added."""
        return math.sqrt(max(self.room - sigma**2, 0.0))


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler; `start` is what x_T ~ N(0, 1) is multiplied with, `clip` bounds |x_0'| in every step."""

    moves: tuple[Move, ...]
    start: float = 1.0
    clip: float | None = None

    @property
    def timesteps(self) -> np.ndarray:
        """The timesteps [S] visited, descending: int64, or float64 where there are fractions."""
        return np.array([move.t for move in self.moves])


def plan(sampler: str, schedule: Schedule, *, steps: int, eta: float = 0.0) -> Plan:
    """The plan of a sampler of `steps` steps; `eta` is DDIM's.

    Raises: RecipeError for an unknown sampler; QuaverError when the schedule has no such steps.
    """
    if sampler not in PLANS:
        raise RecipeError(unknown("sampler", sampler, PLANS))
    return PLANS[sampler](schedule, steps, eta)


def whole(t: float) -> int:
    """A timestep as engines take it. Raises: QuaverError for a fraction of one."""
    if t != int(t):
        raise QuaverError(
            f"the sampler asks for timestep {t:.2f} and engines take whole ones: Euler's visit fractions where the "
            "scheduler's timestep_spacing is 'linspace'; use ddim, or 'leading' or 'trailing' spacing"
        )
    return int(t)


def ddim(schedule: Schedule, steps: int, eta: float) -> Plan:
    """DDIM: eta = 0 an ODE, eta = 1 DDPM's noise; the last step ends at the schedule's final level."""
    at = timesteps(schedule, steps).tolist()
    pairs = [(alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous(schedule, t, steps))) for t in at]
    moves = tuple(Move(t, a, b, eta * _sigma(a, b), 1.0 - b) for t, (a, b) in zip(at, pairs, strict=True))
    return Plan(moves, clip=schedule.clip)


def ddpm(schedule: Schedule, steps: int, eta: float) -> Plan:
    """Ancestral sampling from the posterior q(x' | x, x_0) with the variance that the schedule names."""
    if schedule.variance not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise QuaverError(
            f"the scheduler's variance_type is {schedule.variance!r}, ddpm knows fixed_small and fixed_large: use ddim"
        )
    at, moves = timesteps(schedule, steps).tolist(), []
    for t, (a, b) in zip(at, pairwise([*_levels(schedule, at), 1.0]), strict=True):
        small = _sigma(a, b)
        large = math.sqrt(1.0 - a / b) if schedule.variance == "fixed_large" and t > 0 else small
        moves.append(Move(t, a, b, large, 1.0 - b - small**2 + large**2, implied=schedule.clip is not None))
    return Plan(tuple(moves), clip=schedule.clip)


def euler(schedule: Schedule, steps: int, eta: float, *, ancestral: bool = False) -> Plan:
    """Euler's method in sigma space; `ancestral` adds noise. Linear spacing visits fractions of timesteps."""
    whole = schedule.spacing != "linspace"
    at = timesteps(schedule, steps).tolist() if whole else np.linspace(len(schedule.alpha_bar) - 1, 0, steps).tolist()
    levels = _levels(schedule, at)
    moves = [
        Move(t, a, b, _sigma(a, b) if ancestral else 0.0, 1.0 - b)
        for t, (a, b) in zip(at, pairwise([*levels, 1.0]), strict=True)
    ]
    # leading spacing does not begin at the last timestep: x_T is noise there, and signal is not to be feigned elsewhere
    return Plan(tuple(moves), 1.0 if schedule.spacing == "leading" else math.sqrt(1.0 - levels[0]))


def euler_ancestral(schedule: Schedule, steps: int, eta: float) -> Plan:
    """`euler` with the noise of an ancestral sampler."""
    return euler(schedule, steps, eta, ancestral=True)


def dpmsolver(schedule: Schedule, steps: int, eta: float, *, sde: bool = False) -> Plan:
    """DPM-Solver++ 2M (midpoint), of first order in the first and the last step; `sde` adds noise."""
    at = _solver_timesteps(schedule, steps).tolist()
    levels, moves = [*_levels(schedule, at), 1.0], []
    for i, t in enumerate(at):
        a, b, bend = levels[i], levels[i + 1], 0.0
        if 0 < i < steps - 1:
            h, h_before = _lambda(b) - _lambda(a), _lambda(a) - _lambda(levels[i - 1])
            bend = -math.sqrt(b) * math.expm1(-(2.0 if sde else 1.0) * h) * h / (2.0 * h_before)
        moves.append(Move(t, a, b, _sigma(a, b) if sde else 0.0, 1.0 - b, bend))
    return Plan(tuple(moves))


def sde_dpmsolver(schedule: Schedule, steps: int, eta: float) -> Plan:
    """The SDE form of `dpmsolver`."""
    return dpmsolver(schedule, steps, eta, sde=True)


PLANS: dict[str, Callable[[Schedule, int, float], Plan]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "dpmsolver++": dpmsolver,
    "sde-dpmsolver++": sde_dpmsolver,
}


def _levels(schedule: Schedule, at: Sequence[float]) -> list[float]:
    return [alpha_bar_at(schedule, t) for t in at]


def _sigma(a: float, a_prev: float) -> float:
    """The noise of DDPM's posterior."""
    return float(np.sqrt(np.maximum((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev), 0.0)))


def _lambda(a: float) -> float:
    """Half the logarithm of the signal-to-noise ratio."""
    return 0.5 * math.log(a / (1.0 - a))


def _solver_timesteps(schedule: Schedule, steps: int) -> np.ndarray:
    """The timesteps [steps] of DPMSolverMultistepScheduler: the first `steps` of steps + 1 places, the last being 0."""
    T = len(schedule.alpha_bar)
    if not 1 <= steps < T:
        raise QuaverError(f"steps is {steps}, expected 1 to {T - 1}: this model was trained with {T} timesteps")
    if schedule.spacing == "trailing":
        return timesteps(schedule, steps)
    if schedule.spacing == "linspace":
        return np.linspace(0, T - 1, steps + 1).round()[:0:-1].astype(np.int64)
    return np.arange(steps, 0, -1) * (T // (steps + 1)) + schedule.steps_offset
