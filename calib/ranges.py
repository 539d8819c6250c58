"""Ranges: what every activation edge carries on the calibration records, as the range its codes should cover.

The records run through the float denoiser, timestep by timestep, and an observer (`observers`) sees every edge, in
shards (`activations`) over as many workers as there are (`fanout`). Ranges [E, S] per timestep are kept beside the
final ones [E], so that the drift over t can be seen. One scale serves all timesteps, and a policy says how it comes
about:

    all          one observer over all records: a timestep weighs as often as it was drawn
    max          the widest of the ranges per timestep: nothing that the observer keeps at one timestep is clipped
    mean         the mean of the ranges per timestep
    percentile   of the ranges per timestep, the ends that `over_t` percent of the timesteps stay within
    weighted     the mean weighted by the drawn pairs: by how many records at t are tagged with a layer that reads the
                 edge, and by all records at t where no such record was drawn

`source` names a checkpoint whose `_amax` ranges take the place of these for the inputs of its layers (`amax`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.activations import Shard, Source, plan_shards
from quaver.calib.amax import OBSERVED, import_amax
from quaver.calib.fanout import HERE, Fanout, Work, clear, map_shards
from quaver.calib.fanout import KIND as SHARD
from quaver.calib.graph import Layer, activation_edges, layers, read_model
from quaver.calib.observers import OBSERVERS, Observed, ObserverOptions, init, merge, unpack
from quaver.calib.quant import Format
from quaver.calib.records import Records, load_records
from quaver.runtime.artifact import Stamp, digest_json, load_tensors, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress

KIND = "ranges"
OPEN = "quaver.calib.activations:open_activations"


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
    memory: float = 512  # MiB of such values held at once

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
    pairs: np.ndarray  # [E, S], how many drawn for a layer that reads the edge


def collect_ranges(
    bundle: Bundle, settings: RangeSettings, *, stamp: Stamp, progress: Progress, fanout: Fanout = HERE
) -> Path:
    """Write ranges.safetensors: amin, amax [E], amin_t, amax_t [E, S] float32, timesteps [S], records [S] at each.

    `meta["edges"]` names the E edges, `meta["constant"]` those of no width, `meta["imported"]` those of a checkpoint.
    Raises: EngineError for an edge that is not finite; RecipeError for a checkpoint that does not fit.
    """
    records = load_records(bundle.samples)
    edges, found = read_graph(bundle.float_unet)
    imported = import_amax(settings.source, found, prefix=settings.prefix, progress=progress)
    timesteps, counts = np.unique(records.t, return_counts=True)
    root = Bundle(bundle.root.resolve())
    source = Source(root, settings.observer, observer_options(settings), settings.batch, settings.values)
    shards, pairs = plan_shards(source, records, edges, settings.memory), drawn_pairs(records, found, edges)
    del records  # whoever runs a shard reads them
    work, folder = Work(OPEN, source, digest_json([asdict(stamp), asdict(settings)])), bundle.shards("ranges")
    files = map_shards(work, shards, folder, fanout=fanout, progress=progress, label="ranges")
    ends, whole = merge_shards(files, shards)
    drift = Drift(timesteps, counts, ends[0], ends[1], whole, pairs)
    low, high = reduce_ranges(drift, settings)
    for edge, amax in imported.items():
        low[edges.index(edge)], high[edges.index(edge)] = -amax, amax
    constant = [edge for edge, same in zip(edges, low == high, strict=True) if same]
    if constant:
        progress.say(f"ranges  {len(constant)} of {len(edges)} edges never vary, the first is {constant[0]}")
    tensors = {"amin": low, "amax": high, "amin_t": drift.amin, "amax_t": drift.amax}
    tensors = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    tensors |= {"timesteps": drift.timesteps, "records": drift.records}
    meta = {"edges": edges, "constant": constant, "imported": list(imported), "settings": asdict(settings)}
    path = save_tensors(bundle.ranges, tensors, stamp, meta=meta)
    clear(folder)
    return path


def read_graph(path: Path) -> tuple[list[str], list[Layer]]:
    """The edges of a float denoiser that are worth a range, and its layers."""
    model = read_model(path)
    return activation_edges(model), layers(model)


def observer_options(settings: RangeSettings) -> ObserverOptions:
    """What the observer of the settings needs to know."""
    codes = Format(settings.bits, signed=settings.symmetric, symmetric=settings.symmetric)
    return ObserverOptions(percentile=settings.percentile, format=codes, power=settings.power)


def merge_shards(files: Iterable[Path], shards: Sequence[Shard]) -> tuple[np.ndarray, list[Observed]]:
    """Ranges [2, E, S] at every timestep, and what all of them showed of each edge [E], in the order of the shards."""
    row = {edge: e for e, edge in enumerate(dict.fromkeys(edge for shard in shards for edge in shard.edges))}
    column = {t: s for s, t in enumerate(sorted({t for shard in shards for t in shard.timesteps}))}
    ends, whole = np.empty((2, len(row), len(column))), [init() for _ in row]
    for shard, path in zip(shards, files, strict=True):
        tensors, _ = load_tensors(path, SHARD)
        rows = [row[edge] for edge in shard.edges]
        ends[np.ix_((0, 1), rows, [column[t] for t in shard.timesteps])] = tensors["range"]
        for e, state in zip(rows, unpack(tensors), strict=True):
            whole[e] = merge(whole[e], state)
    return ends, whole


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
    finish, options = OBSERVERS[settings.observer].finish, observer_options(settings)
    low, high = np.transpose([finish(state, options) for state in drift.whole])
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
    counts = np.where(drift.pairs.any(axis=1, keepdims=True), drift.pairs, drift.records)
    return counts / counts.sum(axis=1, keepdims=True)
