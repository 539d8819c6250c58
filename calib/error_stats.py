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

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.comparison import Pair, Seen, merge_shards, unchecked_denoiser
from quaver.calib.error_path import Part, fit_path
from quaver.calib.fanout import HERE, Fanout, Work, clear, map_shards
from quaver.calib.fanout import KIND as SHARD
from quaver.calib.local_law import fit_laws
from quaver.calib.moments import Joint, covariance, merge_joint
from quaver.calib.prompts import load_prompts
from quaver.calib.trajectories import Shard, split_prompts
from quaver.runtime.artifact import Stamp, digest_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.error_law import Binding, ErrorStats, Gaussian, Local, error_law, save_stats
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.samplers import plan
from quaver.runtime.schedule import load_schedule
from quaver.runtime.session import FLOAT, open_bundle

OPEN = "quaver.calib.comparison:open_pair"


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
    seen, bound = merge_shards(map_shards(work, shards, folder, fanout=fanout, progress=progress, label=label))
    at = visited(sampling, load_schedule(bundle.scheduler))
    counts = seen.halves.count.sum(axis=0)
    if counts.min() < 2:
        raise EngineError(
            f"{settings.target} gives nothing finite at timestep {at[counts.argmin()]}: run 'quaver show' on"
            f" {bundle.qdq(settings.target).name}, or collect wider ranges"
        )
    stats, held = fit(seen, at, bound, settings)
    share = explained(stats)
    meta = {"explained": share, "held_out": held, "dropped": seen.dropped, "settings": asdict(settings)}
    lost = f", {seen.dropped.sum()} answers that were not finite left out" if seen.dropped.any() else ""
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
    seen: Seen, at: np.ndarray, bound: Binding, settings: StatsSettings
) -> tuple[ErrorStats, dict[str, list[float]]]:
    """The statistics of what was seen, and per timestep the share of the squared error that each law takes off on the
    half that had no part in its fit ({} where a half is empty).
    """
    joint, halves = seen.channels, seen.halves
    if settings.granularity == "tensor":
        joint = pool(joint)
    mean, cov = joint.mean, covariance(joint)
    both = Gaussian(mean[..., 2:], cov[..., 2:, 2:]) if mean.shape[-1] > 2 else None
    stats = ErrorStats(at, mean[..., :2], cov[..., :2, :2], joint.count[:, 0], bound, branches=both)
    if halves.count.min() < 2:
        return stats, {}
    C, k, S = bound.latent_shape[0], settings.neighbourhood, len(at)
    steps = [tuple(Joint(h.count[s], h.mean[s], h.m2[s]) for h in _halves(halves)) for s in range(S)]
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


def explained(stats: ErrorStats) -> np.ndarray:
    """rho^2 [S]: the share of the error's variance that the output explains, over the groups weighted by variance."""
    law, variance = error_law(stats), np.maximum(stats.cov[..., 1, 1], 0.0)
    total = variance.sum(axis=1)
    return np.divide((law.rho**2 * variance).sum(axis=1), total, out=np.zeros_like(total), where=total > 0)
