"""The float denoiser's own trajectories, watched from inside: a shard of capture is one batch of them.

A shard is the texts that run together and the seed of the first. It gives the moments [E, S] of every edge that a layer
reads, which merge, and x_t at each (row, step) that it was asked to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from quaver.calib.fanout import Compute
from quaver.calib.graph import Layer, layers, read_model
from quaver.calib.moments import Moments, merge_moments, no_moments, require_finite
from quaver.calib.taps import Run, open_tapped, read_summaries, tap_summaries
from quaver.runtime.bundle import Bundle
from quaver.runtime.denoise import initial_noise, step_noise
from quaver.runtime.guide import Rows, guide
from quaver.runtime.sample import SAMPLERS, SamplingSettings, Step, visited
from quaver.runtime.samplers import whole
from quaver.runtime.schedule import to_eps
from quaver.runtime.session import FLOAT, Session, open_bundle

FIELDS = ("count", "mean", "m2", "amin", "amax")
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shard:
    """Texts [B] that run together, the seed of the first, and which x_t to keep, as (row, step)."""

    texts: tuple[str, ...]
    seed: int
    keep: Pairs = ()


@dataclass(frozen=True)
class Source:
    """Whose trajectories: a bundle, by its absolute path, and how it is sampled."""

    bundle: Bundle
    sampling: SamplingSettings


@dataclass(frozen=True)
class Trajectories:
    """Trajectories that run together: a tapped graph, conditioning [B, ...] and seeds [B]."""

    session: Session
    run: Run
    cond: Rows
    seeds: range
    sampling: SamplingSettings


def split_prompts(
    texts: Sequence[str], seed: int, batch: int, keep: Callable[[int], Pairs] | None = None
) -> list[Shard]:
    """Shards of `batch` texts; `keep` says for the number of rows in a shard which of its x_t to keep."""
    parts = [(start, tuple(texts[start : start + batch])) for start in range(0, len(texts), batch)]
    return [Shard(part, seed + start, keep(len(part)) if keep else ()) for start, part in parts]


@contextmanager
def open_trajectories(source: Source, *, threads: int | None) -> Iterator[Compute]:
    """The function from a shard to its moments, x_t and conditioning, with the graphs it runs."""
    readers = first_readers(read_layers(source.bundle))
    with open_bundle(source.bundle, engine_file=FLOAT, threads=threads) as session:
        session.engine.close()  # the tapped graph takes its place
        tap = partial(tap_summaries, edges=list(readers))
        with open_tapped(source.bundle.float_unet, tap, threads=threads) as run:

            def compute(shard: Shard) -> tuple[dict[str, np.ndarray], dict[str, object]]:
                cond = session.family.embed(session.parts, list(shard.texts))
                seeds = range(shard.seed, shard.seed + len(shard.texts))
                seen, x_t = observe(Trajectories(session, run, cond, seeds, source.sampling), readers, shard.keep)
                tensors = {name: getattr(seen, name) for name in FIELDS} | {"x_t": x_t}
                tensors |= {f"cond_{name}": rows for name, rows in cond.items()}
                return tensors | {f"uncond_{name}": rows for name, rows in session.uncond.items()}, {}

            yield compute


def read_layers(bundle: Bundle) -> list[Layer]:
    """The layers of a bundle's float denoiser."""
    return layers(read_model(bundle.float_unet))


def first_readers(found: Sequence[Layer]) -> dict[str, str]:
    """Every edge that a layer reads, with the name of the first one that does, in the order of the graph."""
    readers: dict[str, str] = {}
    for layer in found:
        readers.setdefault(layer.input, layer.name)
    return readers


def observe(paths: Trajectories, readers: Mapping[str, str], keep: Pairs = ()) -> tuple[Moments, np.ndarray]:
    """Moments [E, S] of the tapped edges over the trajectories, and x_t [K, C, T, F] at the (row, step) to keep.

    `readers` says which layer reads each edge. Raises: EngineError naming the first in the graph, and the timestep, for
    values that are not finite.
    """
    names = [f"the input of {layer}" for layer in readers.values()]
    row, step = np.array(keep, int).reshape(-1, 2).T
    x_t = np.empty((len(keep), *paths.session.latent_shape), np.float32)
    at = {int(t): s for s, t in enumerate(visited(paths.sampling, paths.session.schedule))}
    columns = [no_moments((len(names),)) for _ in at]

    def see(t: int, outputs: Mapping[str, np.ndarray]) -> None:
        seen = read_summaries(outputs)
        require_finite(np.stack([seen.mean, seen.m2, seen.amin, seen.amax], axis=1), names, t)
        require_finite(next(iter(outputs.values()))[None], ["the network's output"], t)
        columns[at[t]] = merge_moments(columns[at[t]], seen)

    def hold(now: Step) -> None:
        here = np.flatnonzero(step == now.index)
        x_t[here] = now.x_t[row[here]]

    follow(paths, see, hold)
    return stack_columns(columns), x_t


def follow(
    paths: Trajectories, see: Callable[[int, Mapping[str, np.ndarray]], None], hold: Callable[[Step], None]
) -> None:
    """Run the trajectories; `see` gets every call of the tapped graph, `hold` every step."""
    session, sampling = paths.session, paths.sampling

    def predict(x: np.ndarray, t: float, rows: Rows) -> np.ndarray:
        outputs = paths.run(session.family.feeds(x, np.full(len(x), whole(t), np.int64), rows))
        see(whole(t), outputs)
        return next(iter(outputs.values()))

    guided = guide(predict, paths.cond, session.uncond, sampling.guidance)
    SAMPLERS[sampling.sampler](
        lambda x, t: to_eps(guided(x, t), x, t, session.schedule),
        initial_noise(paths.seeds, session.latent_shape),
        session.schedule,
        steps=sampling.steps,
        eta=sampling.eta,
        noise=step_noise(paths.seeds),
        on_step=hold,
    )


def stack_columns(columns: Sequence[Moments]) -> Moments:
    """S moments [E] as moments [E, S]."""
    return Moments(*(np.stack([getattr(column, name) for column in columns], axis=1) for name in FIELDS))
