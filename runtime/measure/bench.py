"""Latency alone: what each engine of some bundles takes for a call, a generation, its first call and its loading.

Calls of float and engine take turns in one process, after warm-up, so a machine that slows down slows both; speed-up is
the median over pairs with a bootstrap interval. Whole generations run in a process of their own, whose peak of memory
is the engine's. Engines have `threads` threads and keep to as many cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from quaver.runtime.denoise import initial_noise
from quaver.runtime.errors import QuaverError
from quaver.runtime.measure.compare import call_feeds, load_seconds
from quaver.runtime.measure.cost import environment, file_bytes
from quaver.runtime.measure.generation import generation_cost, on_cores, usable_cores
from quaver.runtime.measure.latency import time_pair
from quaver.runtime.measure.report import Subject
from quaver.runtime.measure.table import Row, markdown
from quaver.runtime.measure.units import counted
from quaver.runtime.progress import Progress
from quaver.runtime.session import FLOAT, Session, open_bundle

Report = dict[str, Any]


def bench(
    subjects: Sequence[Subject],
    *,
    batches: Sequence[int] = (1, 2, 8),
    runs: int = 15,
    warmup: int = 3,
    generations: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Time every engine beside its float model: U-Net calls of some batch sizes, whole generations, loading.

    Raises: ArtifactError when a bundle lacks something; EngineError when an engine cannot be opened.
    """
    if min((runs, warmup, *batches, threads or 1)) < 1 or generations < 0:
        raise QuaverError("bench: batches, runs, warm-up and threads are 1 or more, generations 0 or more")
    counts, engines = {"runs": runs, "warmup": warmup, "generations": generations}, []
    for subject in subjects:
        (progress or Progress()).say(f"bench {subject.name}")
        engines.append(time_engine(subject, batches, threads=threads, **counts))
    return {
        "environment": environment(),
        "threads": threads or len(usable_cores()),
        "runs": runs,
        "warmup": warmup,
        "generations": generations,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "engines": engines,
    }


def time_engine(
    subject: Subject, batches: Sequence[int], *, runs: int, warmup: int, generations: int, threads: int | None
) -> Report:
    """The times of one engine and its float model."""
    target, bundle = subject.settings.target, subject.bundle
    with ExitStack() as stack:
        stack.enter_context(on_cores(threads))
        reference = stack.enter_context(open_bundle(bundle, engine_file=FLOAT, threads=threads))
        judged = stack.enter_context(open_bundle(bundle, engine_file=target, threads=threads))
        calls = {str(batch): _pair(reference, judged, target, batch, runs, warmup) for batch in batches}
        prompts = (reference.family.example,)
        files = {FLOAT: bundle.float_unet, target: bundle.engine(target)}
        load = {name: load_seconds(path, threads) for name, path in files.items()}
    names = (FLOAT, target) if generations else ()
    return {
        "name": subject.name,
        "target": target,
        "calls": calls,
        "generations": {
            name: asdict(
                generation_cost(bundle, name, subject.sampling, prompts=prompts, threads=threads, runs=generations)
            )
            for name in names
        },
        "load_s": load,
        "bytes": {name: file_bytes(path) for name, path in files.items()},
    }


def _pair(reference: Session, judged: Session, target: str, batch: int, runs: int, warmup: int) -> Report:
    """Both engines on one random state of `batch` rows."""
    x_t, t = initial_noise(range(batch), reference.latent_shape), np.full(batch, reference.schedule.alpha_bar.size // 2)
    feeds = call_feeds(reference, (reference.family.example,) * batch, x_t, t)
    rng = np.random.default_rng(0)
    float_time, time, speedup = time_pair(
        lambda: reference.engine(feeds), lambda: judged.engine(feeds), rng=rng, runs=runs, warmup=warmup
    )
    return {FLOAT: asdict(float_time), target: asdict(time), "speedup": speedup.as_json()}


def bench_rows(report: Report) -> list[Row]:
    """A row per engine and thing that was timed, times in milliseconds."""
    rows: list[Row] = []
    for engine in report["engines"]:
        target = engine["target"]
        for batch, found in engine["calls"].items():
            row = _row(engine, f"call, batch {batch}", found[FLOAT], found[target])
            rows.append({**row, "Speed-up": found["speedup"], "Load (ms)": 1000 * engine["load_s"][target]})
        if whole := engine["generations"]:
            row = _row(engine, f"clip, {whole[target]['steps']} steps", whole[FLOAT], whole[target])
            row |= {"Speed-up": whole[FLOAT]["median_s"] / whole[target]["median_s"]}
            row |= {
                "Load (ms)": 1000 * whole[target]["load_s"],
                "Peak memory (MB)": whole[target]["peak_rss_bytes"] / 1e6,
            }
            rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _row(engine: Report, what: str, reference: Report, judged: Report) -> Row:
    return {
        "Engine": engine["name"],
        "What": what,
        "Float (ms)": 1000 * reference["median_s"],
        "Median (ms)": 1000 * judged["median_s"],
        "p95 (ms)": 1000 * judged["p95_s"],
        "First (ms)": 1000 * judged["first_s"],
        "File (MB)": engine["bytes"][engine["target"]] / 1e6,
    }


def describe(report: Report) -> str:
    """The machine and the table, as Markdown."""
    place = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    head = (
        f"{place}\n{counted(report['threads'], 'thread')}, {counted(report['runs'], 'pair of calls')} after"
        f" {report['warmup']} of warm-up, {counted(report['generations'], 'generation')};"
        f" load of the machine {_load(report)}\n"
    )
    return f"{head}\n{markdown(bench_rows(report))}".rstrip()


def _load(report: Report) -> str:
    return "unknown" if report["load_average"] is None else f"{report['load_average'][0]:.1f}"
