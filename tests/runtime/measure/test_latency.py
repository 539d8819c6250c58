from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from quaver.runtime.measure import latency


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], None]]:
    """Calls that take the seconds they are told, one after another and then the last again, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def make(*seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def call() -> None:
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return call

    return make


def test_calls_take_turns_each_with_a_call_that_does_not_count():
    seen: list[str] = []
    a, b, _ = latency.time_pair(
        lambda: seen.append("a"), lambda: seen.append("b"), rng=np.random.default_rng(0), runs=3, warmup=2
    )
    assert "".join(seen) == "ab" * 2 + "aabb" * 3
    assert (a.runs, b.runs, a.warmup) == (3, 3, 2)


def test_one_engine_alone_is_called_as_often_as_it_is_timed():
    seen: list[str] = []
    latency.time_calls(lambda: seen.append("a"), runs=4, warmup=2)
    assert len(seen) == 6


def test_speedup_is_the_ratio_of_two_known_times(lasting):
    a, b, speedup = latency.time_pair(lasting(0.03), lasting(0.02), rng=np.random.default_rng(0), runs=9, warmup=1)
    assert (a.median_s, b.median_s) == pytest.approx((0.03, 0.02))
    assert [speedup.low, speedup.value, speedup.high] == pytest.approx([1.5] * 3)


def test_a_machine_that_slows_down_slows_both_and_the_ratio_stays(lasting):
    slowing = [1.1**i for i in range(40)]
    a, b, speedup = latency.time_pair(
        lasting(*(2 * s for s in slowing)), lasting(*slowing), rng=np.random.default_rng(0), runs=10, warmup=1
    )
    assert speedup.value == pytest.approx(2.0)
    assert a.p95_s > 1.5 * a.median_s and b.p95_s > 1.5 * b.median_s


def test_the_first_call_is_kept_apart(lasting):
    timing = latency.time_calls(lasting(5.0, 1.0), runs=5, warmup=1)
    assert (timing.first_s, timing.median_s, timing.p95_s) == pytest.approx((5.0, 1.0, 1.0))


def test_peak_memory_is_in_bytes_and_counts_a_large_array():
    block = np.ones(10_000_000)
    assert block.nbytes <= latency.peak_rss_bytes() < 1e12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have only getrusage")
def test_peak_memory_is_of_the_process_and_not_of_its_parent():
    block = np.ones(40_000_000)
    asked = "from quaver.runtime.measure.latency import peak_rss_bytes; print(peak_rss_bytes())"
    child = int(subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout)
    assert child < block.nbytes
