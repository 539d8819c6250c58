from __future__ import annotations

import time

import numpy as np
import pytest

from quaver.runtime.measure import latency


def test_calls_take_turns_each_with_a_call_that_does_not_count():
    seen: list[str] = []
    a, b, _ = latency.time_pair(
        lambda: seen.append("a"), lambda: seen.append("b"), rng=np.random.default_rng(0), runs=3, warmup=2
    )
    assert "".join(seen) == "ab" * 2 + "aabb" * 3
    assert (a.runs, b.runs, a.warmup) == (3, 3, 2)


def test_speedup_is_the_ratio_of_two_known_delays():
    a, b, speedup = latency.time_pair(
        lambda: time.sleep(0.02), lambda: time.sleep(0.005), rng=np.random.default_rng(0), runs=9, warmup=1
    )
    assert a.median_s == pytest.approx(0.02, rel=0.25)
    assert speedup.low <= speedup.value <= speedup.high
    assert speedup.value == pytest.approx(a.median_s / b.median_s, rel=0.3)


def test_first_call_is_kept_apart():
    calls = iter([0.03, *[0.0] * 20])
    timing = latency.time_calls(lambda: time.sleep(next(calls)), runs=5, warmup=1)
    assert timing.first_s > 0.03 > timing.p95_s >= timing.median_s


def test_peak_memory_is_in_bytes_and_counts_a_large_array():
    block = np.ones(10_000_000)
    assert block.nbytes <= latency.peak_rss_bytes() < 1e12
