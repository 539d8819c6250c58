"""Log-spectrogram of the embedded model: m[t, b] = log10(max(sum_k F[b, k] |X[t, k]|, floor)), scaled to [-1, 1].

X is the short-time Fourier transform at 16 kHz (Hann 1024, hop 256, centred). F has 128 triangular bands: one per
bin up to 0.6 kHz, where harmonics of low notes are one bin apart, then geometric, two bands a semitone.
"""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16_000
N_FFT = 1024
HOP = 256
FRAMES = 128
BANDS = 128
SAMPLES = FRAMES * HOP
FLOOR_DB = -90.0
CEILING_DB = 10.0
LINEAR_BANDS = 40


def centres() -> np.ndarray:
    """Centre of each band in bins [BANDS + 2]: linear, then geometric up to the Nyquist bin."""
    linear = np.arange(LINEAR_BANDS, dtype=np.float64)
    ratio = (N_FFT / 2 / (LINEAR_BANDS - 1)) ** (1 / (BANDS + 1 - LINEAR_BANDS + 1))
    return np.concatenate([linear, (LINEAR_BANDS - 1) * ratio ** np.arange(1, BANDS + 3 - LINEAR_BANDS)])


def filterbank() -> np.ndarray:
    """Triangular bands F [BANDS, N_FFT/2 + 1], each with unit sum."""
    edges, bins = centres(), np.arange(N_FFT // 2 + 1)[None, :]
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (mid - low), (high - bins) / (high - mid)
    bank = np.maximum(0.0, np.minimum(rising, falling))
    return bank / bank.sum(axis=1, keepdims=True)


def window() -> np.ndarray:
    """Periodic Hann window [N_FFT]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)


def magnitude(wave: np.ndarray) -> np.ndarray:
    """|STFT| of `wave` [N] as [FRAMES, N_FFT/2 + 1], a full-scale sine near 1."""
    padded = np.pad(np.asarray(wave, np.float64)[:SAMPLES], (N_FFT // 2, N_FFT), mode="constant")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:FRAMES]
    return np.abs(np.fft.rfft(frames * window(), axis=1)) / (N_FFT / 4)


def to_unit(amplitude: np.ndarray) -> np.ndarray:
    """Amplitude to decibels, clipped to [FLOOR_DB, CEILING_DB], scaled to [-1, 1]."""
    decibels = 20 * np.log10(np.maximum(amplitude, 10 ** (FLOOR_DB / 20)))
    return np.clip((decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB), 0, 1) * 2 - 1


def log_spectrogram(wave: np.ndarray) -> np.ndarray:
    """The model's picture of a waveform [N] at 16 kHz: float32 [FRAMES, BANDS] in [-1, 1]."""
    return to_unit(magnitude(wave) @ filterbank().T).astype(np.float32)
