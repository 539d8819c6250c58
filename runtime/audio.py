"""WAV files: 16-bit PCM, written whole or not at all.

code = round(32767 x),  x in [-1, 1];  what lies beyond is clipped and counted
"""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np

from quaver.runtime.artifact import atomic
from quaver.runtime.errors import ArtifactError, EngineError

_PEAK = 32767
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # RIFF, then its parts "fmt " and "data"


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> int:
    """Write one channel, waveform [N] in [-1, 1], and return how many samples were clipped.

    Raises: EngineError when the waveform is not finite; ArtifactError when the place cannot be written.
    """
    samples = np.asarray(waveform, dtype=np.float64)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise EngineError(
            f"cannot write {path}: the waveform has shape {list(samples.shape)} or is not finite, expected finite [N]"
        )
    data = np.round(np.clip(samples, -1.0, 1.0) * _PEAK).astype("<i2").tobytes()
    form = (b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # PCM, one channel, 16 bits
    header = _HEADER.pack(b"RIFF", _HEADER.size - 8 + len(data), b"WAVE", *form, b"data", len(data))
    with atomic(path) as temporary:
        temporary.write_bytes(header + data)  # the library's writer, half made when Ctrl-C comes, prints a traceback
    return int(np.count_nonzero(np.abs(samples) > 1.0))


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read a 16-bit PCM WAV file: (waveform [N] or [N, channels] float32 in [-1, 1], sample rate in Hz).

    Of one that was cut off, what is there. Raises: ArtifactError when it is missing or of another format.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: name a WAV file") from error
    except (wave.Error, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is not a PCM WAV file ({error}): convert it to 16-bit PCM") from error
    if width != 2:
        raise ArtifactError(f"{path} has {8 * width}-bit samples, expected 16: convert it to 16-bit PCM")
    whole = len(data) - len(data) % (channels * width)  # a file may end in the middle of a frame
    samples = np.frombuffer(data[:whole], dtype="<i2").astype(np.float32) / _PEAK
    return (samples if channels == 1 else samples.reshape(-1, channels)), rate
