"""The samples of a report as files: 16-bit WAV or PNG, with what a listener should know before trusting them.

peak = max |x|        silent: peak below 10^(-60/20)        clipped: share of samples with |x| >= 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.artifact import atomic
from quaver.runtime.audio import write_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.spectrogram import truecolour
from quaver.runtime.measure.trajectories import Take
from quaver.runtime.session import FLOAT

Array = np.ndarray
SILENT = 1e-3  # -60 dB under full scale


@dataclass(frozen=True)
class Voice:
    """One take among those shown: of the engine of a name with a correction, or None and the name of a float model."""

    engine: str | None
    correction: str
    take: Take
    rate: int  # Hz
    errors: Sequence[float] = ()  # latent error [N]; none of the float model


def move_media(staged: Bundle, place: Bundle) -> None:
    """Put clips in the place of those of an earlier report."""
    written, folder = staged.media("clip").parent, place.media("clip").parent
    for old in folder.glob("clip-*"):
        old.unlink()
    for file in sorted(written.glob("clip-*")):
        folder.mkdir(exist_ok=True)
        file.replace(folder / file.name)
    if written.exists():
        written.rmdir()


def write_voice(place: Bundle, voice: Voice, number: int, count: int) -> Iterator[dict[str, Any]]:
    """Write the first `count` samples of a take, the report's `number`-th voice, and say of each what the page needs.

    Nothing of a take that ends at latents.
    """
    sounds = voice.take.waveforms.size > 0
    for i in range(count if sounds or voice.take.pictures.size else 0):
        name = voice.correction if voice.engine else FLOAT
        file = place.media(f"clip-{i:03d}.{number:02d}-{name}.{'wav' if sounds else 'png'}")
        row: dict[str, Any] = {"engine": voice.engine, "correction": voice.correction, "file": file.name}
        row["latent_error"] = voice.errors[i] if len(voice.errors) else None
        if sounds:
            write_wav(file, voice.take.waveforms[i], voice.rate)
            yield {**row, "rate": voice.rate, **level(voice.take.waveforms[i])}
        else:
            write_picture(file, voice.take.pictures[i])
            yield row


def level(waveform: Array) -> dict[str, Any]:
    """Peak of a waveform `[samples]`, whether it is silent, and the share of its samples that a WAV file clips."""
    size = np.abs(waveform)
    peak = float(size.max(initial=0.0))
    return {"peak": peak, "silent": peak < SILENT, "clipped": float((size > 1).mean()) if size.size else 0.0}


def levels(waveforms: Array) -> dict[str, int]:
    """How many of the waveforms `[N, samples]` are silent, and how many clip."""
    found = [level(waveform) for waveform in waveforms]
    return {"silent": sum(row["silent"] for row in found), "clipped": sum(row["clipped"] > 0 for row in found)}


def write_picture(path: Path, picture: Array) -> None:
    """Write a picture `[C, H, W]` in -1..1, one channel or three, as a PNG file."""
    grey = np.round(127.5 * (np.clip(picture, -1, 1) + 1)).astype(np.uint8)
    with atomic(path) as temporary:
        temporary.write_bytes(truecolour(np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0)))


def shown_clips(
    pairs: Sequence[tuple[str, int]], voices: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Clips by prompt and seed, from the rows of every voice in turn."""
    count = min((len(rows) for rows in voices), default=0)
    return [
        {"prompt": prompt, "seed": seed, "takes": [rows[i] for rows in voices]}
        for i, (prompt, seed) in enumerate(pairs[:count])
    ]
