"""What the records show of every activation edge: a shard of ranges is some timesteps, and edges looked at together.

    state[e] = merge over batches of what the values of edge e in a call show,    both guidance branches in each call

Extremes are computed in the graph. A histogram needs values: the graph gives at most `values` evenly spaced ones of an
edge a call, so that no activation leaves it whole, in as many passes over the edges as `memory` MiB of them take (one,
as a rule).

A shard gives the states [E] of its edges over all its timesteps, which merge exactly with those of others, and the
ranges [2, E, S] at each of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from quaver.calib.fanout import Compute
from quaver.calib.moments import Moments, require_finite
from quaver.calib.observers import OBSERVERS, Observed, ObserverOptions, extremes, init, merge_all, pack, update
from quaver.calib.records import Feeds, Records, batches, branches, load_records
from quaver.calib.taps import COUNT, ENDS, SUMMARY, open_tapped, read_summaries, sample_name, tap_samples, tap_summaries
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import family_of

FEW = 32  # records that timesteps of one shard have together at most; one that has more stands alone
Look = Callable[[Mapping[str, np.ndarray], int], list[Observed]]  # feeds, t -> what the call showed of each edge


@dataclass(frozen=True)
class Shard:
    """Timesteps [S] whose records run, and the edges [E] that are looked at."""

    timesteps: tuple[int, ...]
    edges: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Whose activations: a bundle, by its absolute path, and how they are observed."""

    bundle: Bundle
    observer: str
    options: ObserverOptions
    batch: int  # records run together
    values: int  # of an edge that a histogram takes from one call at most

    @property
    def feeds(self) -> Feeds:
        """The inputs of the bundle's denoiser."""
        return family_of(self.bundle).feeds


def plan_shards(source: Source, records: Records, edges: Sequence[str], memory: float) -> list[Shard]:
    """Pass by pass over the edges, timestep by timestep; `memory` [MiB] of values are held at once."""
    passes = plan_passes(source, edges, memory)
    timesteps, counts = np.unique(records.t, return_counts=True)
    parts = [tuple(timesteps[part].tolist()) for part in split(counts, FEW)]
    return [Shard(part, chosen) for chosen in passes for part in parts]


def plan_passes(source: Source, edges: Sequence[str], memory: float) -> list[tuple[str, ...]]:
    """Which edges to look at together: all when extremes do, else those whose values fit into `memory` MiB."""
    if not OBSERVERS[source.observer].histogram:
        return [tuple(edges)]
    parts = split(np.full(len(edges), 4 * source.values), memory * 2**20)
    return [tuple(edges[e] for e in part) for part in parts]


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


@contextmanager
def open_activations(source: Source, *, threads: int | None) -> Iterator[Compute]:
    """The function from a shard to the states and ranges of its edges; the graph of one pass is open at a time."""
    records, feeds = load_records(source.bundle.samples), source.feeds
    finish = OBSERVERS[source.observer].finish
    with ExitStack() as stack:
        held: dict[tuple[str, ...], Look] = {}

        def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            if shard.edges not in held:
                held.clear()
                stack.close()
                held[shard.edges] = stack.enter_context(open_look(source, shard.edges, threads=threads))
            whole, ranges = [init()] * len(shard.edges), []
            for t in shard.timesteps:
                parts = batches(np.flatnonzero(records.t == t), source.batch)
                looks = (held[shard.edges](branches(records, part, feeds), t) for part in parts)
                seen = reduce(merge_all, looks)
                whole = merge_all(whole, seen)
                ranges.append([finish(state, source.options) for state in seen])
            return pack(whole) | {"range": np.transpose(ranges)}, {}

        yield compute


@contextmanager
def open_look(source: Source, edges: Sequence[str], *, threads: int | None) -> Iterator[Look]:
    """The graph as a function (feeds, t) -> what the call showed of each edge.

    Raises, when called: EngineError for an edge that is not finite.
    """
    path = source.bundle.float_unet
    if not OBSERVERS[source.observer].histogram:
        tap = partial(tap_summaries, edges=edges)
        with open_tapped(path, tap, outputs=[SUMMARY, COUNT], threads=threads) as run:
            yield lambda feed, t: _extremes(read_summaries(run(feed)), edges, t)
    else:
        tap = partial(tap_samples, edges=edges, most=source.values)
        with open_tapped(path, tap, outputs=[ENDS, *map(sample_name, range(len(edges)))], threads=threads) as run:
            yield lambda feed, t: _histograms(run(feed), edges, t)


def _extremes(seen: Moments, edges: Sequence[str], t: int) -> list[Observed]:
    require_finite(np.stack([seen.mean, seen.amin, seen.amax], axis=1), edges, t)
    return [extremes(low, high) for low, high in zip(seen.amin, seen.amax, strict=True)]


def _histograms(outputs: Mapping[str, np.ndarray], edges: Sequence[str], t: int) -> list[Observed]:
    ends = outputs[ENDS].astype(np.float64).reshape(-1, 3)
    require_finite(ends, edges, t)
    values = (outputs[sample_name(index)] for index in range(len(edges)))
    return [update(extremes(low, high), v) for (_, low, high), v in zip(ends, values, strict=True)]
