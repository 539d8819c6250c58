"""Which of two ways is better, clip by clip: estimates with intervals, and when an order between them counts.

    d = FD(a) - FD(b), or mean(SNR_b - SNR_a)       on the same resampled clips (paired bootstrap)

a before b holds when the interval of d lies below zero and d is negative for every calibration seed; it is reversed
when both say the contrary, and undecided otherwise. The Frechet distance of resampled clips is larger than that of the
clips (repeats take variance away), by about as much for every cell: the mean excess is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quaver.runtime.measure.frechet import frechet_gaussians, moments
from quaver.runtime.measure.quality import Interval

HOLDS, REVERSED, UNDECIDED = "holds", "reversed", "undecided"


@dataclass(frozen=True)
class Measured:
    """One measure of a cell, lower is better: of all clips, of resampled ones [B], and of each calibration seed [S]."""

    value: float
    resampled: np.ndarray
    seeds: np.ndarray

    @property
    def interval(self) -> Interval:
        """The value with its 95% bootstrap bounds, the bias of resampling taken off."""
        low, high = np.quantile(self.resampled - self.resampled.mean(), [0.025, 0.975])
        return Interval(self.value, self.value + float(low), self.value + float(high))


@dataclass(frozen=True)
class Order:
    """Whether `first` is better than `second`: the difference of a measure, its interval, and what seeds say."""

    first: str
    second: str
    difference: Interval
    verdict: str


def resamples(clips: int, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [draws, clips] that every cell is resampled with."""
    return rng.integers(0, clips, (draws, clips))


def frechet(features: np.ndarray, real: np.ndarray, picks: np.ndarray, seeds: Sequence[np.ndarray]) -> Measured:
    """Frechet distance of `features` [N, D] to `real` [N, D], clip i against clip i of the same caption."""

    def at(index: np.ndarray) -> float:
        return frechet_gaussians(*moments(features[index]), *moments(real[index]))

    return Measured(at(np.arange(len(features))), np.array([at(i) for i in picks]), np.array([at(i) for i in seeds]))


def mean(values: np.ndarray, picks: np.ndarray, seeds: Sequence[np.ndarray]) -> Measured:
    """Mean of `values` [N], one a clip."""
    return Measured(float(values.mean()), values[picks].mean(axis=1), np.array([values[i].mean() for i in seeds]))


def order(cells: Mapping[str, Measured], first: str, second: str) -> Order:
    """Whether one cell is better than another, where lower is better."""
    a, b = cells[first], cells[second]
    found = Measured(a.value - b.value, a.resampled - b.resampled, a.seeds - b.seeds).interval
    if found.high < 0 and (a.seeds < b.seeds).all():
        return Order(first, second, found, HOLDS)
    if found.low > 0 and (a.seeds > b.seeds).all():
        return Order(first, second, found, REVERSED)
    return Order(first, second, found, UNDECIDED)
