"""Ranges: what every activation edge carries on the calibration records, as the range its codes should cover.

The records run through the float denoiser, both guidance branches of each, timestep by timestep; an observer
(`observers`) sees every edge. Ranges [E, S] per timestep are kept beside the final ones [E], so that the drift over t
can be seen. One scale serves all timesteps, and a policy says how it comes about:

    all      one observer over all records: a timestep weighs as often as it was drawn
    max      the widest of the ranges per timestep: nothing that the observer keeps at one timestep is clipped
    mean     the mean of the ranges per timestep, weighted by how often each was drawn

Min-max needs the extremes alone, which are computed in the graph. A histogram needs the values: edges leave the graph
in as many passes as it takes to keep at most `memory` MiB of them at once, and of each edge at most `values` evenly
spaced ones are counted per call (extremes stay exact).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.graph import activation_edges
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

    observer: Literal["minmax", "percentile", "mse"] = "percentile"
    percentile: float = 99.99  # percent of the values of an edge that its range keeps
    power: float = 2.0  # of the error that mse minimises (D2-DPM: 2.4)
    bits: int = 8  # of the codes whose error mse minimises
    symmetric: bool = False  # whether those codes are symmetric around zero
    policy: Literal["all", "max", "mean"] = "all"  # from ranges per timestep to one
    batch: int = 8  # records run together
    values: int = 16384  # of an edge that a histogram takes from one call at most
    memory: float = 512  # MiB of activations held at once

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"ranges.percentile is {self.percentile}, expected more than 50 and at most 100")
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


def collect_ranges(bundle: Bundle, settings: RangeSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write ranges.safetensors: amin, amax [E], amin_t, amax_t [E, S] float32, timesteps [S], records [S] at each.

    `meta["edges"]` names the E edges, `meta["constant"]` those of no width.
    Raises: EngineError for an edge that is not finite.
    """
    records = load_records(bundle.samples)
    edges = activation_edges(need("onnx", extra="calib").load(bundle.float_unet, load_external_data=False))
    feeds = find_family(read_card(bundle)["family"]).feeds
    drift = observe(bundle.float_unet, edges, records, feeds, settings, progress)
    low, high = reduce_ranges(drift, settings)
    constant = [edge for edge, same in zip(edges, low == high, strict=True) if same]
    if constant:
        progress.say(f"ranges  {len(constant)} of {len(edges)} edges never vary, the first is {constant[0]}")
    tensors = {"amin": low, "amax": high, "amin_t": drift.amin, "amax_t": drift.amax}
    tensors = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    tensors |= {"timesteps": drift.timesteps, "records": drift.records}
    meta = {"edges": edges, "constant": constant, "settings": asdict(settings)}
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
        weight = drift.records / drift.records.sum()
        return drift.amin @ weight, drift.amax @ weight
    low, high = np.transpose([finish(state, settings) for state in drift.whole])
    return low, high


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
