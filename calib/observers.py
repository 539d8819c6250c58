"""Range estimators: from the values an edge carries to the range [amin, amax] its codes should cover.

    minmax        amin, amax of everything seen: nothing is clipped
    percentile    the range that leaves (100 - p) / 2 percent outside at either end
    mse           the range that minimises sum |x - fake_quant(x)|^p over a histogram
    entropy       the threshold T on |x| that minimises KL(P || Q), cut to the extremes: [max(amin, -T), min(amax, T)]

For entropy P is the histogram of |x| up to T, what lies beyond added to its last bin, and Q the same without that,
merged into 2^(bits - 1) levels and spread again over the bins that are not empty: the calibrator of TensorRT (Migacz,
"8-bit inference with TensorRT", GTC 2017).

Each is `init / update / merge / finish` on one state: extremes and a histogram of bounded size. Its bins have a width
of a power of two and lie on a fixed grid around zero, so it is widened by adding neighbours up, exactly. Hence a merge
is exact, associative and independent of the order; shards cannot change a range. `pack` and `unpack` carry states
through a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

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
    """What `finish` may need: share of values to keep [percent]; codes, and the power of their error to minimise."""

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
    scale = np.float32(2.0 ** _per_unit(exponent))  # a power of two: the product is exact
    index = np.floor(values.ravel() * scale).astype(np.intp) + BINS // 2
    counts = np.bincount(index, minlength=BINS).astype(np.int64, copy=False)
    return merge(state, Observed(low, high, counts, exponent))


def merge(a: Observed, b: Observed) -> Observed:
    """Both together."""
    exponent = max(a.exponent, b.exponent)
    counts = [_widen(state.counts, exponent - state.exponent) for state in (a, b) if state.counts is not None]
    total = reduce(np.add, counts) if counts else None
    return Observed(min(a.amin, b.amin), max(a.amax, b.amax), total, exponent)


def merge_all(a: Sequence[Observed], b: Sequence[Observed]) -> list[Observed]:
    """Both together, edge by edge [E]."""
    return list(map(merge, a, b))


def pack(states: Sequence[Observed]) -> dict[str, np.ndarray]:
    """States [E], all with values or all without, as arrays: amin, amax, exponent [E], and counts, deflated bytes."""
    tensors = {name: np.array([getattr(state, name) for state in states]) for name in ("amin", "amax", "exponent")}
    counts = [state.counts.tobytes() for state in states if state.counts is not None]
    if counts:
        tensors["counts"] = np.frombuffer(zlib.compress(b"".join(counts), 1), np.uint8)
    return tensors


def unpack(tensors: Mapping[str, np.ndarray]) -> list[Observed]:
    """The states [E] that `pack` made arrays of."""
    low, high, exponent = (tensors[name].tolist() for name in ("amin", "amax", "exponent"))
    counts: Sequence[np.ndarray | None] = [None] * len(low)
    if "counts" in tensors:
        counts = list(np.frombuffer(zlib.decompress(tensors["counts"].tobytes()), np.int64).reshape(-1, BINS))
    return [Observed(*state) for state in zip(low, high, counts, exponent, strict=True)]


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


def finish_entropy(state: Observed, options: ObserverOptions) -> tuple[float, float]:
    """The range cut at the threshold of least divergence; the whole range when fewer bins than levels are in use."""
    half = _counts(state).reshape(2, -1)
    counts = (half[1] + half[0, ::-1])[: int(np.ceil(max(-state.amin, state.amax) * 2.0 ** _per_unit(state.exponent)))]
    levels = 1 << (options.format.bits - 1)
    if len(counts) <= levels:
        return state.amin, state.amax
    loss = divergences(counts, levels)
    bins = levels + len(loss) - 1 - int(loss[::-1].argmin())  # of equals the widest
    end = float(np.ldexp(bins, -_per_unit(state.exponent)))
    return max(state.amin, -end), min(state.amax, end)


def divergences(counts: np.ndarray, levels: int) -> np.ndarray:
    """KL(P || Q) [N - levels + 1] when a histogram [N] of |x| is cut after `levels`, `levels` + 1, ..., N bins.

    The bin at 0 counts like its neighbour: every threshold codes it alike, and it may hold most of the values. Sums
    over a level are differences of cumulative sums, so a threshold costs O(levels). Infinite where the last bin is
    empty in Q and not in P.
    """
    counts = np.concatenate([counts[1:2], counts[1:]]).astype(np.float64)
    total = counts.sum()
    if not total:
        return np.zeros(len(counts) - levels + 1)
    sums, filled = (np.concatenate([[0.0], np.cumsum(c)]) for c in (counts, counts > 0))
    cut = np.arange(levels, len(counts) + 1)
    ends = -((-cut[:, None] * np.arange(levels + 1)) // levels)  # bins j with floor(j levels / cut) = level
    mass, width = np.diff(sums[ends]), np.diff(filled[ends])
    density = np.divide(mass, width, out=np.ones_like(mass), where=mass > 0)  # of Q in the bins of a level
    beyond, last = total - sums[cut], counts[cut - 1]
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])[cut] - _x_log_x(last) + _x_log_x(last + beyond)
    cross = (mass * np.log(density)).sum(axis=1) + beyond * np.log(density[:, -1])
    kept = np.where(sums[cut] > 0, sums[cut], 1.0)
    loss = (entropy - cross) / total + np.log(kept / total)
    return np.where((last == 0) & (beyond > 0), np.inf, loss)


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(x, out=np.zeros_like(x), where=x > 0)


def _best_share(error: Callable[[float], float]) -> float:
    """The share in [0.2, 1] of least error, found on a coarse grid and then around it."""
    best = min(1.0 - _COARSE * np.arange(9), key=error)
    around = best + _FINE * np.arange(-4, 5)
    return float(min(around[around <= 1.0], key=error))


OBSERVERS = {
    "minmax": Observer(False, finish_minmax),
    "percentile": Observer(True, finish_percentile),
    "mse": Observer(True, finish_mse),
    "entropy": Observer(True, finish_entropy),
}


def _counts(state: Observed) -> np.ndarray:
    if state.counts is None:
        raise ValueError("this observer needs the values of an edge, not only its extremes")
    return state.counts


def _widen(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts over a range that is 2^doublings as wide; past a bin on either side of zero nothing changes."""
    if not doublings:
        return counts
    together = counts.reshape(-1, 1 << min(doublings, int(np.log2(BINS)) - 1)).sum(axis=1)
    return np.pad(together, (BINS - len(together)) // 2)


def _edges(state: Observed) -> np.ndarray:
    """The BINS + 1 limits of the bins."""
    return np.ldexp(np.arange(BINS + 1) - BINS // 2, -_per_unit(state.exponent))


def _per_unit(exponent: int) -> int:
    """log2 of the number of bins per unit."""
    return int(np.log2(BINS)) - 1 - exponent
