"""Ranges: what every activation edge carries on the calibration records, as the range its codes should cover.

The records run through the float denoiser, both guidance branches of each, timestep by timestep; an observer
(`observers`) sees every edge. Ranges [E, S] per timestep are kept beside the final ones [E], so that the drift over t
can be seen. One scale serves all timesteps, and a policy says how it comes about:

    all          one observer over all records: a timestep weighs as often as it was drawn
    max          the widest of the ranges per timestep: nothing that the observer keeps at one timestep is clipped
    mean         the mean of the ranges per timestep
    percentile   of the ranges per timestep, the ends that `over_t` percent of the timesteps stay within
    weighted     the mean weighted by the drawn pairs: by how many records at t are tagged with a layer that reads the
                 edge, and by all records at t where no such record was drawn

`source` names a checkpoint whose `_amax` ranges take the place of these for the inputs of its layers (`amax`).

Min-max needs the extremes alone, which are computed in the graph. A histogram needs the values: edges leave the graph
in as many passes as it takes to keep at most `memory` MiB of them at once, and of each edge at most `values` evenly
spaced ones are counted per call (extremes stay exact).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.amax import OBSERVED, import_amax
from quaver.calib.graph import Layer, activation_edges, layers
from quaver.calib.moments import Moments, require_finite
from quaver.calib.observers import OBSERVERS, Observed, ObserverOptions, extremes, init, merge, update
from quaver.calib.quant import Format
from quaver.calib.records import Records, load_records
from quaver.calib.taps import COUNT, SUMMARY, open_tapped, read_summaries, tap_summaries, tap_tensors
from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import find_family, read_card
from quaver.runtime.guide import Rows
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress

KIND = "ranges"
Feeds = Callable[[np.ndarray, np.ndarray, Rows], dict[str, np.ndarray]]  # of a family
Look = Callable[[Mapping[str, np.ndarray], int], list[Observed]]


@dataclass(frozen=True)
class RangeSettings:
    """The table [ranges] of a recipe."""

    source: str = OBSERVED  # or a checkpoint (.safetensors, .pt, .pth, .bin) of pytorch-quantization or modelopt
    prefix: str = ""  # what stands before the layers' names in that checkpoint, such as "unet."
    observer: Literal["minmax", "percentile", "mse", "entropy"] = "percentile"
    percentile: float = 99.99  # percent of the values of an edge that its range keeps
    power: float = 2.0  # of the error that mse minimises (D2-DPM: 2.4)
    bits: int = 8  # of the codes that mse and entropy think of
    symmetric: bool = False  # whether mse's codes are symmetric around zero; entropy's threshold always is
    policy: Literal["all", "max", "mean", "percentile", "weighted"] = "all"  # from ranges per timestep to one
    over_t: float = 90.0  # percent of the timesteps that the policy "percentile" covers
    batch: int = 8  # records run together
    values: int = 16384  # of an edge that a histogram takes from one call at most
    memory: float = 512  # MiB of activations held at once

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"ranges.percentile is {self.percentile}, expected more than 50 and at most 100")
        if not 50 <= self.over_t <= 100:
            raise RecipeError(f"ranges.over_t is {self.over_t}, expected 50 to 100")
        for name in ("bits", "batch", "values", "memory", "power"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"ranges.{name} is {getattr(self, name)}, expected a positive number")


@dataclass(frozen=True)
class Drift:
    """What the records showed: ranges amin, amax [E, S] at timesteps [S], and what all of them showed of each edge."""

    timesteps: np.ndarray
    records: np.ndarray  # [S], how many at each
    amin: np.ndarray
    amax: np.ndarray
    whole: list[Observed]
    pairs: np.ndarray | None = None  # [E, S], how many drawn for a layer that reads the edge


def collect_ranges(bundle: Bundle, settings: RangeSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write ranges.safetensors: amin, amax [E], amin_t, amax_t [E, S] float32, timesteps [S], records [S] at each.

    `meta["edges"]` names the E edges, `meta["constant"]` those of no width.
    `meta["imported"]` names those of a checkpoint. Raises: EngineError for an edge that is not finite; RecipeError for
    a checkpoint that does not fit.
    """
    records = load_records(bundle.samples)
    model = need("onnx", extra="calib").load(bundle.float_unet, load_external_data=False)
    edges, found = activation_edges(model), layers(model)
    imported = import_amax(settings.source, found, prefix=settings.prefix, progress=progress)
    feeds = find_family(read_card(bundle)["family"]).feeds
    drift = observe(bundle.float_unet, edges, records, feeds, settings, progress)
    low, high = reduce_ranges(replace(drift, pairs=drawn_pairs(records, found, edges)), settings)
    for edge, amax in imported.items():
        low[edges.index(edge)], high[edges.index(edge)] = -amax, amax
    constant = [edge for edge, same in zip(edges, low == high, strict=True) if same]
    if constant:
        progress.say(f"ranges  {len(constant)} of {len(edges)} edges never vary, the first is {constant[0]}")
    tensors = {"amin": low, "amax": high, "amin_t": drift.amin, "amax_t": drift.amax}
    tensors = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    tensors |= {"timesteps": drift.timesteps, "records": drift.records}
    meta = {"edges": edges, "constant": constant, "imported": list(imported), "settings": asdict(settings)}
    return save_tensors(bundle.ranges, tensors, stamp, meta=meta)


def observe(
    path: Path, edges: Sequence[str], records: Records, feeds: Feeds, settings: RangeSettings, progress: Progress
) -> Drift:
    """Run the records through the graph at `path`, timestep by timestep, in as many passes over the edges as needed."""
    timesteps, counts = np.unique(records.t, return_counts=True)
    passes = plan_passes(path, edges, records, feeds, settings)
    ends = np.empty((2, len(edges), len(timesteps)))
    whole = [init() for _ in edges]
    with progress.bar(len(passes) * len(records.t), "ranges") as bar:
        for chosen in passes:
            with open_observed(path, [edges[e] for e in chosen], settings) as look:
                for s, t in enumerate(timesteps.tolist()):
                    seen = [init() for _ in chosen]
                    for part in batches(np.flatnonzero(records.t == t), settings.batch):
                        seen = list(map(merge, seen, look(branches(records, part, feeds), t)))
                        bar.step(len(part))
                    ends[:, chosen, s] = np.transpose([finish(state, settings) for state in seen])
                    for e, state in zip(chosen, seen, strict=True):
                        whole[e] = merge(whole[e], state)
    return Drift(timesteps, counts, ends[0], ends[1], whole)


def reduce_ranges(drift: Drift, settings: RangeSettings) -> tuple[np.ndarray, np.ndarray]:
    """amin and amax [E] after the policy of the settings."""
    if settings.policy == "max":
        return drift.amin.min(axis=1), drift.amax.max(axis=1)
    if settings.policy == "mean":
        return drift.amin.mean(axis=1), drift.amax.mean(axis=1)
    if settings.policy == "percentile":
        low, high = 100 - settings.over_t, settings.over_t
        return np.percentile(drift.amin, low, axis=1), np.percentile(drift.amax, high, axis=1)
    if settings.policy == "weighted":
        weight = pair_weights(drift)
        return (drift.amin * weight).sum(axis=1), (drift.amax * weight).sum(axis=1)
    low, high = np.transpose([finish(state, settings) for state in drift.whole])
    return low, high


def drawn_pairs(records: Records, found: Sequence[Layer], edges: Sequence[str]) -> np.ndarray:
    """How many records [E, S] at each timestep are tagged with a layer that reads the edge."""
    timesteps = np.unique(records.t)
    row, reads = {edge: e for e, edge in enumerate(edges)}, {layer.name: layer.input for layer in found}
    pairs = np.zeros((len(edges), len(timesteps)), int)
    for layer, t in zip(records.layer.tolist(), records.t.tolist(), strict=True):
        if layer >= 0:
            pairs[row[reads[records.layers[layer]]], np.searchsorted(timesteps, t)] += 1
    return pairs


def pair_weights(drift: Drift) -> np.ndarray:
    """The weights [E, S] of the policy "weighted"; each row sums to 1."""
    pairs = np.zeros(drift.amin.shape) if drift.pairs is None else drift.pairs
    counts = np.where(pairs.any(axis=1, keepdims=True), pairs, drift.records)
    return counts / counts.sum(axis=1, keepdims=True)


def finish(state: Observed, settings: RangeSettings) -> tuple[float, float]:
    """The range of one edge after the observer of the settings."""
    codes = Format(settings.bits, signed=settings.symmetric, symmetric=settings.symmetric)
    options = ObserverOptions(percentile=settings.percentile, format=codes, power=settings.power)
    return OBSERVERS[settings.observer].finish(state, options)


@contextmanager
def open_observed(path: Path, edges: Sequence[str], settings: RangeSettings) -> Iterator[Look]:
    """The graph at `path` as a function (feeds, t) -> what the call showed of each edge."""
    if not OBSERVERS[settings.observer].histogram:
        with open_tapped(path, partial(tap_summaries, edges=edges), outputs=[SUMMARY, COUNT]) as run:
            yield lambda feed, t: _extremes(read_summaries(run(feed)), edges, t)
    else:
        with open_tapped(path, partial(tap_tensors, edges=edges), outputs=edges) as run:
            yield lambda feed, t: _histograms(run(feed), edges, t, settings.values)


def plan_passes(
    path: Path, edges: Sequence[str], records: Records, feeds: Feeds, settings: RangeSettings
) -> list[list[int]]:
    """Which edges [..E] to take out of the graph together: all when summaries do, else `memory` MiB a batch at most."""
    if not OBSERVERS[settings.observer].histogram:
        return [list(range(len(edges)))]
    with open_tapped(path, partial(tap_summaries, edges=edges), outputs=[SUMMARY, COUNT]) as run:
        one = read_summaries(run(branches(records, np.arange(1), feeds)))
    return split(4 * settings.batch * one.count, settings.memory * 2**20)


def split(sizes: np.ndarray, limit: float) -> list[list[int]]:
    """Indices of consecutive `sizes` whose sum is at most `limit`; one that is larger stands alone."""
    parts: list[list[int]] = []
    room = 0.0
    for index, size in enumerate(sizes.tolist()):
        if not parts or size > room:
            parts.append([])
            room = limit
        parts[-1].append(index)
        room -= size
    return parts


def branches(records: Records, part: np.ndarray, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs of the denoiser for records `part` [B]: the unconditional branch, if it was used, then the conditional."""
    x, t, rows = records.x_t[part], records.t[part], {name: value[part] for name, value in records.cond.items()}
    if records.guidance == 1.0:
        return feeds(x, t, rows)
    both = {name: np.concatenate([np.broadcast_to(records.uncond[name], v.shape), v]) for name, v in rows.items()}
    return feeds(np.concatenate([x, x]), np.concatenate([t, t]), both)


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `values` [N], evenly spaced; an odd stride meets every row and column of a power of two."""
    return values[:: -(-len(values) // most) | 1] if len(values) > most else values


def batches(index: np.ndarray, size: int) -> list[np.ndarray]:
    """`index` in parts of at most `size`."""
    return [index[start : start + size] for start in range(0, len(index), size)]


def _extremes(seen: Moments, edges: Sequence[str], t: int) -> list[Observed]:
    require_finite(np.stack([seen.mean, seen.amin, seen.amax], axis=1), edges, t)
    return [extremes(low, high) for low, high in zip(seen.amin, seen.amax, strict=True)]


def _histograms(outputs: Mapping[str, np.ndarray], edges: Sequence[str], t: int, most: int) -> list[Observed]:
    values = [outputs[edge].ravel() for edge in edges]
    ends = np.array([[v.min(), v.max()] for v in values])
    require_finite(ends, edges, t)
    return [update(extremes(*end), thin(v, most)) for end, v in zip(ends, values, strict=True)]
