"""Records that came with a model: capture when the samples hold x_t and t already.

    sigma^2[l, t] = variance of the input of layer l over the given records at t,    one pass over all of them

and pairs (layer, timestep) are drawn by it as from trajectories (PTQ4ADM, Algorithm 2; `select`). A pair takes the next
record at its timestep, in random order, from the start again when they have run out. Asked for as many as there are or
more, capture takes each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.capture import HEAT_MAP, KIND, merge_shards, per_layer, save_moments
from quaver.calib.fanout import HERE, Compute, Fanout, Work, clear, map_shards
from quaver.calib.heatmap import draw_heatmap
from quaver.calib.moments import merge_moments, no_moments, require_finite, resolved_variance
from quaver.calib.records import KIND as SAMPLES
from quaver.calib.records import Records, batches, branches, load_records, save_records
from quaver.calib.select import NO_LAYER, SELECT, Field
from quaver.calib.taps import COUNT, SUMMARY, open_tapped, read_summaries, tap_summaries
from quaver.calib.trajectories import FIELDS, first_readers, read_layers, stack_columns
from quaver.runtime.artifact import Stamp, atomic, digest_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import family_of
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import load_schedule

if TYPE_CHECKING:
    from quaver.calib.capture import CaptureSettings

OPEN = "quaver.calib.given:open_given"


@dataclass(frozen=True)
class Shard:
    """The given records at a timestep."""

    t: int


@dataclass(frozen=True)
class Source:
    """Whose records: a bundle, by its absolute path; how many run together, and at which guidance scale."""

    bundle: Bundle
    batch: int
    guidance: float

    def records(self) -> Records:
        """The given records, as they are fed at that scale; those without an unconditional row are not guided."""
        found = load_records(self.bundle.given)
        return replace(found, guidance=self.guidance if found.uncond else 1.0)


def draw_given(
    bundle: Bundle,
    settings: CaptureSettings,
    sampling: SamplingSettings,
    *,
    stamp: Stamp,
    progress: Progress,
    fanout: Fanout = HERE,
) -> Path:
    """Write moments.safetensors, samples/records.safetensors and media/variance.svg; returns the second.

    Raises: EngineError for activations that are not finite.
    """
    source = Source(Bundle(bundle.root.resolve()), settings.batch, sampling.guidance)
    records, found, rng = source.records(), read_layers(bundle), np.random.default_rng(settings.seed)
    at = np.unique(records.t)[::-1]
    key = digest_json([asdict(stamp), asdict(settings), asdict(sampling)])
    shards, folder = [Shard(int(t)) for t in at], bundle.shards("capture")
    files = map_shards(Work(OPEN, source, key), shards, folder, fanout=fanout, progress=progress, label="capture")
    columns = [merge_shards([path])[1] for path in files]
    grid = per_layer(stack_columns(columns), list(first_readers(found)), found)
    field = Field(resolved_variance(grid), at, len(load_schedule(bundle.scheduler).alpha_bar))
    if settings.records >= len(records.t):
        progress.say(f"capture  the samples hold {len(records.t)} records: all of them, and nothing is drawn")
        chosen, layer = np.arange(len(records.t)), np.full(len(records.t), NO_LAYER)
    else:
        select = partial(SELECT[settings.select], mode=settings.mode, tau=settings.tau)
        layer, step = select(field, settings.records, rng)
        chosen = assign_records(records.t, at[step], rng)
    names = tuple(layer.name for layer in found)
    step = len(at) - 1 - np.searchsorted(at[::-1], records.t[chosen])
    meta = {"settings": asdict(settings), "sampling": asdict(sampling), "layers": names}
    save_moments(bundle.moments, grid, at, replace(stamp, kind=KIND), meta)
    with atomic(bundle.media(HEAT_MAP)) as temporary:
        temporary.write_text(draw_heatmap(field, names, layer, step), encoding="utf-8")
    save_records(bundle.samples, taken(records, chosen, layer, names), replace(stamp, kind=SAMPLES))
    clear(folder)
    return bundle.samples


@contextmanager
def open_given(source: Source, *, threads: int | None) -> Iterator[Compute]:
    """The function from a timestep to the moments [E, 1] of every edge that a layer reads."""
    records, feeds = source.records(), family_of(source.bundle).feeds
    readers = first_readers(read_layers(source.bundle))
    names = [f"the input of {layer}" for layer in readers.values()]
    tap = partial(tap_summaries, edges=list(readers))
    with open_tapped(source.bundle.float_unet, tap, outputs=[SUMMARY, COUNT], threads=threads) as run:

        def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            seen = no_moments((len(names),))
            for part in batches(np.flatnonzero(records.t == shard.t), source.batch):
                now = read_summaries(run(branches(records, part, feeds)))
                require_finite(np.stack([now.mean, now.m2, now.amin, now.amax], axis=1), names, shard.t)
                seen = merge_moments(seen, now)
            return {name: getattr(seen, name) for name in FIELDS}, {}

        yield compute


def assign_records(t: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which of the records at `t` [N] each timestep of `wanted` [K] gets: those at it in turn, in random order."""
    chosen = np.empty(len(wanted), int)
    for value in np.unique(wanted):
        here = np.flatnonzero(wanted == value)
        chosen[here] = np.resize(rng.permutation(np.flatnonzero(t == value)), len(here))
    return chosen


def taken(records: Records, chosen: np.ndarray, layer: np.ndarray, names: tuple[str, ...]) -> Records:
    """The records `chosen` [K], tagged with the layers they were drawn for."""
    arrays = {name: getattr(records, name)[chosen] for name in ("x_t", "t", "prompt", "seed")}
    cond = {name: rows[chosen] for name, rows in records.cond.items()}
    return replace(records, **arrays, cond=cond, layer=layer, layers=names)
