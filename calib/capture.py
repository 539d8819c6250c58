"""Capture: activation variance per (layer, timestep), and the records drawn by it (PTQ4ADM, Algorithm 2).

The calibration prompts run through the float denoiser's own trajectories, guided as they will be in use. While they
run, the input of every layer is summarised in the graph (`taps`), over all elements, both guidance branches and all
prompts, into sigma^2[l, s]. Then K pairs (layer, timestep) are drawn (`select`), each gets a prompt, and the record is
(x_t, t, conditioning) of that prompt's trajectory (`records`).

Which x_t are needed is known only after the last trajectory. Until then all of them lie on disk, when they take at most
`hold` MiB there (`states`); else the trajectories of the drawn prompts run a second time: seeds make them the same.
Memory holds one batch, the moments and the K records, however many prompts there are.

Seeds: capture uses `seed + i` for prompt i, from 1,000,000 on; error statistics start at 2,000,000, what is generated
for validation and by hand at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from quaver.calib.graph import Layer, layers
from quaver.calib.heatmap import draw_heatmap
from quaver.calib.moments import Moments, merge_moments, no_moments, require_finite, resolved_variance
from quaver.calib.prompts import load_prompts
from quaver.calib.records import KIND as SAMPLES
from quaver.calib.records import Records, save_records
from quaver.calib.select import SELECT, Field, assign_prompts, require_prompts
from quaver.calib.states import States, open_states
from quaver.calib.taps import Run, open_tapped, read_summaries, tap_summaries
from quaver.runtime.artifact import Stamp, atomic, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.denoise import initial_noise, step_noise
from quaver.runtime.errors import RecipeError
from quaver.runtime.guide import Rows, guide
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SAMPLERS, SamplingSettings, Step
from quaver.runtime.schedule import timesteps, to_eps
from quaver.runtime.session import Session, open_bundle

KIND = "moments"
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


@dataclass(frozen=True)
class Trajectories:
    """The float trajectories of prompts [N], conditioning [N, ...] and seeds [N], batch by batch."""

    session: Session
    run: Run
    cond: Rows
    seeds: range
    sampling: SamplingSettings
    batch: int

    def parts(self) -> Iterator[slice]:
        """The batches, as slices of the prompts."""
        return (slice(i, min(i + self.batch, len(self.seeds))) for i in range(0, len(self.seeds), self.batch))


def capture(
    bundle: Bundle, settings: CaptureSettings, sampling: SamplingSettings, *, stamp: Stamp, progress: Progress
) -> Path:
    """Write moments.safetensors, samples/records.safetensors and media/variance.svg; returns the second.

    Raises: RecipeError when the records asked for do not exist; EngineError for activations that are not finite.
    """
    rows = load_prompts(bundle, "calib")
    if settings.prompts > len(rows):
        raise RecipeError(
            f"capture.prompts is {settings.prompts}, there are {len(rows)} prompts: lower it, or add some"
        )
    rows = rows[: settings.prompts or None]
    require_states(settings.records, len(rows), sampling.steps)
    require_prompts(settings.records, len(rows), cap=settings.cap)
    found = layers(need("onnx", extra="calib").load(bundle.float_unet, load_external_data=False))
    readers = {layer.input: layer.name for layer in reversed(found)}  # an edge, and the first layer that reads it
    edges = list(readers)
    rng = np.random.default_rng(settings.seed)
    with open_bundle(bundle, engine_file="float") as session:
        session.engine.close()  # the tapped graph takes its place
        shape = (len(rows), sampling.steps, *session.latent_shape)
        with (
            open_tapped(bundle.float_unet, partial(tap_summaries, edges=edges)) as run,
            open_states(bundle.samples.parent, shape, limit=settings.hold << 20) as states,
        ):
            cond = embed(session, [row["text"] for row in rows], settings.batch)
            seeds = range(settings.seed, settings.seed + len(rows))
            paths = Trajectories(session, run, cond, seeds, sampling, settings.batch)
            grid = observe(paths, readers, states=states, progress=progress)
            grid = per_layer(grid, edges, found)
            field = Field(
                resolved_variance(grid), timesteps(session.schedule, sampling.steps), len(session.schedule.alpha_bar)
            )
            if not field.variance.any():
                progress.say("capture  every activation variance is 0: pairs are drawn uniformly")
            layer, step = SELECT[settings.select](field, settings.records, rng, mode=settings.mode, tau=settings.tau)
            prompt = assign_prompts(step, len(rows), rng, cap=settings.cap)
            x_t = states.get(prompt, step) if states else rerun(paths, prompt, step, progress=progress)
    names = tuple(layer.name for layer in found)
    records = Records(
        x_t=x_t,
        t=field.timesteps[step],
        cond={name: value[prompt] for name, value in cond.items()},
        uncond=session.uncond,
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
    return save_records(bundle.samples, records, replace(stamp, kind=SAMPLES))


def require_states(records: int, prompts: int, steps: int) -> None:
    """Raises: RecipeError when there are fewer x_t than records asked for."""
    if records > prompts * steps:
        raise RecipeError(
            f"capture.records is {records}, {prompts} prompts of {steps} steps have {prompts * steps} x_t: lower it, or"
            " raise capture.prompts or sampling.steps"
        )


def embed(session: Session, texts: Sequence[str], batch: int) -> Rows:
    """Conditioning [N, ...] by name of texts [N], `batch` at a time."""
    parts = [session.family.embed(session.parts, texts[i : i + batch]) for i in range(0, len(texts), batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def observe(paths: Trajectories, readers: Mapping[str, str], *, states: States | None, progress: Progress) -> Moments:
    """Moments [E, S] of the tapped edges over all trajectories; every x_t goes to `states`, where there are some.

    `readers` says which layer reads each edge. Raises: EngineError naming it, for values that are not finite.
    """
    names = [f"the input of {layer}" for layer in readers.values()]
    at = {int(t): s for s, t in enumerate(timesteps(paths.session.schedule, paths.sampling.steps))}
    columns = [no_moments((len(names),)) for _ in at]

    def see(t: int, outputs: Mapping[str, np.ndarray]) -> None:
        seen = read_summaries(outputs)
        require_finite(np.stack([seen.mean, seen.m2, seen.amin, seen.amax], axis=1), names, t)
        columns[at[t]] = merge_moments(columns[at[t]], seen)

    with progress.bar(len(paths.seeds) * len(at), "capture") as bar:
        for part in paths.parts():

            def keep(step: Step, part: slice = part) -> None:
                if states is not None:
                    states.put(part.start, step.index, step.x_t)
                bar.step(len(step.x_t))

            follow(paths, part, see, keep)
    return stack_columns(columns)


def rerun(paths: Trajectories, prompt: np.ndarray, step: np.ndarray, *, progress: Progress) -> np.ndarray:
    """x_t [K, C, T, F] of drawn prompts [K] at steps [K], from running their batches once more."""
    x_t = np.empty((len(prompt), *paths.session.latent_shape), np.float32)
    parts = [part for part in paths.parts() if ((prompt >= part.start) & (prompt < part.stop)).any()]
    with progress.bar(len(parts), "capture, drawn x_t") as bar:
        for part in parts:

            def keep(now: Step, part: slice = part) -> None:
                here = np.flatnonzero((step == now.index) & (prompt >= part.start) & (prompt < part.stop))
                x_t[here] = now.x_t[prompt[here] - part.start]

            follow(paths, part, lambda t, outputs: None, keep)
            bar.step()
    return x_t


def follow(
    paths: Trajectories,
    part: slice,
    see: Callable[[int, Mapping[str, np.ndarray]], None],
    keep: Callable[[Step], None],
) -> None:
    """Run one batch of trajectories; `see` gets every call of the tapped graph, `keep` every step."""
    session, sampling = paths.session, paths.sampling

    def predict(x: np.ndarray, t: int, rows: Rows) -> np.ndarray:
        outputs = paths.run(session.family.feeds(x, np.full(len(x), t, np.int64), rows))
        see(t, outputs)
        return to_eps(next(iter(outputs.values())), x, t, session.schedule)

    seeds = paths.seeds[part]
    SAMPLERS[sampling.sampler](
        guide(predict, {name: rows[part] for name, rows in paths.cond.items()}, session.uncond, sampling.guidance),
        initial_noise(seeds, session.latent_shape),
        session.schedule,
        steps=sampling.steps,
        eta=sampling.eta,
        noise=step_noise(seeds),
        on_step=keep,
    )


def stack_columns(columns: Sequence[Moments]) -> Moments:
    """S moments [E] as moments [E, S]."""
    return Moments(*(np.stack([getattr(c, name) for c in columns], axis=1) for name in Moments.__dataclass_fields__))


def per_layer(grid: Moments, edges: Sequence[str], found: Sequence[Layer]) -> Moments:
    """Moments [L, S] of each layer's input, from those [E, S] of the edges; layers may share an edge."""
    rows = [edges.index(layer.input) for layer in found]
    return Moments(*(getattr(grid, name)[rows] for name in Moments.__dataclass_fields__))


def save_moments(path: Path, grid: Moments, at: np.ndarray, stamp: Stamp, meta: Mapping[str, object]) -> Path:
    """Write count, mean, variance, amin and amax [L, S] and the timesteps [S]."""
    tensors = {name: getattr(grid, name) for name in ("count", "mean", "amin", "amax")}
    return save_tensors(path, {**tensors, "variance": resolved_variance(grid), "timesteps": at}, stamp, meta=meta)
