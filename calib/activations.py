"""What the records show of every activation edge: a shard of ranges is some timesteps, and edges looked at together.

    state[e] = merge over batches of what the values of edge e in a call show,    both guidance branches in each call

Min-max needs the extremes alone, which are computed in the graph, for all edges at once. A histogram needs the values:
edges leave the graph in as many passes as it takes to keep at most `memory` MiB of them at once, and of each edge at
most `values` evenly spaced ones are counted per call (extremes stay exact).

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
from quaver.calib.taps import COUNT, SUMMARY, open_tapped, read_summaries, tap_counts, tap_summaries, tap_tensors
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
    """Pass by pass over the edges, timestep by timestep; `memory` [MiB] of activations are held at once."""
    passes = plan_passes(source, records, edges, memory)
    timesteps, counts = np.unique(records.t, return_counts=True)
    parts = [tuple(timesteps[part].tolist()) for part in split(counts, FEW)]
    return [Shard(part, chosen) for chosen in passes for part in parts]


def plan_passes(source: Source, records: Records, edges: Sequence[str], memory: float) -> list[tuple[str, ...]]:
    """Which edges to take out of the graph together: all when summaries do, else `memory` MiB a batch at most."""
    if not OBSERVERS[source.observer].histogram:
        return [tuple(edges)]
    with open_tapped(source.bundle.float_unet, partial(tap_counts, edges=edges), outputs=[COUNT]) as run:
        one = run(branches(records, np.arange(1), source.feeds))[COUNT]
    parts = split(4 * source.batch * one, memory * 2**20)
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
        with open_tapped(path, partial(tap_tensors, edges=edges), outputs=edges, threads=threads) as run:
            yield lambda feed, t: _histograms(run(feed), edges, t, source.values)


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `values` [N], evenly spaced; an odd stride meets every row and column of a power of two."""
    return values[:: -(-len(values) // most) | 1] if len(values) > most else values


def _extremes(seen: Moments, edges: Sequence[str], t: int) -> list[Observed]:
    require_finite(np.stack([seen.mean, seen.amin, seen.amax], axis=1), edges, t)
    return [extremes(low, high) for low, high in zip(seen.amin, seen.amax, strict=True)]


def _histograms(outputs: Mapping[str, np.ndarray], edges: Sequence[str], t: int, most: int) -> list[Observed]:
    values = [outputs[edge].ravel() for edge in edges]
    ends = np.array([[v.min(), v.max()] for v in values])
    require_finite(ends, edges, t)
    return [update(extremes(*end), thin(v, most)) for end, v in zip(ends, values, strict=True)]
