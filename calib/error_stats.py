"""Error statistics: the joint Gaussian of what the deployed engine says and how wrong it is.

    q      guided eps of the quantized engine, as it will run
    D      q - e, the error against the guided eps e of the float graph, both at the same x_t
    mean   (mu_q, mu_D)           cov   [[C00, C01], [C01, C11]], count - 1 in the denominator, per timestep

D2-DPM (arXiv:2408.11275), Algorithm 1, lines 1-2. x_t comes from the float engine's own trajectories (teacher forcing)
at the guidance scale, steps and eta in use: the statistics belong to these and to the engine, and say so (`Binding`).
Everything is in eps: a network that predicts v or x_0 is converted first (D_e = sqrt(alpha_bar) D_v). A group is a
channel (default) or the whole tensor; the pairs of a group are all its elements over all trajectories. With them goes
what a neighbourhood of q and x_t says of D, and how much of either law holds where it was not fitted (`local_law`).

The published code first drops pairs with |D - mean| > 4 std, which biases C11 low; nothing finite is dropped here. What
the engine answers that is not finite is dropped, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quaver.calib.error_path import Part, fit_path
from quaver.calib.fanout import HERE, Compute, Fanout, Work, clear, map_shards
from quaver.calib.fanout import KIND as SHARD
from quaver.calib.local_law import fit_laws, pairs, vectors
from quaver.calib.moments import Joint, covariance, joint_of, merge_joint, no_joint
from quaver.calib.prompts import load_prompts
from quaver.calib.trajectories import Shard, split_prompts
from quaver.runtime.artifact import Stamp, digest_json, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.error_law import Binding, ErrorStats, Local, error_law, save_stats
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.generate import binding, generate_from
from quaver.runtime.guide import Rows, guide
from quaver.runtime.progress import Progress
from quaver.runtime.sample import Denoise, SamplingSettings, Step, visited
from quaver.runtime.samplers import plan, whole
from quaver.runtime.schedule import load_schedule, to_eps
from quaver.runtime.session import FLOAT, Session, open_bundle

OPEN = "quaver.calib.error_stats:open_pair"


@dataclass(frozen=True)
class StatsSettings:
    """The table [stats] of a recipe."""

    trajectories: int = 64
    granularity: Literal["channel", "tensor"] = "channel"  # one Gaussian per latent channel, or one for all of them
    closed: int = 256  # trajectories that the closed-loop law is fitted on at most: the first ones, all at once
    neighbourhood: int = 3  # places k x k of q and x_t that the local law reads: 1, 3, 5 or 7
    target: str = "ort-cpu"  # the engine to fit, unet.<target>.onnx, as onnxruntime runs it
    batch: int = 8  # trajectories run together
    seed: int = 2_000_000  # of the first trajectory; capture counts from 1,000,000, validation from below that

    def __post_init__(self) -> None:
        for name, least in {"trajectories": 1, "closed": 1, "batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise RecipeError(f"stats.{name} is {getattr(self, name)}, expected {least} or more")
        if self.neighbourhood not in (1, 3, 5, 7):
            raise RecipeError(f"stats.neighbourhood is {self.neighbourhood}, expected 1, 3, 5 or 7")


@dataclass(frozen=True)
class Pair:
    """The engines compared: a bundle, by its absolute path, the target's name, and how they are compared."""

    bundle: Bundle
    target: str
    neighbourhood: int
    sampling: SamplingSettings


def collect_error_stats(
    bundle: Bundle,
    settings: StatsSettings,
    sampling: SamplingSettings,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write error_stats.<target>.safetensors: timesteps [S], mean [S, C|1, 2], cov [S, C|1, 2, 2], count [S] float64,
    and the parts `local` and `path` of `ErrorStats`.

    `meta` holds the binding and, per timestep, the share of the error's variance that the output explains, and of the
    squared error that either law takes off where it was not fitted.
    Raises: EngineError when an engine gives nothing finite at a timestep.
    """
    texts, folder = [row["text"] for row in load_prompts(bundle, "calib")], bundle.shards("stats")
    shards = split_prompts([texts[i % len(texts)] for i in range(settings.trajectories)], settings.seed, settings.batch)
    pair = Pair(Bundle(bundle.root.resolve()), settings.target, settings.neighbourhood, sampling)
    work = Work(OPEN, pair, digest_json([asdict(stamp), asdict(settings), asdict(sampling)]))
    label = f"stats {settings.target}"
    halves, dropped, bound = merge_shards(
        map_shards(work, shards, folder, fanout=fanout, progress=progress, label=label)
    )
    at = visited(sampling, load_schedule(bundle.scheduler))
    counts = halves.count.sum(axis=0)
    if counts.min() < 2:
        raise EngineError(
            f"{settings.target} gives nothing finite at timestep {at[counts.argmin()]}: run 'quaver show' on"
            f" {bundle.qdq(settings.target).name}, or collect wider ranges"
        )
    stats, held = fit(halves, at, bound, settings)
    share = explained(stats)
    meta = {"explained": share, "held_out": held, "dropped": dropped, "settings": asdict(settings)}
    lost = f", {dropped.sum()} answers that were not finite left out" if dropped.any() else ""
    progress.say(f"stats  the output explains {share.min():.1%} to {share.max():.1%} of its error's variance{lost}")
    if "local" in held:
        low, high = min(held["local"]), max(held["local"])
        progress.say(f"stats  with its neighbourhood and x_t, elsewhere, {low:.1%} to {high:.1%}")
    if stats.local is not None:
        first = shards[: -(-settings.closed // settings.batch)]
        law, on_path = follow(pair, first, folder / "path.safetensors", Stamp(SHARD, settings=work.key), progress)
        stats, held["path"] = replace(stats, path=law), on_path.mean(axis=1).tolist()
    path = save_stats(bundle.error_stats(settings.target), stats, stamp, meta=meta)
    clear(folder)
    return path


def follow(
    pair: Pair, shards: Sequence[Shard], state: Path, stamp: Stamp, progress: Progress
) -> tuple[Local, np.ndarray]:
    """What keeps the engine on the float model's path, fitted in this process (`error_path`)."""
    bundle, sampling = pair.bundle, pair.sampling
    with open_bundle(bundle, engine_file=FLOAT) as session, open_engine(bundle.qdq(pair.target)) as engine:
        parts, start = [], 0
        for shard in shards:
            cond = session.family.embed(session.parts, list(shard.texts))
            both = (unchecked_denoiser(session, e, cond, sampling.guidance) for e in (engine, session.engine))
            parts.append(Part(slice(start, start + len(shard.texts)), *both))
            start += len(shard.texts)
        moves = plan(sampling.sampler, session.schedule, steps=sampling.steps, eta=sampling.eta)
        clip, shape = session.schedule.clip, session.latent_shape
        return fit_path(
            parts, shards, moves, shape, pair.neighbourhood, clip=clip, state=state, stamp=stamp, progress=progress
        )


def fit(
    halves: Joint, at: np.ndarray, bound: Binding, settings: StatsSettings
) -> tuple[ErrorStats, dict[str, list[float]]]:
    """The statistics from joint moments [2, S] of (phi, D), and per timestep the share of the squared error that each
    law takes off on the half that had no part in its fit ({} where a half is empty).
    """
    C, k, S = bound.latent_shape[0], settings.neighbourhood, len(at)
    steps = [tuple(Joint(h.count[s], h.mean[s], h.m2[s]) for h in _halves(halves)) for s in range(S)]
    joint = pairs(merge_joint(*_halves(halves)), C, k)
    if settings.granularity == "tensor":
        joint = pool(joint)
    stats = ErrorStats(timesteps=at, mean=joint.mean, cov=covariance(joint), count=joint.count[:, 0], binding=bound)
    if halves.count.min() < 2:
        return stats, {}
    channel, local = zip(*(fit_laws((a, b), C, k) for a, b in steps), strict=True)
    weight = np.stack([W for (W, _), _ in local]).reshape(S, C, 2 * C, k, k).astype(np.float32)
    rest = np.stack([held.rest for _, held in local]) / 2  # two halves
    found = Local(weight, np.stack([b for (_, b), _ in local]), rest)
    shares = {"channel": [held.share for _, held in channel], "local": [held.share for _, held in local]}
    return replace(stats, local=found), shares


def _halves(joint: Joint) -> tuple[Joint, Joint]:
    first, second = (Joint(joint.count[h], joint.mean[h], joint.m2[h]) for h in (0, 1))
    return first, second


def pool(joint: Joint) -> Joint:
    """Joint moments [S, 1] of all groups [S, G] together."""
    groups = [Joint(joint.count[:, [g]], joint.mean[:, [g]], joint.m2[:, [g]]) for g in range(joint.count.shape[1])]
    return reduce(merge_joint, groups)


def merge_shards(files: Iterable[Path]) -> tuple[Joint, np.ndarray, Binding]:
    """Joint moments [2, S] and dropped trajectories [S] of all shards together, and what all of them were bound to.

    Raises: ArtifactError when two shards were run on different engines.
    """
    joint, dropped = None, np.zeros((), int)
    bound: dict[str, Any] = {}
    for path in files:
        tensors, meta = load_tensors(path, SHARD)
        seen = Joint(*(tensors[name] for name in ("count", "mean", "m2")))
        if bound and meta["binding"] != bound:
            raise ArtifactError(
                f"shards ran on different engines ({bound['engine']} and {meta['binding']['engine']}): let every worker"
                " see the same bundle, and run the stage again"
            )
        joint, bound = seen if joint is None else merge_joint(joint, seen), meta["binding"]
        dropped = dropped + tensors["dropped"]
    assert joint is not None  # there are trajectories
    return joint, dropped, Binding(**{**bound, "latent_shape": tuple(bound["latent_shape"])})


@contextmanager
def open_pair(pair: Pair, *, threads: int | None) -> Iterator[Compute]:
    """The function from a shard to its joint moments, with both engines open."""
    with (
        open_bundle(pair.bundle, engine_file=FLOAT, threads=threads) as session,
        open_engine(pair.bundle.qdq(pair.target), threads=threads) as engine,
    ):
        bound = asdict(binding(replace(session, engine=engine), pair.sampling, reference=session.engine.digest))

        def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            joint, dropped = compare(session, engine, shard, pair)
            return {"count": joint.count, "mean": joint.mean, "m2": joint.m2, "dropped": dropped}, {"binding": bound}

        yield compute


def compare(session: Session, engine: Engine, shard: Shard, pair: Pair) -> tuple[Joint, np.ndarray]:
    """Joint moments [2, S] of (phi, D) over a shard, and how many trajectories were dropped at each timestep [S].

    Trajectories of even seeds are the first half, those of odd ones the second.
    """
    C, k, steps = session.latent_shape[0], pair.neighbourhood, pair.sampling.steps
    joints, dropped = [no_joint((2,), C + 2 * C * k * k)] * steps, np.zeros(steps, int)
    texts, seeds = list(shard.texts), range(shard.seed, shard.seed + len(shard.texts))
    deployed = unchecked_denoiser(session, engine, session.family.embed(session.parts, texts), pair.sampling.guidance)

    def look(step: Step) -> None:
        joint, bad = halves_of(deployed(step.x_t, step.t), step.x_t, step.eps_raw, seeds, k)
        joints[step.index], dropped[step.index] = merge_joint(joints[step.index], joint), dropped[step.index] + bad

    list(generate_from(session, texts, seeds, pair.sampling, batch=len(seeds), decode=False, on_step=look))
    parts = (np.stack([getattr(joint, name) for joint in joints], axis=1) for name in ("count", "mean", "m2"))
    return Joint(*parts), dropped


def halves_of(q: np.ndarray, x: np.ndarray, e: np.ndarray, seeds: Sequence[int], k: int) -> tuple[Joint, int]:
    """Joint moments [2] of (phi, q - e), and how many samples were dropped; q, x, e [B, C, T, F], a seed each."""
    q, x, e = (np.asarray(values, np.float64) for values in (q, x, e))
    good, odd = np.isfinite(q.reshape(len(q), -1)).all(axis=1), np.array(seeds) % 2 == 1
    halves = [joint_of(vectors(q[mine], x[mine], (q - e)[mine], k)) for mine in (good & ~odd, good & odd)]
    joint = Joint(*(np.stack([getattr(half, name) for half in halves]) for name in ("count", "mean", "m2")))
    return joint, int(np.count_nonzero(~good))


def explained(stats: ErrorStats) -> np.ndarray:
    """rho^2 [S]: the share of the error's variance that the output explains, over the groups weighted by variance."""
    law, variance = error_law(stats), np.maximum(stats.cov[..., 1, 1], 0.0)
    total = variance.sum(axis=1)
    return np.divide((law.rho**2 * variance).sum(axis=1), total, out=np.zeros_like(total), where=total > 0)


def unchecked_denoiser(session: Session, engine: Engine, cond: Rows, guidance: float) -> Denoise:
    """The engine as a guided denoiser that passes on what is not finite, for `pair_moments` to drop."""

    def predict(x: np.ndarray, t: float, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        out = engine(session.family.feeds(x, np.full(len(x), whole(t), np.int64), rows))
        return np.asarray(to_eps(out, x, t, session.schedule))

    return guide(predict, cond, session.uncond, guidance)
