"""Range estimators: from the values an edge carries to the range [amin, amax] its codes should cover.

    minmax        amin, amax of everything seen: nothing is clipped
    percentile    the range that leaves (100 - p) / 2 percent outside at either end
    mse           the range that minimises sum |x - fake_quant(x)|^p over a histogram

Each is `init / update / merge / finish` on one state: extremes and a histogram of bounded size. Its bins have a width
of a power of two and lie on a fixed grid around zero, so it is widened by adding neighbours up, exactly. Hence a merge
is exact, associative and independent of the order; shards cannot change a range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quaver.calib.quant import UINT8, Format, fake_quant, scale_zero_point

BINS = 4096  # over [-2^e, 2^e): at least a quarter of them lie within the extremes
_SMALLEST = -100  # exponent of an edge that has carried zeros only
_COARSE, _FINE = 0.1, 0.02  # steps of the share of an extreme that mse tries, from 1 down to 0.2


@dataclass(frozen=True)
class Observed:
    """What was seen of one edge: extremes, and of the values, if they were, counts int64 [BINS] over +-2^exponent."""

    amin: float = np.inf
    amax: float = -np.inf
    counts: np.ndarray | None = None
    exponent: int = _SMALLEST


@dataclass(frozen=True)
class ObserverOptions:
    """What `finish` may need: share of values to keep [percent]; format and power of the error to minimise."""

    percentile: float = 99.99
    format: Format = UINT8
    power: float = 2.0


@dataclass(frozen=True)
class Observer:
    """A range estimator; `histogram` says whether it must see the values, or their extremes will do."""

    histogram: bool
    finish: Callable[[Observed, ObserverOptions], tuple[float, float]]


def init() -> Observed:
    """Nothing seen yet."""
    return Observed()


def extremes(amin: float, amax: float) -> Observed:
    """An edge of which only the extremes are known."""
    return Observed(float(amin), float(amax))


def update(state: Observed, values: np.ndarray) -> Observed:
    """See `values`, float32 of any shape, all finite."""
    low, high = float(values.min()), float(values.max())
    peak = max(-low, high)
    exponent = max(int(np.frexp(peak)[1]), _SMALLEST) if peak > 0 else _SMALLEST
    index = np.floor(np.ldexp(values.ravel(), _per_unit(exponent))).astype(np.int32) + BINS // 2
    counts = np.bincount(index, minlength=BINS).astype(np.int64)
    return merge(state, Observed(low, high, counts, exponent))


def merge(a: Observed, b: Observed) -> Observed:
    """Both together."""
    exponent = max(a.exponent, b.exponent)
    counts = [_widen(state.counts, exponent - state.exponent) for state in (a, b) if state.counts is not None]
    total = np.sum(counts, axis=0) if counts else None
    return Observed(min(a.amin, b.amin), max(a.amax, b.amax), total, exponent)


def finish_minmax(state: Observed, options: ObserverOptions) -> tuple[float, float]:
    """The extremes."""
    return state.amin, state.amax


def finish_percentile(state: Observed, options: ObserverOptions) -> tuple[float, float]:
    """The values at both ends of the central `options.percentile` percent, within a bin, never beyond the extremes."""
    counts = _counts(state)
    share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    tail = (1 - options.percentile / 100) / 2
    edges = _edges(state)
    # The last edge with at most `tail` below it, the first with at most `tail` above it: never cut too short.
    low = edges[np.flatnonzero(share <= tail)[-1]]
    high = edges[np.flatnonzero(share >= 1 - tail)[0]]
    return max(float(low), state.amin), min(float(high), state.amax)


def finish_mse(state: Observed, options: ObserverOptions) -> tuple[float, float]:
    """The range of least error, the upper end searched first; the bins stand for their centres."""
    counts, edges = _counts(state), _edges(state)
    seen = np.flatnonzero(counts)
    centres = np.clip((edges[:-1] + edges[1:])[seen] / 2, state.amin, state.amax)
    weight = counts[seen] / counts.sum()

    def error(low: float, high: float) -> float:
        scale, zero = scale_zero_point(np.asarray(low), np.asarray(high), options.format)
        return float(weight @ np.abs(centres - fake_quant(centres, scale, zero, options.format)) ** options.power)

    def cut(end: float, share: float) -> float:
        return min(max(end * share, state.amin), state.amax)  # a share of an end may lie beyond the other one

    high = cut(state.amax, _best_share(lambda share: error(state.amin, cut(state.amax, share))))
    low = cut(state.amin, _best_share(lambda share: error(min(cut(state.amin, share), high), high)))
    return min(low, high), high


def _best_share(error: Callable[[float], float]) -> float:
    """The share in [0.2, 1] of least error, found on a coarse grid and then around it."""
    best = min(1.0 - _COARSE * np.arange(9), key=error)
    around = best + _FINE * np.arange(-4, 5)
    return float(min(around[around <= 1.0], key=error))


OBSERVERS = {
    "minmax": Observer(False, finish_minmax),
    "percentile": Observer(True, finish_percentile),
    "mse": Observer(True, finish_mse),
}


def _counts(state: Observed) -> np.ndarray:
    if state.counts is None:
        raise ValueError("this observer needs the values of an edge, not only its extremes")
    return state.counts


def _widen(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts over a range that is 2^doublings as wide."""
    index = ((np.arange(BINS) - BINS // 2) >> min(doublings, 31)) + BINS // 2
    wide = np.zeros(BINS, np.int64)
    np.add.at(wide, index, counts)
    return wide


def _edges(state: Observed) -> np.ndarray:
    """The BINS + 1 limits of the bins."""
    return np.ldexp(np.arange(BINS + 1) - BINS // 2, -_per_unit(state.exponent))


def _per_unit(exponent: int) -> int:
    """log2 of the number of bins per unit."""
    return int(np.log2(BINS)) - 1 - exponent
