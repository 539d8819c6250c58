"""Error statistics: the joint Gaussian of what the deployed engine says and how wrong it is.

    q      guided eps of the quantized engine, as it will run
    D      q - e, the error against the guided eps e of the float graph, both at the same x_t
    mean   (mu_q, mu_D)           cov   [[C00, C01], [C01, C11]], count - 1 in the denominator, per timestep

D2-DPM (arXiv:2408.11275), Algorithm 1, lines 1-2. x_t comes from the float engine's own trajectories (teacher forcing)
or from another teacher's (`comparison`), at the guidance scale, steps and eta in use: the statistics belong to these
and to the engine, and say so (`Binding`).
Everything is in eps: a network that predicts v or x_0 is converted first (D_e = sqrt(alpha_bar) D_v). A group is a
channel (default) or the whole tensor; the pairs of a group are all its elements over all trajectories. With them goes
what a neighbourhood of q and x_t says of D, and how much of either law holds where it was not fitted (`local_law`).

The published code first drops pairs with |D - mean| > 4 std, which biases C11 low: `trim`, off unless it is asked for.
What the engine answers that is not finite is dropped, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quaver.calib.closed_loop import close
from quaver.calib.comparison import Pair, Teacher, unchecked_denoiser
from quaver.calib.error_fit import Fitted, fit
from quaver.calib.error_path import Part, fit_path
from quaver.calib.evidence import Seen, gather
from quaver.calib.explained import explained
from quaver.calib.fanout import HERE, Fanout, Work, clear
from quaver.calib.fanout import KIND as SHARD
from quaver.calib.prompts import load_prompts
from quaver.calib.trajectories import Shard, split_prompts
from quaver.runtime.artifact import Stamp, digest_file, digest_json
from quaver.runtime.bundle import Bundle, sampling_name
from quaver.runtime.engine import open_engine
from quaver.runtime.error_law import Local, save_stats
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.samplers import plan
from quaver.runtime.schedule import load_schedule
from quaver.runtime.session import FLOAT, find_engine, open_bundle

OPEN = "quaver.calib.comparison:open_pair"


@dataclass(frozen=True)
class StatsSettings:
    """The table [stats] of a recipe."""

    trajectories: int = 64
    granularity: Literal["channel", "tensor"] = "channel"  # one Gaussian per latent channel, or one for all of them
    closed: int = 256  # trajectories that the closed-loop law is fitted on at most: the first ones, all at once
    neighbourhood: int = 3  # places k x k of q and x_t that the local law reads: 1, 3, 5 or 7
    trim: float = 0.0  # deviations beyond which an error is left out of the Gaussian; 0: none is, the authors' code: 4
    teacher: Teacher = "float"  # whose x_t: the float engine's, the quantized one's, or the corrected one's
    rounds: int = 3  # of the corrected teacher at most
    simulated: bool = False  # also fit the quantized graph executed in floats, to compare
    target: str = "ort-cpu"  # the engine to fit: unet.<target>.onnx, or the plan of one for TensorRT
    provider: str = ""  # execution provider of onnxruntime that runs it; "": the CPU
    batch: int = 8  # trajectories run together
    seed: int = 2_000_000  # of the first trajectory; capture counts from 1,000,000, validation from below that

    def __post_init__(self) -> None:
        for name, least in {"trajectories": 1, "closed": 1, "rounds": 1, "batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise RecipeError(f"stats.{name} is {getattr(self, name)}, expected {least} or more")
        if not (self.trim == 0.0 or 1.0 <= self.trim < math.inf):
            raise RecipeError(f"stats.trim is {self.trim:g}, expected 0 (off) or 1 and more deviations")
        if self.neighbourhood not in (1, 3, 5, 7):
            raise RecipeError(f"stats.neighbourhood is {self.neighbourhood}, expected 1, 3, 5 or 7")


@dataclass(frozen=True)
class Collection:
    """Trajectories to collect on: their shards, the folder of what they give, and who runs them."""

    shards: Sequence[Shard]
    folder: Path
    key: str
    fanout: Fanout
    progress: Progress


def collect_error_stats(
    bundle: Bundle,
    settings: StatsSettings,
    sampling: SamplingSettings,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write error_stats.<target>.safetensors, of the recipe's sampling. Raises: as `collect`."""
    place = bundle.error_stats(settings.target), bundle.shards("stats")
    return collect(bundle, settings, sampling, *place, stamp=stamp, progress=progress, fanout=fanout)


def collect_beside(
    bundle: Bundle,
    settings: StatsSettings,
    sampling: SamplingSettings,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write the file of another sampling beside that of the recipe's. Raises: as `collect`."""
    place = bundle.error_stats(settings.target, sampling), bundle.shards(f"stats-{sampling_name(sampling)}")
    return collect(bundle, settings, sampling, *place, stamp=stamp, progress=progress, fanout=fanout)


def collect(
    bundle: Bundle,
    settings: StatsSettings,
    sampling: SamplingSettings,
    path: Path,
    folder: Path,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write error statistics to `path`: timesteps [S], mean [S, C|1, 2], cov [S, C|1, 2, 2], count [S] float64, and the
    parts of `ErrorStats`; `folder` keeps what is done of it until all is.

    `meta` holds the binding; per timestep the share of the error's variance that the output explains, and of the
    squared error that either law takes off where it was not fitted; what trimming did; the error of every round.
    Raises: EngineError when an engine gives nothing finite at a timestep.
    """
    texts = [row["text"] for row in load_prompts(bundle, "calib")]
    shards = split_prompts([texts[i % len(texts)] for i in range(settings.trajectories)], settings.seed, settings.batch)
    key = digest_json([asdict(stamp), asdict(settings), asdict(sampling)])
    pair = Pair(
        Bundle(bundle.root.resolve()),
        settings.target,
        settings.neighbourhood,
        sampling,
        settings.trim,
        settings.simulated,
        "float" if settings.teacher == "corrected" else settings.teacher,
        provider=settings.provider or None,
    )
    collection = Collection(shards, folder, key, fanout, progress)
    fitted, meta = fit_gaussian(pair, settings, collection)
    report(fitted, progress)
    stats, held = fitted.stats, fitted.held
    if stats.local is not None:
        some = shards[: -(-settings.closed // settings.batch)]
        law, on_path = follow(pair, some, folder / "path.safetensors", Stamp(SHARD, settings=key), progress)
        stats, held = replace(stats, path=law), {**held, "path": on_path.mean(axis=1).tolist()}
    meta |= {"explained": explained(stats), "held_out": held, "dropped": fitted.dropped, "trimmed": fitted.trimmed}
    save_stats(path, stats, stamp, meta={**meta, "settings": asdict(settings)})
    clear(folder)
    return path


def fit_gaussian(pair: Pair, settings: StatsSettings, collection: Collection) -> tuple[Fitted, dict[str, Any]]:
    """The Gaussian on the trajectories of the teacher; of a corrected one with the error of every `round`."""

    def again(before: Fitted, number: int) -> tuple[Fitted, float]:
        folder = collection.folder / f"round-{number}"
        law = replace(before.stats, local=None, branches=None, simulated=None)
        saved = save_stats(folder / "law.safetensors", law, Stamp(SHARD)).resolve()
        led = replace(pair, teacher="corrected", law=saved)
        key = digest_json([collection.key, digest_file(saved)])
        following, seen = fit_on(led, settings, replace(collection, folder=folder, key=key))
        error = float(seen.loss[0] / seen.loss[1]) if seen.loss[1] else math.inf
        collection.progress.say(f"stats  round {number}: with the law before, finished latents are {error:.2%} off")
        return following, error

    fitted, _ = fit_on(pair, settings, collection)
    if settings.teacher != "corrected":
        return fitted, {}
    fitted, errors = close(fitted, again, settings.rounds)
    return fitted, {"rounds": errors}


def fit_on(pair: Pair, settings: StatsSettings, collection: Collection) -> tuple[Fitted, Seen]:
    """The statistics of one pass over all trajectories, and what was seen."""
    seen, bound = gather(
        Work(OPEN, pair, collection.key),
        collection.shards,
        collection.folder,
        fanout=collection.fanout,
        progress=collection.progress,
        label=f"stats {pair.target}",
    )
    at = visited(pair.sampling, load_schedule(pair.bundle.scheduler))
    counts = seen.halves.count.sum(axis=0)
    if counts.min() < 2:
        raise EngineError(
            f"{pair.target} gives nothing finite at timestep {at[counts.argmin()]}: run 'quaver show' on"
            f" {pair.bundle.qdq(pair.target).name}, or collect wider ranges"
        )
    return fit(seen, at, bound, k=pair.neighbourhood, tensor=settings.granularity == "tensor"), seen


def report(fitted: Fitted, progress: Progress) -> None:
    """Say what was fitted."""
    share = explained(fitted.stats)
    lost = f", {fitted.dropped.sum()} answers that were not finite left out" if fitted.dropped.any() else ""
    progress.say(f"stats  the output explains {share.min():.1%} to {share.max():.1%} of its error's variance{lost}")
    if "local" in fitted.held:
        low, high = min(fitted.held["local"]), max(fitted.held["local"])
        progress.say(f"stats  with its neighbourhood and x_t, elsewhere, {low:.1%} to {high:.1%}")
    if fitted.trimmed["share"].any():
        share, C11, rho = (fitted.trimmed[name] for name in ("share", "C11", "rho^2"))
        progress.say(
            f"stats  trimming left out up to {share.max():.2%}: C11 is {C11.min():.3f} to {C11.max():.3f} of that of"
            f" all pairs, rho^2 moves by {rho.min():+.1%} to {rho.max():+.1%}"
        )


def follow(
    pair: Pair, shards: Sequence[Shard], state: Path, stamp: Stamp, progress: Progress
) -> tuple[Local, np.ndarray]:
    """What keeps the engine on the float model's path, fitted in this process (`error_path`)."""
    bundle, sampling = pair.bundle, pair.sampling
    path, _ = find_engine(bundle, pair.target)
    opened = open_engine(path, provider=pair.provider)
    with opened as engine, open_bundle(bundle, engine_file=FLOAT) as session:
        parts, start = [], 0
        for shard in shards:
            cond = session.family.embed(session.parts, list(shard.texts))
            both = (unchecked_denoiser(session, e, cond, sampling.guidance) for e in (engine, session.engine))
            parts.append(Part(slice(start, start + len(shard.texts)), *both))
            start += len(shard.texts)
        moves = plan(sampling.sampler, session.schedule, steps=sampling.steps, eta=sampling.eta)
        shape = session.latent_shape
        return fit_path(parts, shards, moves, shape, pair.neighbourhood, state=state, stamp=stamp, progress=progress)
