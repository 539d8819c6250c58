"""A waveform as a picture: short-time power on a mel frequency axis, in dB under the clip's peak, as a palette PNG.

    mel(f) = 2595 log10(1 + f / 700)         (O'Shaughnessy 1987)

The colours run from the page's night blue over violet and coral to cream with lightness rising evenly in Oklab
(Ottosson 2020), so equal steps in dB look equal. The PNG writer needs zlib only.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from quaver.runtime.measure.quality import power

Array = np.ndarray

# Oklab anchors (lightness, a, b), evenly spaced; lightness is linear so that dB read evenly.
ANCHORS = (
    (0.16, 0.010, -0.050),
    (0.32, 0.055, -0.120),
    (0.48, 0.140, -0.060),
    (0.64, 0.150, 0.060),
    (0.80, 0.070, 0.120),
    (0.96, -0.010, 0.060),
)


def log_spectrogram(
    waveform: Array, *, rate: int, bands: int = 160, columns: int = 400, range_db: float = 80.0
) -> Array:
    """Level of `waveform` `[samples]` at `rate` Hz: `[bands, columns]` in [-range_db, 0] dB, low band first."""
    hop = max(1, round(len(waveform) / columns))
    spectrum = power(waveform, n_fft=1024, hop=hop)[:columns]
    grid = np.linspace(0, rate / 2, spectrum.shape[1])
    centres = mel_to_hz(np.linspace(hz_to_mel(40.0), hz_to_mel(rate / 2), bands))
    banded = np.stack([np.interp(centres, grid, frame) for frame in spectrum], axis=1)
    peak = max(float(banded.max()), 1e-12)
    return 10 * np.log10(np.maximum(banded / peak, 10 ** (-range_db / 10)))


def hz_to_mel(hz: Array | float) -> Array:
    """Mel value of a frequency in Hz."""
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def mel_to_hz(mel: Array | float) -> Array:
    """Frequency in Hz of a mel value."""
    return 700 * (10 ** (np.asarray(mel) / 2595) - 1)


def palette() -> Array:
    """The colour map as sRGB bytes `[256, 3]`, dark to light."""
    at = np.linspace(0, len(ANCHORS) - 1, 256)
    lab = np.stack([np.interp(at, range(len(ANCHORS)), column) for column in zip(*ANCHORS, strict=True)], axis=1)
    return np.round(255 * _oklab_to_srgb(lab)).astype(np.uint8)


def picture(waveform: Array, *, rate: int, range_db: float = 80.0) -> bytes:
    """The log spectrogram of `waveform` `[samples]` as PNG bytes, time to the right, high frequencies on top."""
    level = log_spectrogram(waveform, rate=rate, range_db=range_db)
    return png(np.round((level[::-1] / range_db + 1) * 255).astype(np.uint8), palette())


def png(indices: Array, colours: Array) -> bytes:
    """A palette PNG of `indices` `[height, width]` uint8 into `colours` `[256, 3]` uint8 (PNG specification, 11.2)."""
    return _png(indices.shape, 3, indices, (b"PLTE", colours.tobytes()))


def truecolour(pixels: Array) -> bytes:
    """A PNG of `pixels` `[height, width, 3]` uint8, red, green and blue."""
    height, width, _ = pixels.shape
    return _png((height, width), 2, pixels.reshape(height, 3 * width))


def _png(size: tuple[int, ...], kind: int, rows: Array, *between: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, kind, 0, 0, 0)
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # filter byte 0 in front of every row
    chunks = ((b"IHDR", header), *between, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _oklab_to_srgb(lab: Array) -> Array:
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
