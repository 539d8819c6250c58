"""Sound in bands as wide as hearing has them, and how well an engine keeps their levels.

    M[b] = sqrt( sum over f of bank[b, f] |X[f]|^2 )        mel SNR = -20 log10( |M_q - M_y| / |M_y| )     (dB)

The bank's triangles of height 1 are evenly spaced on the mel scale. Phase does not enter: two sounds that differ in it
alone have an infinite mel SNR, where their waveforms' SNR may be below 0 dB.
"""

from __future__ import annotations

import numpy as np

from quaver.runtime.measure.quality import power, snr_db
from quaver.runtime.measure.spectrogram import hz_to_mel, mel_to_hz

Array = np.ndarray


def mel_snr_db(q: Array, y: Array, *, rate: int, bands: int = 64, n_fft: int = 1024, hop: int = 256) -> Array:
    """SNR of the mel amplitudes of waveforms `[N, samples]` at `rate` Hz, per clip `[N]` in dB."""
    return snr_db(*(mel_amplitude(clips, rate=rate, bands=bands, n_fft=n_fft, hop=hop) for clips in (q, y)))


def mel_amplitude(waveforms: Array, *, rate: int, bands: int = 64, n_fft: int = 1024, hop: int = 256) -> Array:
    """Amplitude of `[..., samples]` in every band and frame: `[..., frames, bands]`."""
    return np.sqrt(power(waveforms, n_fft=n_fft, hop=hop) @ mel_bank(rate, bands=bands, n_fft=n_fft).T)


def mel_bank(rate: int, *, bands: int, n_fft: int) -> Array:
    """Triangles over the bins of a Fourier transform, 0 Hz to half of `rate`: `[bands, n_fft // 2 + 1]`."""
    edges = mel_to_hz(np.linspace(0.0, hz_to_mel(rate / 2), bands + 2))
    grid = np.linspace(0, rate / 2, n_fft // 2 + 1)
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    return np.maximum(0.0, np.minimum((grid - low) / (centre - low), (high - grid) / (high - centre)))
