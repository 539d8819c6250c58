"""What 100,000 prompts on 1,000 workers would cost, from shards that were run here on one core each.

    python -m benchmarks.scale [BUNDLE] [--prompts 100000] [--workers 1000] [--shards 2]

Opening the graphs, one shard of capture and one of the error statistics, the size of their files, and how long the
parent takes to read and merge one are measured; the rest is arithmetic:

    rounds  = ceil(ceil(prompts / batch) / workers)
    time    = opening + rounds * seconds of a shard + shards * seconds of a merge
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib import capture, error_stats
from quaver.calib.error_stats import Pair, StatsSettings
from quaver.calib.fanout import Work, finish, open_work, plan
from quaver.calib.prompts import load_prompts
from quaver.calib.trajectories import Source, split_prompts
from quaver.runtime.bundle import Bundle
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

KEY = "sha256:scale"  # of no recipe: these files are thrown away
RECORDS = 1024  # drawn records, each from another shard at worst: those run a second time


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measured costs and what follows from them."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=2, help="how many are run for a measurement")
    given = parser.parse_args(argv)
    bundle, stats = Bundle(given.bundle.resolve()), StatsSettings()
    with open_bundle(bundle, engine_file=FLOAT) as session:
        sampling = sampling_of(session)
    rows: list[dict[str, Any]] = []
    for name, work, merge, records in (
        ("capture", Work(capture.OPEN, Source(bundle, sampling), KEY), capture.merge_shards, RECORDS),
        (
            "stats",
            Work(error_stats.OPEN, Pair(bundle, stats.target, stats.granularity, sampling), KEY),
            error_stats.merge_shards,
            0,
        ),
    ):
        texts = [row["text"] for row in load_prompts(bundle, "calib")][: stats.batch]
        row = {"stage": name, "steps": sampling.steps, **measure(work, texts * given.shards, stats.batch, merge)}
        rows.append(row | scaled(row, given.prompts, given.workers, batch=stats.batch, records=records))
    publish("scale", rows, figures={row["stage"]: row for row in rows}, reached={})


def measure(work: Work, texts: Sequence[str], batch: int, merge: Callable[[Iterable[Path]], Any]) -> dict[str, float]:
    """Seconds of opening, of a shard (after a first one) and of merging one, and the MB of its file, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with open_work(work, 1) as compute:
            opening, seconds, files = time.monotonic() - started, [], []
            for i, shard in enumerate(split_prompts([*texts[:batch], *texts], 0, batch)):
                task, started = plan(work, shard, Path(folder) / f"{i:06}.safetensors"), time.monotonic()
                finish(task, compute)
                seconds.append(time.monotonic() - started)
                files.append(task.path)
        started = time.monotonic()
        merge(iter(files))
        merging = (time.monotonic() - started) / len(files)
        size = float(np.mean([path.stat().st_size for path in files])) / 1e6
    return {"open s": opening, "shard s": float(np.median(seconds[1:])), "merge s": merging, "shard MB": size}


def scaled(row: dict[str, Any], prompts: int, workers: int, *, batch: int, records: int) -> dict[str, float]:
    """Shards, rounds, minutes and GB for `prompts` on `workers`."""
    shards = math.ceil(prompts / batch)
    rounds = math.ceil(shards / workers) + math.ceil(min(records, shards) / workers)
    total = row["open s"] + rounds * row["shard s"] + shards * row["merge s"]
    return {"shards": shards, "rounds": rounds, "min": total / 60, "GB": shards * row["shard MB"] / 1e3}


if __name__ == "__main__":
    main()
