"""Prompts and seeds to sound: one loop for the command line, the error statistics and the metrics.

A sample depends on its prompt, its seed and the settings, and on nothing else (`denoise.py` says where its noise is
from), so that batch size and order do not matter. Batches come as they are drawn: the first is there before the second
is begun, and stays when that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml
from quaver.runtime.correct import make_correct
from quaver.runtime.denoise import CORRECTION, denoiser, initial_noise, step_noise
from quaver.runtime.error_law import SAMPLING, Binding, ErrorStats, options
from quaver.runtime.error_transfer import choose, serve
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from quaver.runtime.sample import SAMPLERS, SamplingSettings, Step, visited
from quaver.runtime.session import DEFAULT_TARGET, Session, command, open_bundle, sampling_of
from quaver.runtime.text import check_prompts, shown

OnStep = Callable[[Step], None]

__all__ = [
    "Batch",
    "binding",
    "denoiser",
    "find_stats",
    "generate",
    "generate_from",
    "initial_noise",
    "preview",
    "session_stats",
    "step_noise",
]


@dataclass(frozen=True)
class Batch:
    """Samples that were drawn together; `clipped` counts the steps (per channel) whose residual found no room."""

    latents: np.ndarray  # [B, C, T, F]
    decoded: Mapping[str, np.ndarray]  # of the family: mel [B, 1, T', M], waveform [B, N]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    clipped: int = 0

    @property
    def waveforms(self) -> np.ndarray:
        """[B, N]; float32 in [-1, 1] but for what will be clipped."""
        return self.decoded["waveform"]

    @property
    def mels(self) -> np.ndarray:
        """[B, 1, T', M]."""
        return self.decoded["mel"]


def generate(
    bundle: Bundle | Path | str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    engine_file: str | Path | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    correct: str = "none",
    interpolate: bool = False,
    batch: int = 4,
    decode: bool = True,
    threads: int | None = None,
    provider: str | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Batch]:
    """Generate one sample per pair of `prompts` [N] and `seeds` [N], batch by batch, in order.

    `engine_file` is a target's name (None: "ort-cpu"), "float" or a path; what is None is the bundle's own setting.
    `interpolate` has error statistics serve timesteps between those they were fitted at.
    Raises: QuaverError for bad prompts or seeds, before anything is opened; ArtifactError and EngineError as
    `open_bundle` and `generate_from` do.
    """
    check_pairs(prompts, seeds, batch)

    def batches() -> Iterator[Batch]:
        with open_bundle(bundle, engine_file=engine_file, threads=threads, provider=provider) as session:
            settings = sampling_of(session, sampler=sampler, steps=steps, guidance=guidance, eta=eta)
            yield from generate_from(
                session,
                prompts,
                seeds,
                settings,
                correct=correct,
                interpolate=interpolate,
                batch=batch,
                decode=decode,
                on_step=on_step,
            )

    return batches()


def generate_from(
    session: Session,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    correct: str = "none",
    interpolate: bool = False,
    batch: int = 4,
    decode: bool = True,
    on_step: OnStep | None = None,
) -> Iterator[Batch]:
    """As `generate`, on a session that is open: what validation and statistics call, again and again.

    Raises: ArtifactError when error statistics are missing or belong to another run; EngineError when an engine
    answers with what is not finite.
    """
    check_pairs(prompts, seeds, batch)
    stats = session_stats(session, settings, interpolate=interpolate) if correct != "none" else None
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        yield draw(session, prompts[part], seeds[part], settings, correct, stats, decode, on_step)


def draw(
    session: Session,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    correct: str,
    stats: ErrorStats | None,
    decode: bool,
    on_step: OnStep | None,
) -> Batch:
    """Draw one batch [B] of samples and decode it."""
    clipped: list[int] = []

    def watch(step: Step) -> None:
        clipped.append(step.clipped)
        if on_step is not None:
            on_step(step)

    names = [f"seed {seed}, prompt {shown(prompt)}" for prompt, seed in zip(prompts, seeds, strict=True)]
    denoise = denoiser(
        session.engine,
        session.family,
        session.family.embed(session.parts, prompts),
        session.uncond,
        session.schedule,
        settings.guidance,
        names=names,
    )
    try:
        latents = SAMPLERS[settings.sampler](
            denoise,
            initial_noise(seeds, session.latent_shape),
            session.schedule,
            steps=settings.steps,
            eta=settings.eta,
            correct=make_correct(correct, stats, step_noise(seeds, CORRECTION)),
            noise=step_noise(seeds),
            on_step=watch,
        )
    except EngineError as error:
        raise EngineError(f"step {len(clipped) + 1} of {settings.steps}: {error}") from error
    check_drawn(latents, "latents", names, "look at the correction: 'none' leaves the engine's output as it is")
    decoded = session.family.decode(session.parts, latents) if decode else {}
    for part, values in decoded.items():
        check_drawn(values, part, names, "its latents are: 'quaver run RECIPE --force trace' writes the decoder anew")
    return Batch(latents, decoded, tuple(prompts), tuple(int(seed) for seed in seeds), sum(clipped))


def preview(session: Session, step: Step) -> Mapping[str, np.ndarray]:
    """What the samples of a step would be if the sampler ended there: its estimate of x_0, decoded, by name."""
    return session.family.decode(session.parts, step.x_0)


def check_drawn(values: np.ndarray, part: str, names: Sequence[str], advice: str) -> None:
    """Raise EngineError naming the first sample whose `part`, `values` [B, ...], is not finite."""
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise EngineError(f"not finite: the {part} of {names[bad[0]]} ({len(bad)} of {len(values)} samples): {advice}")


def session_stats(session: Session, settings: SamplingSettings, *, interpolate: bool = False) -> ErrorStats:
    """The error statistics of a session's engine, checked against what is about to run.

    `interpolate`: also serve timesteps between those that were fitted.
    Raises: ArtifactError when there are none, or they belong to another run.
    """
    at = visited(settings, session.schedule) if interpolate else None
    return serve(find_stats(session, settings, interpolate=interpolate)[1], binding(session, settings), at=at)


def find_stats(session: Session, settings: SamplingSettings, *, interpolate: bool = False) -> tuple[Path, ErrorStats]:
    """The file of those statistics among the bundle's, and what it holds. Raises: as `session_stats`."""
    if session.target is None:
        raise ArtifactError(
            "this engine has no error statistics: name a target of the bundle as the engine, or use --correct none"
        )
    fits = fitting(session, settings)
    if not (paths := session.bundle.all_error_stats(session.target)):
        missing = session.bundle.error_stats(session.target)
        raise ArtifactError(f"no {missing}: fit error statistics with {fits}, or use --correct none")
    return choose(paths, binding(session, settings), between=interpolate, fits=fits)


def fitting(session: Session, settings: SamplingSettings) -> str:
    """The command that fits the statistics of a session's engine, sampled with `settings`."""
    bundle, own = session.bundle, sampling_of(session)
    others = {name: now for name in SAMPLING if (now := getattr(settings, name)) != getattr(own, name)}
    said = {"target": DEFAULT_TARGET, **(read_toml(bundle.recipe).get("stats", {}) if bundle.recipe.exists() else {})}
    here = {"target": session.target, "provider": session.engine.backend.partition("onnxruntime on ")[2]}
    sets = [f"--set stats.{name}={now}" for name, now in here.items() if now and now != said.get(name)]
    return command(bundle, "stats", *options(others), *sets)


def binding(session: Session, settings: SamplingSettings, *, reference: str = "") -> Binding:
    """What error statistics of a session belong to; `reference` is the digest of the float engine."""
    return Binding(
        engine=session.engine.digest,
        reference=reference,
        backend=session.engine.backend,
        sampler=settings.sampler,
        steps=settings.steps,
        eta=float(settings.eta),
        guidance=float(settings.guidance),
        prediction=session.schedule.prediction,
        latent_shape=session.latent_shape,
    )


def check_pairs(prompts: Sequence[str], seeds: Sequence[int], batch: int) -> None:
    """Refuse what cannot be generated.

    Raises: QuaverError for a bad prompt or seed, another number of prompts than of seeds, or an empty batch.
    """
    check_prompts(prompts)
    if len(prompts) != len(seeds):
        raise QuaverError(f"{len(prompts)} prompts and {len(seeds)} seeds, expected as many: give one seed per sample")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise QuaverError(f"seed {wrong[0]} is out of range, expected 0 to {2**32 - 1}")
    if batch < 1:
        raise QuaverError(f"batch is {batch}, expected 1 or more")
