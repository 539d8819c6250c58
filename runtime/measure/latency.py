"""Seconds per call, with what is needed to believe them.

Warm-up calls are made and dropped. Two engines are timed in one process, taking turns (A B A B ...), so that a machine
that slows down slows both; their ratio is the median over pairs with a bootstrap interval. In each turn a call that
does not count goes first: the other engine's threads have stopped spinning and the caches are one's own, as they are
in a sampler's loop. The first call and the loading are reported apart, since a device pays them once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quaver.runtime.measure.quality import Interval, bootstrap

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over `runs` calls after `warmup` dropped ones; `first_s` is the very first call."""

    median_s: float
    p95_s: float
    first_s: float
    runs: int
    warmup: int


def seconds(call: Call) -> float:
    """Wall-clock seconds of one `call()`."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_calls(call: Call, *, runs: int = 20, warmup: int = 3) -> Timing:
    """Time `call()` `runs` times after `warmup` calls that do not count."""
    first, samples = _alternate((call,), runs, warmup)
    return _timing(first[0], samples[0], warmup)


def time_pair(
    a: Call, b: Call, *, rng: np.random.Generator, runs: int = 20, warmup: int = 3
) -> tuple[Timing, Timing, Interval]:
    """Time two calls in turns; returns both timings and the speed-up seconds(a) / seconds(b), median over pairs."""
    first, (times_a, times_b) = _alternate((a, b), runs, warmup)
    speedup = bootstrap(lambda x, y: np.median(x / y), times_a, times_b, rng=rng)
    return _timing(first[0], times_a, warmup), _timing(first[1], times_b, warmup), speedup


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource
    import sys
    from pathlib import Path

    status = Path("/proc/self/status")  # Linux: getrusage's peak is no less than what the parent held at the fork
    if status.exists() and (found := [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]):
        return int(found[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _alternate(calls: tuple[Call, ...], runs: int, warmup: int) -> tuple[list[float], np.ndarray]:
    first = [seconds(call) for call in calls]
    for _ in range(max(warmup - 1, 0)):
        for call in calls:
            call()
    timed = _second_call if len(calls) > 1 else seconds
    return first, np.array([[timed(call) for call in calls] for _ in range(runs)]).T


def _second_call(call: Call) -> float:
    call()
    return seconds(call)


def _timing(first: float, samples: np.ndarray, warmup: int) -> Timing:
    return Timing(float(np.median(samples)), float(np.quantile(samples, 0.95)), first, len(samples), warmup)
