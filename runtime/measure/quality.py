"""Paired measures: the same prompt, seed and noise through two engines.

With ``y`` the reference and ``q`` what is judged, both flattened per sample,

    relative error   r = |q - y| / |y|                SNR = -20 log10 r   (dB)
    drift            r at every step of the trajectory
    log-spectral     LSD = mean over frames of  sqrt( mean over f of (20 log10 |Q| - 20 log10 |Y|)^2 )   (dB)

Every mean comes with a percentile bootstrap interval (Efron 1979) over samples. Several columns are resampled with the
same indices, so a ratio of two engines on the same clips keeps the pairing. Samples of one prompt have more in common
than others: given as groups they are drawn together (Davison and Hinkley 1997, 3.8), else the interval is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
FEWEST = 8  # groups that are resampled: of fewer, the spread is not to be told


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap bounds, in the unit of the estimate."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The three numbers as a JSON object."""
        return {"value": self.value, "low": self.low, "high": self.high}


def relative_error(q: Array, y: Array) -> Array:
    """Norm of the error over the norm of the reference, for `q` and `y` `[N, ...]`; returns `[N]`."""
    _same_shape(q, y)
    error, size = _norms(np.asarray(q, np.float64) - y), _norms(y)
    return np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)


def snr_db(q: Array, y: Array) -> Array:
    """Signal-to-noise ratio of `q` `[N, ...]` against `y`, per sample `[N]` in dB; infinite where they are equal."""
    return decibels(relative_error(q, y))


def decibels(relative: Array) -> Array:
    """SNR in dB of relative errors of any shape, a drift `[S, N]` among them; infinite where there is none."""
    with np.errstate(divide="ignore"):
        return -20.0 * np.log10(relative)


def drift(q: Array, y: Array) -> Array:
    """Relative error of every step of two trajectories `[S, N, ...]`; returns `[S, N]`."""
    _same_shape(q, y)
    return np.stack([relative_error(a, b) for a, b in zip(q, y, strict=True)])


def log_spectral_distance(q: Array, y: Array, *, n_fft: int = 1024, hop: int = 256, floor_db: float = -80.0) -> Array:
    """Log-spectral distance of waveforms `[N, samples]`, per clip `[N]` in dB.

    Both spectra are cut at `floor_db` under the loudest bin of the reference clip, else inaudible bins decide.
    """
    _same_shape(q, y)
    spectra_q, spectra_y = (power(clips, n_fft=n_fft, hop=hop) for clips in (q, y))
    peak = np.maximum(spectra_y.max(axis=(1, 2), keepdims=True), 1e-20)
    log_q, log_y = (10 * np.log10(np.maximum(s / peak, 10 ** (floor_db / 10))) for s in (spectra_q, spectra_y))
    return np.sqrt(((log_q - log_y) ** 2).mean(axis=2)).mean(axis=1)


def power(waveform: Array, *, n_fft: int, hop: int) -> Array:
    """Power spectrum of `[..., samples]`, Hann window, centred frames: `[..., frames, n_fft // 2 + 1]`."""
    pad = [(0, 0)] * (np.ndim(waveform) - 1) + [(n_fft // 2, n_fft // 2)]
    padded = np.pad(np.asarray(waveform, np.float64), pad)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[..., ::hop, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return np.abs(np.fft.rfft(frames * window)) ** 2


def bootstrap(
    statistic: Callable[..., Any],
    *columns: Array,
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
    groups: Sequence[str] | None = None,
) -> Interval:
    """Percentile bootstrap of `statistic(*columns)` over the first axis, which the `columns` `[N, ...]` share.

    `groups` [N] says which samples are drawn together; of fewer than `FEWEST` groups each sample is drawn for itself,
    and the interval holds for these groups alone.
    """
    size = len(columns[0])
    if any(len(column) != size for column in columns):
        raise ValueError(f"paired columns differ in length: {[len(c) for c in columns]}")
    picks = _picks(size, groups, draws, rng)
    values = [float(statistic(*(np.asarray(column)[pick] for column in columns))) for pick in picks]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*columns)), float(low), float(high))


def mean_interval(values: Array, *, rng: np.random.Generator, groups: Sequence[str] | None = None) -> Interval:
    """Mean of `values` `[N]` with its 95% bootstrap interval; `groups` [N] as of `bootstrap`."""
    return bootstrap(np.mean, np.asarray(values, np.float64), rng=rng, groups=groups)


def ratio_interval(
    numerator: Array, denominator: Array, *, rng: np.random.Generator, groups: Sequence[str] | None = None
) -> Interval:
    """Ratio of the means of two paired columns `[N]` with its 95% interval; `groups` [N] as of `bootstrap`."""
    return bootstrap(lambda a, b: np.mean(a) / np.mean(b), numerator, denominator, rng=rng, groups=groups)


def _picks(size: int, groups: Sequence[str] | None, draws: int, rng: np.random.Generator) -> Iterable[Array]:
    """Indices of every draw."""
    if groups is None or not FEWEST <= len(set(groups)) < size:
        return rng.integers(0, size, (draws, size))
    which = np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(which == group) for group in range(which.max() + 1)]
    rows = rng.integers(0, len(members), (draws, len(members)))
    return [np.concatenate([members[group] for group in row]) for row in rows]


def _norms(x: Array) -> Array:
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


def _same_shape(q: Array, y: Array) -> None:
    if np.shape(q) != np.shape(y):
        raise ValueError(f"paired arrays differ in shape: {np.shape(q)} and {np.shape(y)}")
