"""Prompts and seeds to sound: one loop for the command line, the error statistics and the metrics.

A sample depends on its prompt, its seed and the settings, and on nothing else (`denoise.py` says where its noise is
from), so that batch size and order do not matter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.runtime.artifact import write_error
from quaver.runtime.audio import write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import make_correct
from quaver.runtime.denoise import CORRECTION, denoiser, initial_noise, step_noise
from quaver.runtime.error_law import Binding, ErrorStats, load_stats
from quaver.runtime.error_transfer import serve
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from quaver.runtime.latents import write_latents
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SAMPLERS, SamplingSettings, Step, visited
from quaver.runtime.session import Session, open_bundle, sampling_of
from quaver.runtime.text import check_prompts, shown

OnStep = Callable[[Step], None]
SUFFIXES = {"latents": (".npy", ".safetensors")}  # of the files of a family's media, the usual one first; else .wav

__all__ = [
    "Batch",
    "binding",
    "denoiser",
    "generate",
    "generate_from",
    "generate_to_files",
    "initial_noise",
    "session_stats",
    "step_noise",
]

log = logging.getLogger(__name__)


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
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    correct: str = "none",
    batch: int = 4,
    decode: bool = True,
    threads: int | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Batch]:
    """Generate one sample per pair of `prompts` [N] and `seeds` [N], batch by batch, in order.

    `engine_file` is a target's name (None: "ort-cpu"), "float" or a path; what is None is the bundle's own setting.
    Raises: QuaverError for bad prompts or seeds, before anything is opened; ArtifactError and EngineError as
    `open_bundle` and `generate_from` do.
    """
    check_pairs(prompts, seeds, batch)

    def batches() -> Iterator[Batch]:
        with open_bundle(bundle, engine_file=engine_file, threads=threads) as session:
            settings = sampling_of(session, steps=steps, guidance=guidance, eta=eta)
            yield from generate_from(
                session, prompts, seeds, settings, correct=correct, batch=batch, decode=decode, on_step=on_step
            )

    return batches()


def generate_from(
    session: Session,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    correct: str = "none",
    batch: int = 4,
    decode: bool = True,
    on_step: OnStep | None = None,
) -> Iterator[Batch]:
    """As `generate`, on a session that is open: what validation and statistics call, again and again.

    Raises: ArtifactError when error statistics are missing or belong to another run; EngineError when an engine
    answers with what is not finite.
    """
    check_pairs(prompts, seeds, batch)
    stats = session_stats(session, settings) if correct != "none" else None
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
    decoded = session.family.decode(session.parts, latents) if decode else {}
    for part, values in decoded.items():
        check_decoded(values, part, names)
    return Batch(latents, decoded, tuple(prompts), tuple(int(seed) for seed in seeds), sum(clipped))


def check_decoded(values: np.ndarray, part: str, names: Sequence[str]) -> None:
    """Raise EngineError naming the first sample whose decoded `part` [B, ...] is not finite."""
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise EngineError(
            f"the {part} of {names[bad[0]]} is not finite ({len(bad)} of {len(values)} samples): its latents are, so "
            "look at the decoder; 'quaver run RECIPE --force trace' writes it anew"
        )


def session_stats(session: Session, settings: SamplingSettings, *, interpolate: bool = False) -> ErrorStats:
    """The error statistics of a session's engine, checked against what is about to run.

    `interpolate`: also serve timesteps between those that were fitted.
    Raises: ArtifactError when there are none, or they belong to another run.
    """
    if session.target is None:
        raise ArtifactError(
            "this engine has no error statistics: name a target of the bundle as the engine, or use --correct none"
        )
    path = session.bundle.error_stats(session.target)
    if not path.exists():
        raise ArtifactError(f"no {path}: fit error statistics with 'quaver stats RECIPE', or use --correct none")
    at = visited(settings, session.schedule) if interpolate else None
    return serve(load_stats(path), binding(session, settings), at=at)


def binding(session: Session, settings: SamplingSettings, *, reference: str = "") -> Binding:
    """What error statistics of a session belong to; `reference` is the digest of the float engine."""
    return Binding(
        engine=session.engine.digest,
        reference=reference,
        backend="onnxruntime",
        sampler=settings.sampler,
        steps=settings.steps,
        eta=float(settings.eta),
        guidance=float(settings.guidance),
        prediction=session.schedule.prediction,
        latent_shape=session.latent_shape,
    )


def generate_to_files(
    bundle: Bundle | Path | str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    engine_file: str | Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    correct: str = "none",
    batch: int = 4,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Generate one file per pair of `prompts` [N] and `seeds` [N], WAV or latents, and return their paths.

    `out` is the file for one pair; for several, or when it is a folder, they are named `<number>-seed<seed>.wav` in it.
    Raises: as `generate`; ArtifactError when the place cannot be written, before anything is computed.
    """
    check_pairs(prompts, seeds, batch)
    with open_bundle(bundle, engine_file=engine_file, threads=threads) as session:
        paths = plan_files(Path(out), seeds, SUFFIXES.get(session.family.media, (".wav",)))
        settings = sampling_of(session, steps=steps, guidance=guidance, eta=eta)
        calls = settings.steps * -(-len(seeds) // batch)
        with (progress or Progress()).bar(calls, f"{len(seeds)} clip{'s' * (len(seeds) > 1)}") as bar:
            batches = generate_from(
                session, prompts, seeds, settings, correct=correct, batch=batch, on_step=lambda _: bar.step()
            )
            return [path for drawn in batches for path in _write(drawn, paths, session.sample_rate)]


def plan_files(out: Path, seeds: Sequence[int], suffixes: Sequence[str] = (".wav",)) -> list[Path]:
    """Where the clips of `seeds` [N] go, as files of one of `suffixes`; makes the folder.

    Raises: ArtifactError when it cannot be made or written; QuaverError for several clips in one file.
    """
    file = out.suffix != "" and not out.is_dir()
    if file and out.suffix.lower() not in suffixes:
        written = " and ".join(suffix[1:].upper() for suffix in suffixes)
        raise QuaverError(f"cannot write {out}: only {written} is written, name it {out.with_suffix(suffixes[0]).name}")
    if file and len(seeds) > 1:
        raise QuaverError(f"{len(seeds)} clips do not fit into {out}: name a folder")
    folder = out.parent if file else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"cannot write into {folder}: choose another folder or change its permissions")
    return [out] if file else [folder / f"{i:03d}-seed{seed}{suffixes[0]}" for i, seed in enumerate(seeds, start=1)]


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


def _write(drawn: Batch, paths: list[Path], sample_rate: int) -> list[Path]:
    """Write a batch to the first of `paths`, and take those off."""
    written = []
    if not drawn.decoded:
        written = [write_latents(paths.pop(0), latents) for latents in drawn.latents]
    for waveform in drawn.decoded.get("waveform", ()):
        path = paths.pop(0)
        if clipped := write_wav(path, waveform, sample_rate):
            log.warning("%s: %d of %d samples were louder than full scale and clipped", path, clipped, len(waveform))
        written.append(path)
    if drawn.clipped:
        log.warning("the correction's residual exceeded the sampler's noise %d times (clipped to it)", drawn.clipped)
    return written
