"""Float and deployed engine on the same x_t: what trajectories show of the error, as joint moments that merge.

    halves     (phi, D) of every place, the trajectories of even seeds and those of odd ones (`local_law`)
    channels   (q, D) of every element of a channel; with guidance (q, D, q_u, q_c, D_u, D_c)

q, e are guided eps, D = q - e, at x_t of the float engine's own trajectories; u and c are the two branches, which
guidance runs as one batch, so their moments cost no call. A trajectory in which something is not finite leaves nothing
at that timestep, and is counted. The moments of (phi, D) are symmetric: a file has their upper triangle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.fanout import KIND, Compute
from quaver.calib.local_law import vectors
from quaver.calib.moments import Joint, joint_of, merge_joint
from quaver.calib.trajectories import Shard
from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.denoise import check_finite, initial_noise, step_noise
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.error_law import Binding
from quaver.runtime.errors import ArtifactError
from quaver.runtime.generate import binding
from quaver.runtime.guide import Rows, guide
from quaver.runtime.sample import SAMPLERS, Denoise, SamplingSettings
from quaver.runtime.samplers import whole
from quaver.runtime.schedule import to_eps
from quaver.runtime.session import FLOAT, Session, open_bundle

JOINTS = ("halves", "channels")
Said = Callable[[np.ndarray, float], np.ndarray]  # x_t [B, C, T, F], t -> eps [1|3, B, C, T, F]: guided, u, c


@dataclass(frozen=True)
class Pair:
    """The engines compared: a bundle, by its absolute path, the target's name, and how they are compared."""

    bundle: Bundle
    target: str
    neighbourhood: int
    sampling: SamplingSettings


@dataclass(frozen=True)
class Seen:
    """What was seen: halves [2, S], channels [S, C]; dropped [S], trajectories that were not finite."""

    halves: Joint
    channels: Joint
    dropped: np.ndarray


@contextmanager
def open_pair(pair: Pair, *, threads: int | None) -> Iterator[Compute]:
    """The function from a shard to what is seen of it, with both engines open."""
    with (
        open_bundle(pair.bundle, engine_file=FLOAT, threads=threads) as session,
        open_engine(pair.bundle.qdq(pair.target), threads=threads) as engine,
    ):
        bound = asdict(binding(replace(session, engine=engine), pair.sampling, reference=session.engine.digest))

        def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            return to_tensors(compare(session, engine, shard, pair)), {"binding": bound}

        yield compute


def compare(session: Session, engine: Engine, shard: Shard, pair: Pair) -> Seen:
    """What a shard's trajectories show."""
    sampling, seeds = pair.sampling, range(shard.seed, shard.seed + len(shard.texts))
    cond = session.family.embed(session.parts, list(shard.texts))
    reference, deployed = (branches(session, e, cond, sampling.guidance) for e in (session.engine, engine))
    names, steps = [f"seed {seed}" for seed in seeds], list[Seen]()

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        e, q = reference(x, t), deployed(x, t)
        check_finite(e[0], t, names)
        steps.append(look(x, q, e, seeds, pair.neighbourhood))
        return e[0]

    SAMPLERS[sampling.sampler](
        denoise,
        initial_noise(seeds, session.latent_shape),
        session.schedule,
        steps=sampling.steps,
        eta=sampling.eta,
        noise=step_noise(seeds),
    )
    halves = stack([step.halves for step in steps], axis=1)
    return Seen(halves, stack([step.channels for step in steps]), np.array([step.dropped for step in steps]))


def look(x: np.ndarray, q: np.ndarray, e: np.ndarray, seeds: Sequence[int], k: int) -> Seen:
    """One step: halves [2], channels [C], dropped []; x [B, C, T, F], q and e [1|3, B, C, T, F], a seed each."""
    x, q, e = (np.asarray(values, np.float64) for values in (x, q, e))
    good = np.isfinite(np.concatenate([q, e, x[None]])).all(axis=(0, 2, 3, 4))
    odd, D = np.array(seeds) % 2 == 1, q - e
    halves = [joint_of(vectors(q[0, mine], x[mine], D[0, mine], k)) for mine in (good & ~odd, good & odd)]
    numbers = np.stack([q[0], D[0], *q[1:], *D[1:]], axis=-1)[good]
    channels = joint_of(np.moveaxis(numbers, 1, 0).reshape(x.shape[1], -1, numbers.shape[-1]))
    return Seen(stack(halves), channels, np.count_nonzero(~good))


def branches(session: Session, engine: Engine, cond: Rows, guidance: float) -> Said:
    """The engine as what says guided eps, and that of each branch; what is not finite passes."""
    said: list[np.ndarray] = []

    def predict(x: np.ndarray, t: float, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        out = engine(session.family.feeds(x, np.full(len(x), whole(t), np.int64), rows))
        said[:] = [np.asarray(to_eps(out, x, t, session.schedule))]
        return said[0]

    guided = guide(predict, cond, session.uncond, guidance)

    def say(x: np.ndarray, t: float) -> np.ndarray:
        eps = guided(x, t)
        return np.stack([eps, *np.split(said[0], 2)]) if len(said[0]) > len(x) else eps[None]

    return say


def unchecked_denoiser(session: Session, engine: Engine, cond: Rows, guidance: float) -> Denoise:
    """The engine as a guided denoiser that passes on what is not finite."""
    say = branches(session, engine, cond, guidance)
    return lambda x, t: say(x, t)[0]


def merge_shards(files: Iterable[Path]) -> tuple[Seen, Binding]:
    """What all shards have seen together, and what all of them were bound to.

    Raises: ArtifactError when two shards were run on different engines.
    """
    found = reduce(add, map(read_shard, files))
    return found[0], Binding(**{**found[1], "latent_shape": tuple(found[1]["latent_shape"])})


def read_shard(path: Path) -> tuple[Seen, dict[str, Any]]:
    """What a shard has seen, and its binding."""
    tensors, meta = load_tensors(path, KIND)
    return from_tensors(tensors), meta["binding"]


def add(a: tuple[Seen, dict[str, Any]], b: tuple[Seen, dict[str, Any]]) -> tuple[Seen, dict[str, Any]]:
    """Two shards, or sums of them, as one."""
    (one, bound), (two, other) = a, b
    if bound != other:
        raise ArtifactError(
            f"shards ran on different engines ({bound['engine']} and {other['engine']}): let every worker see the same"
            " bundle, and run the stage again"
        )
    joints = {name: merge_joint(getattr(one, name), getattr(two, name)) for name in JOINTS}
    return Seen(**joints, dropped=one.dropped + two.dropped), bound


def to_tensors(seen: Seen) -> dict[str, np.ndarray]:
    """As tensors of a file; of m2 of the halves the upper triangle."""
    joints = {f"{name}.{key}": value for name in JOINTS for key, value in vars(getattr(seen, name)).items()}
    upper = np.triu_indices(seen.halves.m2.shape[-1])
    return {**joints, "halves.m2": seen.halves.m2[..., upper[0], upper[1]], "dropped": seen.dropped}


def from_tensors(tensors: Mapping[str, np.ndarray]) -> Seen:
    """What `to_tensors` wrote."""
    halves, channels = (Joint(*(tensors[f"{name}.{key}"] for key in ("count", "mean", "m2"))) for name in JOINTS)
    size = halves.mean.shape[-1]
    m2, (i, j) = np.empty((*halves.mean.shape, size)), np.triu_indices(size)
    m2[..., i, j] = m2[..., j, i] = halves.m2
    return Seen(replace(halves, m2=m2), channels, tensors["dropped"])


def stack(joints: Sequence[Joint], axis: int = 0) -> Joint:
    """Joint moments side by side."""
    return Joint(*(np.stack([getattr(joint, name) for joint in joints], axis) for name in ("count", "mean", "m2")))
