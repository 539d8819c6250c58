"""Schedulers of diffusers whose step takes a correction:   q -> e' = q - m(q, x_t), and what is left off the noise.

    out -> q = eps of out -> correct -> x' = one `Move` of the sampler of the same name -> sample

A corrected scheduler is a subclass: configuration, timesteps, scaling of inputs and initial noise are diffusers' own.
Its step is `sample.advance`, the one that generating takes, because a scheduler has no way to be told that its noise is
to be less by the residual's variance. Without a correction it is the step of diffusers within rounding.

Euler's samples are x / sqrt(a) in diffusers (EDM, arXiv:2206.00364), x here. A scheduler is not told the guidance
scale: statistics are held against the one given when it was made, and nothing sees whether the pipeline's is that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from quaver.runtime.correct import correct_none, make_correct
from quaver.runtime.denoise import CORRECTION, step_noise
from quaver.runtime.diffusers.course import KINDS, Correction, chart, sampler_of
from quaver.runtime.diffusers.unet import EngineUNet
from quaver.runtime.errors import ArtifactError, QuaverError, RecipeError
from quaver.runtime.generate import binding, session_stats
from quaver.runtime.lazy import need
from quaver.runtime.sample import advance
from quaver.runtime.samplers import Move
from quaver.runtime.schedule import to_eps
from quaver.runtime.session import sampling_of

if TYPE_CHECKING:
    import torch

Array = Any  # numpy.ndarray of the CPU, torch.Tensor elsewhere

PREFIX = "Corrected"
SCALED = ("euler", "euler-ancestral")  # whose samples are x / sqrt(a)
FINE = ("sde-dpmsolver++",)  # whose noise is drawn in float32 whatever the type of the sample
OWN = {"self", "model_output", "timestep", "sample", "eta", "generator", "variance_noise", "return_dict"}


def corrected(
    scheduler: Any,
    unet: EngineUNet,
    *,
    correct: str = "auto",
    guidance: float | None = None,
    steps: int | None = None,
    eta: float | None = None,
    seed: int = 0,
    interpolate: bool = False,
) -> Any:
    """A pipeline's scheduler with a correction fitted on the engine that its U-Net is, by one of their names.

    `guidance`, `steps` and `eta` are what the pipeline will be called with (None: the bundle's own). Guidance cannot be
    seen from here; the others are held against each run again. A correction that draws noise has a stream of its own
    for each sample: those of `seed`, `seed` + 1 and so on. `interpolate` has statistics serve timesteps between those
    they were fitted at.
    Raises: RecipeError for a scheduler without counterpart or an unknown correction; ArtifactError when statistics are
    missing, or belong to another engine or another way of sampling.
    """
    own = type(scheduler).__name__.removeprefix(PREFIX)
    made = corrected_class(own).from_config(scheduler.config)
    sampler = sampler_of(own, made.config)
    if correct != "none":
        if unet.session is None:
            raise ArtifactError(
                "this U-Net is of no bundle, and error statistics lie in one: use EngineUNet.from_bundle, or 'none'"
            )
        settings = sampling_of(unet.session, sampler=sampler, steps=steps, guidance=guidance, eta=eta)
        stats = session_stats(unet.session, settings, interpolate=interpolate)
        fixed = make_correct(
            correct, stats, lambda step, shape: step_noise(range(seed, seed + shape[0]), CORRECTION)(step, shape)
        )
        bound, alpha_bar = binding(unet.session, settings), unet.session.schedule.alpha_bar
        made.correction = Correction(fixed, stats, bound, alpha_bar)
    return made


@cache
def corrected_class(name: str) -> Any:
    """The corrected subclass of a diffusers scheduler, `CorrectedDDIMScheduler` of "DDIMScheduler".

    Raises: RecipeError for one without counterpart among the samplers, naming those that have one.
    """
    known = {kind for kind, _ in KINDS.values()}
    if name not in known:
        raise RecipeError(
            f"{name} has no counterpart among quaver's samplers; {', '.join(sorted(known))} have: for example "
            "diffusers.DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    base: Any = getattr(need("diffusers", extra="export"), name)

    @wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        eta = self.correction.binding.eta if self.correction else 0.0
        self.course, self.before, self.clipped = chart(self, name, eta, None), None, 0

    @wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return take_step(self, name, read_call(base, (self, *args), kwargs))

    members = {
        "__doc__": f"{name} with a correction, if `corrected` gave it one.",
        "__module__": __name__,
        "set_timesteps": set_timesteps,
        "step": step,
        "correction": None,  # of a Correction
        "course": None,  # of a run: Course; the x_0' of its last step, and the channels clipped so far
        "before": None,
        "clipped": 0,
    }
    return type(PREFIX + name, (base,), members)


def __getattr__(name: str) -> Any:
    """The corrected classes by their names, so that they can be imported, pickled, and named in a saved pipeline.

    A pipeline loads what it named only where the module also has the mixin that says how it is loaded.
    """
    if name in {PREFIX + kind for kind, _ in KINDS.values()}:
        return corrected_class(name.removeprefix(PREFIX))
    if name == "SchedulerMixin":
        return need("diffusers", extra="export").SchedulerMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def read_call(base: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a step by name. Raises: QuaverError for an option that the corrected step has not."""
    signature = inspect.signature(base.step)
    given = signature.bind(*args, **kwargs).arguments
    for name, value in given.items():
        if name not in OWN and value is not None and value != (default := signature.parameters[name].default):
            raise QuaverError(f"a corrected step has no {name}, it was given {value}: leave it at {default}")
    return given


def take_step(scheduler: Any, name: str, given: Mapping[str, Any]) -> Any:
    """One step of a corrected scheduler, from the arguments of its `step` by name."""
    sample, eta = given["sample"], given.get("eta", 0.0)
    shape = tuple(sample.shape[1:])
    if scheduler.course is None:
        raise QuaverError("the scheduler has no steps yet: call set_timesteps first")
    if (scheduler.course.eta, scheduler.course.shape) != (eta, shape):
        scheduler.course = chart(scheduler, name, eta, shape)
    move = scheduler.course.move(given["timestep"])
    ends = drawn(scheduler, move, given)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = scheduler.course.plan.moves.index(move) + 1
    result = tuple(need("torch", extra="export").as_tensor(end).to(sample) for end in ends)
    if not given.get("return_dict", True):
        return result
    output = need("diffusers.schedulers.scheduling_ddim", extra="export").DDIMSchedulerOutput
    return output(prev_sample=result[0], pred_original_sample=result[1])


def drawn(scheduler: Any, move: Move, given: Mapping[str, Any]) -> tuple[Array, Array]:
    """x' and x_0' [B, C, H, W] of a step."""
    schedule, correction = scheduler.course.schedule, scheduler.correction
    shrinks = scheduler.course.sampler in SCALED
    if scheduler.before is None:  # a run may begin in the middle, where the plan's step looks back
        move = replace(move, bend=0.0)
    out, x = precise(given["model_output"]), precise(given["sample"])
    x = x * math.sqrt(move.a) if shrinks else x
    fixed = (correction.correct if correction else correct_none)(to_eps(out, x, move.t, schedule), move.t, x)
    z = precise(standard_normal(given, fine=scheduler.course.sampler in FINE)) if move.sigma > 0.0 else None
    x_prev, x_0, clipped = advance(move, x, fixed, z, clip=scheduler.course.plan.clip, before=scheduler.before)
    scheduler.before, scheduler.clipped = x_0, scheduler.clipped + clipped
    return (x_prev / math.sqrt(move.a_prev) if shrinks else x_prev), x_0


def standard_normal(given: Mapping[str, Any], *, fine: bool) -> torch.Tensor:
    """The noise of a step [B, C, H, W]: what was given, or drawn from the pipeline's generator as diffusers does."""
    if (noise := given.get("variance_noise")) is not None:
        return noise
    out, draw = given["model_output"], need("diffusers.utils.torch_utils", extra="export").randn_tensor
    dtype = need("torch", extra="export").float32 if fine else out.dtype
    return draw(out.shape, generator=given.get("generator"), device=out.device, dtype=dtype)


def precise(value: torch.Tensor) -> Array:
    """A tensor in float32, or what is finer; of the CPU as numpy's, so that it rounds as in generating.

    Integer engines turn the last bit of x_t into a code, and a code into another sample.
    """
    torch = need("torch", extra="export")
    fine = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    return fine.numpy() if fine.device.type == "cpu" else fine
