"""Capture: activation variance per (layer, timestep), and the records drawn by it (PTQ4ADM, Algorithm 2).

The calibration prompts run through the float denoiser's own trajectories, guided as they will be in use. While they
run, the input of every layer is summarised in the graph (`taps`), over all elements, both guidance branches and all
prompts, into sigma^2[l, s]. Then K pairs (layer, timestep) are drawn (`select`), each gets a prompt, and the record is
(x_t, t, conditioning) of that prompt's trajectory (`records`).

The trajectories run in shards of `batch`, over as many workers as there are (`fanout`, `trajectories`). Which x_t are
needed is known only after the last one. Until then all of them lie on disk beside the moments of their shard, when they
take at most `hold` MiB there; else the shards of the drawn prompts run a second time: seeds make them the same. Memory
holds one shard, the moments and the K records, however many prompts there are.

A model may come with samples that hold x_t and t. These are records already: capture only draws from them (`given`).

Seeds: capture uses `seed + i` for prompt i, from 1,000,000 on; error statistics start at 2,000,000, what is generated
for validation and by hand at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quaver.calib.fanout import HERE, Fanout, Work, clear, map_shards
from quaver.calib.fanout import KIND as SHARD
from quaver.calib.graph import Layer
from quaver.calib.heatmap import draw_heatmap
from quaver.calib.moments import Moments, merge_moments, no_moments, resolved_variance
from quaver.calib.prompts import load_prompts
from quaver.calib.records import KIND as SAMPLES
from quaver.calib.records import Records, prefixed, save_records
from quaver.calib.select import SELECT, Field, assign_prompts, require_prompts
from quaver.calib.trajectories import FIELDS, Pairs, Shard, Source, first_readers, read_layers, split_prompts
from quaver.runtime.artifact import Stamp, atomic, digest_json, load_tensors, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import read_card
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings, visited
from quaver.runtime.schedule import load_schedule

KIND = "moments"
OPEN = "quaver.calib.trajectories:open_trajectories"
HEAT_MAP = "variance.svg"  # among the media of the bundle


@dataclass(frozen=True)
class CaptureSettings:
    """The table [capture] of a recipe."""

    prompts: int = 0  # calibration prompts that run a trajectory, the first ones; 0: all
    records: int = 1024  # K, records drawn
    select: Literal["activation", "uniform", "normal", "even"] = "activation"
    mode: Literal["paper", "normalized"] = "normalized"  # raw variances, or each layer over its mean
    tau: float = 0.1  # pairs below this share of the largest weight are never drawn
    cap: int = 0  # records a prompt may give; 0: as even as can be
    batch: int = 8  # trajectories run together
    hold: int = 1024  # MiB of x_t on disk at most, until it is known which are drawn
    seed: int = 1_000_000  # of the first trajectory, and of the draw

    def __post_init__(self) -> None:
        for name, least in (
            ("prompts", 0),
            ("records", 1),
            ("tau", 0),
            ("cap", 0),
            ("batch", 1),
            ("hold", 0),
            ("seed", 0),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise RecipeError(f"capture.{name} is {getattr(self, name)}, expected {least} or more")


def capture(
    bundle: Bundle,
    settings: CaptureSettings,
    sampling: SamplingSettings,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write moments.safetensors, samples/records.safetensors and media/variance.svg; returns the second.

    Raises: RecipeError when the records asked for do not exist; EngineError for activations that are not finite.
    """
    if read_card(bundle).get("given"):
        from quaver.calib.given import draw_given  # it selects and saves as this does

        return draw_given(bundle, settings, sampling, stamp=stamp, progress=progress, fanout=fanout)
    rows = load_prompts(bundle, "calib")
    if settings.prompts > len(rows):
        raise RecipeError(
            f"capture.prompts is {settings.prompts}, there are {len(rows)} prompts: lower it, or add some"
        )
    rows = rows[: settings.prompts or None]
    require_states(settings.records, len(rows), sampling.steps)
    require_prompts(settings.records, len(rows), cap=settings.cap)
    found, schedule, rng = read_layers(bundle), load_schedule(bundle.scheduler), np.random.default_rng(settings.seed)
    held = 4 * len(rows) * sampling.steps * math.prod(read_card(bundle)["latent_shape"]) <= settings.hold << 20
    shards = split_prompts(
        [row["text"] for row in rows],
        settings.seed,
        settings.batch,
        keep=partial(every_state, sampling.steps) if held else None,
    )
    key = digest_json([asdict(stamp), asdict(settings), asdict(sampling)])
    work = Work(OPEN, Source(Bundle(bundle.root.resolve()), sampling), key)
    run = partial(map_shards, work, fanout=fanout, progress=progress)
    files, grid = merge_shards(run(shards, bundle.shards("capture"), label="capture"))
    grid = per_layer(grid, list(first_readers(found)), found)
    field = Field(resolved_variance(grid), visited(sampling, schedule), len(schedule.alpha_bar))
    if not field.variance.any():
        progress.say("capture  every activation variance is 0: pairs are drawn uniformly")
    layer, step = SELECT[settings.select](field, settings.records, rng, mode=settings.mode, tau=settings.tau)
    prompt = assign_prompts(step, len(rows), rng, cap=settings.cap)
    drawn = drawn_shards(shards, prompt, step, settings.batch)
    if held:
        again = [(shards[i], files[i]) for i in drawn]
    else:
        fetched = run([*drawn.values()], bundle.shards("capture") / "drawn", label="capture, drawn x_t")
        again = list(zip(drawn.values(), fetched, strict=True))
    names = tuple(layer.name for layer in found)
    records = Records(
        **gather(again, settings.seed + prompt, step),
        t=field.timesteps[step],
        prompt=prompt,
        layer=layer,
        seed=settings.seed + prompt,
        guidance=sampling.guidance,
        prompts=tuple(row["id"] for row in rows),
        layers=names,
    )
    meta = {"settings": asdict(settings), "sampling": asdict(sampling), "layers": names}
    save_moments(bundle.moments, grid, field.timesteps, replace(stamp, kind=KIND), meta)
    with atomic(bundle.media(HEAT_MAP)) as temporary:
        temporary.write_text(draw_heatmap(field, names, layer, step), encoding="utf-8")
    save_records(bundle.samples, records, replace(stamp, kind=SAMPLES))
    clear(bundle.shards("capture"))
    return bundle.samples


def require_states(records: int, prompts: int, steps: int) -> None:
    """Raises: RecipeError when there are fewer x_t than records asked for."""
    if records > prompts * steps:
        raise RecipeError(
            f"capture.records is {records}, {prompts} prompts of {steps} steps have {prompts * steps} x_t: lower it, or"
            " raise capture.prompts or sampling.steps"
        )


def every_state(steps: int, rows: int) -> Pairs:
    """Every (row, step) of a shard."""
    return tuple((row, step) for row in range(rows) for step in range(steps))


def merge_shards(files: Iterable[Path]) -> tuple[list[Path], Moments]:
    """The moments [E, S] of all shards together, and their files."""
    paths, grid = [], None
    for path in files:
        tensors, _ = load_tensors(path, SHARD)
        seen = Moments(*(tensors[name] for name in FIELDS))
        grid = merge_moments(no_moments(seen.mean.shape) if grid is None else grid, seen)
        paths.append(path)
    assert grid is not None  # there are prompts
    return paths, grid


def drawn_shards(shards: Sequence[Shard], prompt: np.ndarray, step: np.ndarray, batch: int) -> dict[int, Shard]:
    """The shards that the drawn (prompt, step) [K] lie in, by their index, keeping just those x_t."""
    keep: dict[int, set[tuple[int, int]]] = {}
    for n, s in zip(prompt.tolist(), step.tolist(), strict=True):
        keep.setdefault(n // batch, set()).add((n % batch, s))
    return {i: replace(shards[i], keep=tuple(sorted(keep[i]))) for i in sorted(keep)}


def gather(kept: Sequence[tuple[Shard, Path]], seed: np.ndarray, step: np.ndarray) -> dict[str, Any]:
    """`x_t` [K, ...], `cond` [K, ...] and `uncond` [1, ...] of drawn trajectories, by seed [K], at their steps [K]."""
    out: dict[str, np.ndarray] = {}
    uncond: dict[str, np.ndarray] = {}
    for shard, path in kept:
        tensors, _ = load_tensors(path, SHARD)
        here = np.flatnonzero((seed >= shard.seed) & (seed < shard.seed + len(shard.texts)))
        row, place = seed[here] - shard.seed, {pair: i for i, pair in enumerate(shard.keep)}
        found = {name: rows[row] for name, rows in tensors.items() if name.startswith("cond_")}
        found["x_t"] = tensors["x_t"][[place[pair] for pair in zip(row.tolist(), step[here].tolist(), strict=True)]]
        for name, values in found.items():
            out.setdefault(name, np.empty((len(seed), *values.shape[1:]), values.dtype))[here] = values
        uncond = prefixed(tensors, "uncond_")
    return {"x_t": out["x_t"], "cond": prefixed(out, "cond_"), "uncond": uncond}


def per_layer(grid: Moments, edges: Sequence[str], found: Sequence[Layer]) -> Moments:
    """Moments [L, S] of each layer's input, from those [E, S] of the edges; layers may share an edge."""
    rows = [edges.index(layer.input) for layer in found]
    return Moments(*(getattr(grid, name)[rows] for name in Moments.__dataclass_fields__))


def save_moments(path: Path, grid: Moments, at: np.ndarray, stamp: Stamp, meta: Mapping[str, object]) -> Path:
    """Write count, mean, variance, amin and amax [L, S] and the timesteps [S]."""
    tensors = {name: getattr(grid, name) for name in ("count", "mean", "amin", "amax")}
    return save_tensors(path, {**tensors, "variance": resolved_variance(grid), "timesteps": at}, stamp, meta=meta)
