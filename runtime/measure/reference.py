"""Reference sets: what generated clips are compared with as a set.

A folder of WAV files, or a .safetensors file of features that a network once heard in such clips:

    features [N, D] or [N, F, D] float32        metadata  network: its name (`features.Network.name`)
                                                          note: what whoever reads the figures must know, or nothing

"demo" is the embedded model's own. A vocoder loses something, and that loss would count as the model's. It cancels
where the reference clips went through the same autoencoder and vocoder before; these readers take what they are given.
Clips are not resampled either, since a resampler shows in the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from quaver.runtime.audio import read_wav
from quaver.runtime.errors import ArtifactError, first_line
from quaver.runtime.measure.media import SILENT

Array = np.ndarray
CLIPPED = 0.001  # share of samples at full scale
FULL = 0.9999


@dataclass(frozen=True)
class ReferenceSet:
    """Clips `[N, samples]` in [-1, 1], their files, and what whoever reads the figures must know."""

    waveforms: Array
    files: tuple[str, ...]
    notes: tuple[str, ...]


def located(reference: str) -> Path:
    """The folder or file that a recipe names; "demo" is a file of the embedded model."""
    if reference == "demo":
        return Path(str(files("quaver.demo") / "model" / "reference.safetensors"))
    return Path(reference).expanduser()


def load_clips(folder: Path, *, rate: int, samples: int, count: int = 0) -> ReferenceSet:
    """The clips of a folder in the order of their names, the first `samples` of each; `count` is how many are wanted.

    Of several channels the first is taken. Fewer clips, silent, clipped and short ones are told in `notes`.
    Raises: ArtifactError when the folder is missing or empty, or a clip has another rate than `rate` Hz.
    """
    if not folder.is_dir():
        raise ArtifactError(f"no reference set at {folder}: name a folder of WAV files at {rate} Hz")
    paths = sorted(folder.rglob("*.wav"))
    if not paths:
        raise ArtifactError(f"{folder} holds no WAV file: put reference clips at {rate} Hz there")
    chosen = paths[: count or len(paths)]
    clips = [_read(path, rate) for path in chosen]
    waveforms = np.stack([_fitted(clip, samples) for clip in clips])
    short = sum(len(clip) < samples for clip in clips)
    found = {
        f"{len(paths)} reference clips of {count} asked for": len(paths) < count,
        f"{short} of {len(chosen)} reference clips are shorter than {samples / rate:.2f} s and end in silence": short,
    }
    notes = (*(note for note, true in found.items() if true), *defects(waveforms, "reference clips"))
    return ReferenceSet(waveforms, tuple(path.relative_to(folder).as_posix() for path in chosen), notes)


def defects(waveforms: Array, what: str) -> tuple[str, ...]:
    """What is wrong with clips `[N, samples]`, called `what`: how many are silent, how many clipped."""
    level = np.abs(waveforms)
    silent, clipped = (level.max(axis=1) < SILENT).sum(), ((level >= FULL).mean(axis=1) > CLIPPED).sum()
    found = {
        f"{silent} of {len(waveforms)} {what} are silent (below {20 * np.log10(SILENT):.0f} dB)": silent,
        f"{clipped} of {len(waveforms)} {what} are clipped ({CLIPPED:.1%} of samples at full scale, or more)": clipped,
    }
    return tuple(note for note, count in found.items() if count)


def load_features(path: Path, *, network: str) -> tuple[Array, str]:
    """Features `[N, D]` or `[N, F, D]` that a network of this name heard in reference clips, and their note.

    Raises: ArtifactError when the file is missing, no such file, or of another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            said, features = file.metadata() or {}, file.get_tensor("features")
    except FileNotFoundError as error:
        raise ArtifactError(f"no reference set at {path}: name a folder of WAV files, or a file of features") from error
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} holds no reference features ({first_line(error)}): name a folder of WAV"
        ) from error
    if (heard := said.get("network", "")) != network:
        raise ArtifactError(
            f"{path} holds features of {heard or 'a network it does not name'}, expected {network}: name a folder of "
            "WAV files, whose features are then taken anew"
        )
    return features, said.get("note", "")


def save_features(path: Path, features: Array, *, network: str) -> Path:
    """Keep features `[N, D]` or `[N, F, D]` of reference clips, so that the clips need not travel."""
    from safetensors.numpy import save

    from quaver.runtime.artifact import atomic

    with atomic(path) as temporary:
        temporary.write_bytes(save({"features": np.asarray(features, np.float32)}, {"network": network}))
    return path


def _read(path: Path, rate: int) -> Array:
    clip, found = read_wav(path)
    if found != rate:
        raise ArtifactError(
            f"{path} is at {found} Hz, expected {rate} Hz: resample it, ffmpeg -i {path.name} -ar {rate} out.wav"
        )
    return clip if clip.ndim == 1 else clip[:, 0]


def _fitted(clip: Array, samples: int) -> Array:
    """The first `samples` of a clip, silence where it has ended."""
    return np.pad(clip[:samples], (0, max(0, samples - len(clip))))
