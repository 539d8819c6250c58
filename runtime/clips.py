"""Samples as files: WAV, PNG, or latents where a model ends at them; one file a sample, whole or not there at all.

    1 sample     the file that was asked for
    several      <number>-<first words of the prompt>-seed<seed>.wav in a folder; none of it can lead out of there
    previews     <name>.step<n>.wav beside <name>.wav

Files are written batch by batch, so that whatever ends a run early leaves what it had finished.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quaver.runtime.artifact import write_error
from quaver.runtime.audio import write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from quaver.runtime.generate import check_pairs, generate_from, preview
from quaver.runtime.latents import write_latents
from quaver.runtime.measure.media import write_picture
from quaver.runtime.progress import Progress
from quaver.runtime.sample import Step
from quaver.runtime.session import Session, open_bundle, sampling_of

OnFile = Callable[[Path], None]
SUFFIXES = {  # of the files of a family's media, the usual one first
    "sound": (".wav",),
    "pictures": (".png",),
    "mels": (".npy",),
    "latents": (".npy", ".safetensors"),
}

log = logging.getLogger(__name__)


def generate_to_files(
    bundle: Bundle | Path | str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path | str | None = None,
    *,
    engine_file: str | Path | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    correct: str = "none",
    interpolate: bool = False,
    batch: int = 4,
    missing: bool = False,
    preview_every: int | None = None,
    threads: int | None = None,
    provider: str | None = None,
    progress: Progress | None = None,
    on_file: OnFile = lambda path: None,
) -> list[Path]:
    """Generate one file per pair of `prompts` [N] and `seeds` [N] and return the paths of those written.

    `out` is the file of one pair, else a folder; None: a file named after the prompt, or clips/. With `missing`, files
    that are there already are left alone. `preview_every` n steps what the samples are by then is written too, and
    `on_file` is called after each file.
    Raises: as `generate`; ArtifactError when the place cannot be written, before anything is computed.
    KeyboardInterrupt and EngineError say how many files were finished.
    """
    check_pairs(prompts, seeds, batch)
    if preview_every is not None and preview_every < 1:
        raise QuaverError(f"previews are every {preview_every} steps, expected every 1 or more")
    written: list[Path] = []
    with open_bundle(bundle, engine_file=engine_file, threads=threads, provider=provider) as session:
        settings = sampling_of(session, sampler=sampler, steps=steps, guidance=guidance, eta=eta)
        suffixes = SUFFIXES[session.family.media]
        places = plan_files(Path(out or usual_place(prompts, seeds, suffixes[0])), prompts, seeds, suffixes)
        todo = [job for job in zip(places, prompts, seeds, strict=True) if not (missing and job[0].exists())]
        if not todo:
            (progress or Progress()).say(
                f"nothing is missing: {len(places)} clip{'s' * (len(places) > 1)} there already"
            )
            return written
        paths, texts, numbers = zip(*todo, strict=True)
        calls, label = settings.steps * -(-len(todo) // batch), f"{len(todo)} clip{'s' * (len(todo) > 1)}"
        with (progress or Progress()).bar(calls, label) as bar, counted(written, len(todo)):

            def look(step: Step) -> None:
                bar.step()
                done = step.index + 1
                if preview_every and done % preview_every == 0 and done < settings.steps:
                    names = [step_path(path, done, settings.steps) for path in paths[len(written) :]]
                    for path in write(session, names, step.x_0, preview(session, step)):
                        on_file(path)

            batches = generate_from(
                session,
                texts,
                numbers,
                settings,
                correct=correct,
                interpolate=interpolate,
                batch=batch,
                on_step=look,
            )
            for drawn in batches:
                for path in write(session, paths[len(written) :], drawn.latents, drawn.decoded):
                    written.append(path)
                    on_file(path)
                if drawn.clipped:
                    log.warning("the correction's residual exceeded the sampler's noise %d times", drawn.clipped)
    return written


@contextmanager
def counted(written: Sequence[Path], wanted: int) -> Iterator[None]:
    """Have what stops a run say how much of it is there."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"{error} ({len(written)} of {wanted} clips are written)") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted: {len(written)} of {wanted} clips are written; the same command with --missing makes the rest"
        ) from error


def plan_files(
    out: Path, prompts: Sequence[str], seeds: Sequence[int], suffixes: Sequence[str] = (".wav",)
) -> list[Path]:
    """Where the clips of `prompts` [N] and `seeds` [N] go, as files of one of `suffixes`; makes the folder.

    Raises: ArtifactError when it cannot be made or written; QuaverError for several clips in one file.
    """
    known = out.suffix.lower() in suffixes
    file = not out.is_dir() and (known or (out.suffix != "" and len(seeds) == 1))
    if file and not known:
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
    pairs = enumerate(zip(prompts, seeds, strict=True), start=1)
    return [out] if file else [folder / f"{i:03d}-{slug(text)}-seed{seed}{suffixes[0]}" for i, (text, seed) in pairs]


def usual_place(prompts: Sequence[str], seeds: Sequence[int], suffix: str) -> str:
    """A file named after the prompt and seed of one sample, a folder of several."""
    return "clips" if len(seeds) > 1 else f"{slug(prompts[0])}-{seeds[0]}{suffix}"


def slug(text: str) -> str:
    """The first words of a prompt as a part of a file's name: letters, digits and hyphens alone."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "sound"


def step_path(path: Path, done: int, steps: int) -> Path:
    """The file beside `path` of what it was after `done` of `steps` steps."""
    return path.with_name(f"{path.stem}.step{done:0{len(str(steps))}d}{path.suffix}")


def write(
    session: Session, paths: Sequence[Path], latents: np.ndarray, decoded: Mapping[str, np.ndarray]
) -> Iterator[Path]:
    """Write samples to the first of `paths`, each as it is finished: waveforms, images, mels, else latents [B, ...].

    Raises: EngineError when one is not finite; ArtifactError when the place cannot be written.
    """
    kind = next((name for name in ("waveform", "image", "mel") if name in decoded), "latents")
    for path, values in zip(paths, decoded.get(kind, latents), strict=False):
        if kind in ("latents", "mel"):
            write_latents(path, values)
        elif kind == "image":
            write_picture(path, values)
        elif clipped := write_wav(path, values, session.sample_rate):
            log.warning("%s: %d of %d samples were louder than full scale and clipped", path, clipped, len(values))
        yield path
