from __future__ import annotations

import os
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import QuaverError
from quaver.runtime.measure import generation, latency
from quaver.runtime.sample import SamplingSettings

SAMPLING = SamplingSettings(steps=3, guidance=2.0)
PROMPTS = ("a soft note", "a cello")


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Bundle:
    rows = [{"id": str(i), "text": text, "split": split} for i, (text, split) in enumerate(
        (("a drum", "calib"), ("a soft note", "validate")))]  # fmt: skip
    save_lines(tiny_bundle.prompts, rows, Stamp("prompts"))
    return tiny_bundle


def test_a_generation_is_measured_in_a_process_whose_memory_is_its_own(bundle: Bundle):
    block = np.ones(60_000_000)  # 480 MB that are this process's and not the engine's
    found = generation.generation_cost(bundle, "ort-cpu", SAMPLING, prompts=PROMPTS, threads=1, runs=3, warmup=1)
    assert (found.engine, found.batch, found.steps, found.threads, found.runs) == ("ort-cpu", 2, 3, 1, 3)
    assert 0 < found.median_s <= found.p95_s and found.first_s > 0 and found.load_s > 0
    assert 0 < found.idle_rss_bytes < found.peak_rss_bytes < block.nbytes
    assert found.engine_bytes == bundle.qdq("ort-cpu").stat().st_size


def test_what_the_process_says_is_what_the_user_reads(bundle: Bundle):
    with pytest.raises(QuaverError, match=r"measuring tensorrt-rtx failed: .*has no engine 'tensorrt-rtx'.*quaver run"):
        generation.generation_cost(bundle, "tensorrt-rtx", SAMPLING, runs=1)
    with pytest.raises(QuaverError, match=r"measuring ort-cpu failed: no .*error_stats.*quaver stats RECIPE"):
        generation.generation_cost(bundle, "ort-cpu", SAMPLING, correct="mean", runs=1)


def test_the_figures_are_those_of_whole_generations(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """On a clock on which opening takes 2 s, the first generation 5 s and the others 1, 1, 3 s."""
    now, taken, drawn = [0.0], [5.0, 1.0, 1.0, 3.0], []
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    opening = generation.open_bundle

    def slowly(*args, **kwargs):
        now[0] += 2.0
        return opening(*args, **kwargs)

    def draw(session, prompts, sampling, correct):
        drawn.append((tuple(prompts), sampling, correct))
        now[0] += taken.pop(0)

    monkeypatch.setattr(generation, "draw", draw)
    monkeypatch.setattr(generation, "open_bundle", lambda *args, **kwargs: _Slow(slowly, now, args, kwargs))
    asked = {"bundle": str(bundle.root), "engine": "float", "sampling": asdict(SAMPLING), "correct": "none"}
    found = generation.measure({**asked, "prompts": list(PROMPTS), "threads": 1, "runs": 3, "warmup": 1})
    assert (found.load_s, found.first_s, found.median_s) == pytest.approx((2.0, 5.0, 1.0))
    assert found.p95_s == pytest.approx(np.quantile([1, 1, 3], 0.95))
    assert set(drawn) == {(PROMPTS, SAMPLING, "none")}


def test_the_bytes_of_an_engine_that_is_a_plan_are_the_plans(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    opening = generation.open_bundle
    monkeypatch.setattr(generation, "open_bundle", lambda bundle, **_: opening(bundle, engine_file="float"))
    monkeypatch.setattr(generation, "draw", lambda *_: None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    bundle.plan("tensorrt-rtx").write_bytes(b"7 bytes")
    asked = {"bundle": str(bundle.root), "engine": "tensorrt-rtx", "sampling": asdict(SAMPLING), "correct": "none"}
    found = generation.measure({**asked, "prompts": list(PROMPTS), "threads": 1, "runs": 1, "warmup": 1})
    assert found.engine_bytes == 7


class _Slow:
    """A context whose entering takes the time."""

    def __init__(self, opening, now, args, kwargs) -> None:
        self.opening, self.args, self.kwargs = opening, args, kwargs

    def __enter__(self):
        self.context = self.opening(*self.args, **self.kwargs)
        return self.context.__enter__()

    def __exit__(self, *error):
        return self.context.__exit__(*error)


def test_the_prompt_is_one_that_was_set_aside(bundle: Bundle):
    assert generation.first_prompt(bundle) == "a soft note"
