"""What 100,000 prompts on 1,000 workers would cost, from shards that were run here on one core each.

    python -m benchmarks.scale [BUNDLE] [--prompts 100000] [--workers 1000] [--shards 2] [--stages capture ranges stats]

One shard of each stage, how much longer the first one takes, which opens the graphs, the size of a file, and how long
the parent takes to read and merge one are measured. Seconds are of the processor, which other work on the machine does
not stretch. The rest is arithmetic:

    rounds  = ceil(shards / workers),     shards = ceil(prompts / batch); of ranges timesteps * passes over the edges
    time    = opening + rounds * seconds of a shard + shards * seconds of a merge

A shard of ranges has as many records as were drawn at its timesteps: those with the most are measured, for they make a
round as long as it is.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib import activations, capture, error_stats, evidence, ranges, trajectories
from quaver.calib.capture import CaptureSettings
from quaver.calib.comparison import Pair
from quaver.calib.error_stats import StatsSettings
from quaver.calib.fanout import Shard, Work, finish, open_work, plan
from quaver.calib.prompts import load_prompts
from quaver.calib.ranges import RangeSettings, observer_options, read_graph
from quaver.calib.records import load_records
from quaver.calib.trajectories import split_prompts
from quaver.runtime.bundle import Bundle
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

KEY = "sha256:scale"  # of no recipe: these files are thrown away
Merge = Callable[[Sequence[Path], Sequence[Shard]], object]


@dataclass(frozen=True)
class Job:
    """A stage: its work, the shards to measure after a first one, how many there would be, and how many run twice."""

    work: Work
    shards: Sequence[Shard]
    count: int
    again: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measured costs and what follows from them."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=2, help="how many are run for a measurement")
    parser.add_argument("--stages", nargs="+", choices=JOBS, default=list(JOBS))
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name in given.stages:
        describe, merge = JOBS[name]
        job = describe(Bundle(given.bundle.resolve()), given.prompts)
        row = {"stage": name, **measure(job.work, job.shards[: given.shards + 1], merge)}
        rows.append(row | scaled(row, job, given.workers))
    publish("scale", rows, figures={row["stage"]: row for row in rows}, reached={})


def capture_job(bundle: Bundle, prompts: int) -> Job:
    """Capture; drawn x_t are fetched from shards that run a second time."""
    work = Work(capture.OPEN, trajectories.Source(bundle, sampling(bundle)), KEY)
    shards = split_prompts(texts(bundle), 0, CaptureSettings().batch)
    count = math.ceil(prompts / CaptureSettings().batch)
    return Job(work, shards, count, min(CaptureSettings().records, count))


def stats_job(bundle: Bundle, prompts: int) -> Job:
    """Error statistics."""
    settings = StatsSettings()
    pair = Pair(bundle, settings.target, settings.neighbourhood, sampling(bundle))
    work = Work(error_stats.OPEN, pair, KEY)
    return Job(work, split_prompts(texts(bundle), 0, settings.batch), math.ceil(prompts / settings.batch))


def ranges_job(bundle: Bundle, prompts: int) -> Job:
    """Ranges, of the records that the bundle has: they do not grow with the prompts."""
    settings, records = RangeSettings(), load_records(bundle.samples)
    options = observer_options(settings)
    source = activations.Source(bundle, settings.observer, options, settings.batch, settings.values)
    shards = activations.plan_shards(source, records, read_graph(bundle.float_unet)[0], settings.memory)
    largest = sorted(shards, key=lambda shard: -int(np.isin(records.t, shard.timesteps).sum()))
    return Job(Work(ranges.OPEN, source, KEY), largest, len(shards))


def sampling(bundle: Bundle) -> SamplingSettings:
    """How the bundle is sampled."""
    with open_bundle(bundle, engine_file=FLOAT) as session:
        return sampling_of(session)


def texts(bundle: Bundle) -> list[str]:
    """The calibration prompts of the bundle."""
    return [row["text"] for row in load_prompts(bundle, "calib")]


def measure(work: Work, shards: Sequence[Shard], merge: Merge) -> dict[str, float]:
    """Seconds that a first shard takes longer than others, of a shard, of merging one; MB of its file; on one core."""
    with tempfile.TemporaryDirectory() as folder:
        started, seconds, files = time.process_time(), [], []
        with open_work(work, 1) as compute:
            for i, shard in enumerate(shards):
                task = plan(work, shard, Path(folder) / f"{i:06}.safetensors")
                finish(task, compute)
                seconds.append(time.process_time() - started)
                files.append(task.path)
                started = time.process_time()
        merge(files, shards)  # the first time loads what it needs
        started = time.process_time()
        merge(files, shards)
        merging = (time.process_time() - started) / len(files)
        size = float(np.mean([path.stat().st_size for path in files])) / 1e6
    one = float(np.median(seconds[1:]))
    return {"open s": seconds[0] - one, "shard s": one, "merge s": merging, "shard MB": size}


def scaled(row: Mapping[str, Any], job: Job, workers: int) -> dict[str, float]:
    """Shards, rounds, minutes and GB of a job on `workers`."""
    rounds = math.ceil(job.count / workers) + math.ceil(job.again / workers)
    total = row["open s"] + rounds * row["shard s"] + job.count * row["merge s"]
    return {"shards": job.count, "rounds": rounds, "min": total / 60, "GB": job.count * row["shard MB"] / 1e3}


JOBS: dict[str, tuple[Callable[[Bundle, int], Job], Merge]] = {
    "capture": (capture_job, lambda files, shards: capture.merge_shards(files)),
    "ranges": (ranges_job, ranges.merge_shards),
    "stats": (stats_job, lambda files, shards: evidence.merge_shards(files)),
}


if __name__ == "__main__":
    main()
