"""Float and deployed engine on the same x_t: what trajectories show of the error, as joint moments that merge.

    halves     (phi, D) of every place, the trajectories of even seeds and those of odd ones (`local_law`)
    channels   (q, D) of every element of a channel; with guidance (q, D, q_u, q_c, D_u, D_c)
    simulated  (q, D) of every element of a channel, q from the quantized graph in floats (`simulated`)

q, e are guided eps, D = q - e, both at x_t of a teacher's trajectories; u and c are the two branches, which guidance
runs as one batch, so their moments cost no call. The teacher is the float engine (the paper), the deployed one, or the
deployed one corrected by a law fitted before (`closed_loop`).

Trimming drops elements with |D - mean| > trim std, mean and std those of a channel in one shard at one timestep: a rule
that needs no second pass and does not know who runs the shard. It is for the Gaussian; halves keep all. A trajectory in
which something is not finite leaves nothing at that timestep, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.evidence import Seen, to_tensors
from quaver.calib.fanout import Compute
from quaver.calib.local_law import vectors
from quaver.calib.moments import Joint, joint_of
from quaver.calib.simulated import open_simulated
from quaver.calib.trajectories import Shard
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import Correct, correct_none, d2_deterministic
from quaver.runtime.denoise import check_finite, initial_noise, step_noise
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.error_law import ErrorStats, load_stats
from quaver.runtime.generate import binding
from quaver.runtime.guide import Rows, guide
from quaver.runtime.measure.quality import relative_error
from quaver.runtime.sample import SAMPLERS, Denoise, SamplingSettings
from quaver.runtime.samplers import whole
from quaver.runtime.schedule import to_eps
from quaver.runtime.session import FLOAT, Session, find_engine, open_bundle

Teacher = Literal["float", "quantized", "corrected"]
Said = Callable[[np.ndarray, float], np.ndarray]  # x_t [B, C, T, F], t -> eps [1|3, B, C, T, F]: guided, u, c


@dataclass(frozen=True)
class Pair:
    """The engines compared: a bundle, by its absolute path, the target's name, and how they are compared."""

    bundle: Bundle
    target: str
    neighbourhood: int
    sampling: SamplingSettings
    trim: float = 0.0  # deviations of D; 0: nothing is dropped
    simulated: bool = False
    teacher: Teacher = "float"
    law: Path | None = None  # of the corrected teacher
    provider: str | None = None  # of onnxruntime, for the deployed engine


@dataclass(frozen=True)
class Engines:
    """What a pair has open; law: of the corrected teacher."""

    session: Session  # the float engine's
    deployed: Engine
    simulated: Engine | None = None
    law: ErrorStats | None = None


@contextmanager
def open_pair(pair: Pair, *, threads: int | None) -> Iterator[Compute]:
    """The function from a shard to what is seen of it, with all engines open."""
    graph, (path, _) = pair.bundle.qdq(pair.target), find_engine(pair.bundle, pair.target)
    with ExitStack() as stack:
        session = stack.enter_context(open_bundle(pair.bundle, engine_file=FLOAT, threads=threads))
        engine = stack.enter_context(open_engine(path, threads=threads, provider=pair.provider))
        other = stack.enter_context(open_simulated(graph, threads=threads)) if pair.simulated else None
        engines = Engines(session, engine, other, load_stats(pair.law) if pair.law else None)
        bound = asdict(binding(replace(session, engine=engine), pair.sampling, reference=session.engine.digest))

        def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            return to_tensors(compare(engines, shard, pair)), {"binding": bound}

        yield compute


def compare(engines: Engines, shard: Shard, pair: Pair) -> Seen:
    """What a shard's trajectories show."""
    session, seeds = engines.session, range(shard.seed, shard.seed + len(shard.texts))
    cond = session.family.embed(session.parts, list(shard.texts))

    def say(engine: Engine) -> Said:
        return branches(session, engine, cond, pair.sampling.guidance)

    reference, deployed = say(session.engine), say(engines.deployed)
    simulated = say(engines.simulated) if engines.simulated else None
    names, steps = [f"seed {seed}" for seed in seeds], list[Seen]()

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        e, q = reference(x, t), deployed(x, t)
        if pair.teacher == "float":
            check_finite(e[0], t, names)
        more = simulated(x, t) if simulated else None
        steps.append(look(x, q, e, seeds, pair.neighbourhood, trim=pair.trim, simulated=more))
        return e[0] if pair.teacher == "float" else q[0]

    correct = d2_deterministic(engines.law) if engines.law else correct_none
    taught = trajectory(session, denoise, seeds, pair.sampling, correct)
    if not engines.law:
        return of_steps(steps)
    own = trajectory(session, lambda x, t: reference(x, t)[0], seeds, pair.sampling)
    return of_steps(steps, errors=relative_error(taught, own))


def of_steps(steps: Sequence[Seen], errors: np.ndarray | None = None) -> Seen:
    """What trajectories show, of what each step showed; errors [B] of their finished latents, where they are asked."""
    simulated = [step.simulated for step in steps if step.simulated]
    known = np.array([]) if errors is None else errors[np.isfinite(errors)]
    return Seen(
        side_by_side([step.halves for step in steps], axis=1),
        side_by_side([step.channels for step in steps]),
        np.array([step.dropped for step in steps]),
        side_by_side(simulated) if simulated else None,
        np.array([known.sum(), known.size]),
    )


def trajectory(
    session: Session,
    denoise: Denoise,
    seeds: Sequence[int],
    sampling: SamplingSettings,
    correct: Correct = correct_none,
) -> np.ndarray:
    """Finished latents [B, C, T, F] of the seeds."""
    noise = step_noise(seeds)
    how = {"steps": sampling.steps, "eta": sampling.eta, "correct": correct, "noise": noise}
    x_T = initial_noise(seeds, session.latent_shape)
    return np.asarray(SAMPLERS[sampling.sampler](denoise, x_T, session.schedule, **how))


def look(
    x: np.ndarray,
    q: np.ndarray,
    e: np.ndarray,
    seeds: Sequence[int],
    k: int,
    *,
    trim: float = 0.0,
    simulated: np.ndarray | None = None,
) -> Seen:
    """One step: halves [2], channels and simulated [C], dropped []; a seed for each of x [B, C, T, F].

    q, e and simulated [1|3, B, C, T, F]: guided, and with guidance the two branches.
    """
    x, q, e = (np.asarray(values, np.float64) for values in (x, q, e))
    other = q if simulated is None else np.asarray(simulated, np.float64)
    good = np.isfinite(np.concatenate([q, e, other, x[None]])).all(axis=(0, 2, 3, 4))
    odd, D = np.array(seeds) % 2 == 1, q - e
    halves = [joint_of(vectors(q[0, mine], x[mine], D[0, mine], k)) for mine in (good & ~odd, good & odd)]
    channels = elements([q[0], D[0], *q[1:], *D[1:]], good, trim)
    more = None if simulated is None else elements([other[0], other[0] - e[0]], good, trim)
    return Seen(side_by_side(halves), channels, np.asarray(np.count_nonzero(~good)), more)


def elements(numbers: Sequence[np.ndarray], good: np.ndarray, trim: float) -> Joint:
    """Joint moments [C] of n numbers [B, C, T, F] each, the second of them D, over the samples that are good [B]."""
    stacked = np.moveaxis(np.stack(numbers, axis=-1)[good], 1, 0)
    flat = stacked.reshape(len(stacked), -1, len(numbers))
    if trim == 0.0 or not flat.size:
        return joint_of(flat)
    D = flat[..., 1]
    near = np.abs(D - D.mean(axis=1, keepdims=True)) <= trim * D.std(axis=1, keepdims=True)
    return side_by_side([joint_of(group[kept]) for group, kept in zip(flat, near, strict=True)])


def branches(session: Session, engine: Engine, cond: Rows, guidance: float) -> Said:
    """The engine as what says guided eps, and that of each branch; what is not finite passes.

    Guidance comes before eps, as in `denoiser`: the order decides the last bit, which integer engines make a code of.
    """
    said: list[np.ndarray] = []

    def predict(x: np.ndarray, t: float, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        said[:] = [np.asarray(engine(session.family.feeds(x, np.full(len(x), whole(t), np.int64), rows)))]
        return said[0]

    guided = guide(predict, cond, session.uncond, guidance)

    def say(x: np.ndarray, t: float) -> np.ndarray:
        out = guided(x, t)
        outs = [out, *np.split(said[0], 2)] if len(said[0]) > len(x) else [out]
        return np.stack([to_eps(part, x, t, session.schedule) for part in outs])

    return say


def unchecked_denoiser(session: Session, engine: Engine, cond: Rows, guidance: float) -> Denoise:
    """The engine as a guided denoiser that passes on what is not finite."""
    say = branches(session, engine, cond, guidance)
    return lambda x, t: say(x, t)[0]


def side_by_side(joints: Sequence[Joint], axis: int = 0) -> Joint:
    """Joint moments side by side."""
    return Joint(*(np.stack([getattr(joint, name) for joint in joints], axis) for name in ("count", "mean", "m2")))
