"""A chain that is killed again and again, against the same chain left alone: do both leave the same bytes?

    python -m benchmarks.killed [RECIPE] [--out engines/killed] [--kills 20] [--workers 1] [--seed 0] [--set ...]

`quaver run` on a shortened recipe goes twice into folders below --out that are emptied first. "alone" is undisturbed,
and measures how long each stage takes. "killed" is the same command, whose whole process group gets SIGKILL at a random
time after a stage began, up to what that stage took; then it is run again, and at the end left to finish. Every stage
is hit; one that had ended by then is asked for again (--force).

Compared are all files of both folders: their bytes, and of those with timings in them (`TIMED`) what has none.
Redone seconds are those spent in a stage beyond what it took alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.exporter.stages import STAGES
from quaver.runtime.artifact import digest_bytes

BETWEEN = "between stages"
REMAINS = (".tmp-*", ".shards")
NAMES = [stage.name for stage in STAGES]
COMMAND = (sys.executable, "-m", "quaver.exporter.cli", "run")
SHORT = (
    "prompts.count=8",
    "prompts.budget=2",
    "prompts.held_out=4",
    "sampling.steps=4",
    "capture.records=16",
    "capture.batch=2",
    'export.rules=[{match="mid_block.*.ff.*", weight="int4", activation="int8"}]',
    'reconstruct.method="adaround"',
    "reconstruct.iterations=20",
    "reconstruct.records=8",
    "reconstruct.batch=4",
    'build.compute_capabilities=["SM86"]',
    "stats.trajectories=8",
    "stats.batch=2",
    "validate.trajectories=4",
    "validate.batch=2",
    "validate.clips=1",
    "validate.latency_runs=2",
    "validate.latency_warmup=1",
    "validate.generations=0",
)
# What a file with timings has that must be the same. TensorRT-RTX writes numbers of the moment into a plan: two builds
# of one graph are never equal, so of a plan its layers must be.
TIMED: Mapping[str, Sequence[str]] = {
    "report.json": ("engines",),
    "report.html": (),  # a page made from it
    "unet.tensorrt-rtx.plan": (),
    "unet.tensorrt-rtx.plan.json": ("stamp", "built", "onnx", "coverage", "layers"),
    ".lock": (),  # the number of the process that wrote last
}


@dataclass
class Course:
    """What one run did: seconds in each stage, which stages ended or were current, and where it was killed."""

    seconds: dict[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    hit: str = ""  # a stage, or BETWEEN; "" when it ended by itself


def main(argv: Sequence[str] | None = None) -> None:
    """Print per stage how often it was hit and what that cost, and whether the bytes are the same."""
    parser = argparse.ArgumentParser(prog="benchmarks.killed")
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("engines/demo-w8a8.toml"))
    parser.add_argument("--out", type=Path, default=Path("engines/killed"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="section.key=value")
    given = parser.parse_args(argv)
    settings = [f"--set={override}" for override in (*SHORT, *given.overrides)]
    command = [*COMMAND, str(given.recipe), *settings, f"--workers={given.workers}"]
    alone, killed = given.out / "alone", given.out / "killed"
    for folder in (alone, killed):
        shutil.rmtree(folder, ignore_errors=True)
    seconds = follow([*command, f"--out={alone}"]).seconds
    courses, asked = disturb([*command, f"--out={killed}"], seconds, given.kills, np.random.default_rng(given.seed))
    hits = Counter(course.hit for course in courses if course.hit)
    rows: list[dict[str, Any]] = [
        {
            "stage": name,
            "alone s": took,
            "hit": hits[name],
            "asked for again": asked[name],
            "redone s": sum(course.seconds.get(name, 0.0) for course in courses) - took,
        }
        for name, took in seconds.items()
    ]
    differing, left = differences(alone, killed), [*leftovers(alone), *leftovers(killed)]
    figures = {
        "kills": hits.total(),
        "hits": hits,
        "workers": given.workers,
        "alone_s": sum(seconds.values()),
        "redone_s": sum(row["redone s"] for row in rows),
        "files": len(contents(alone)),
        "differing": differing,
        "left over": left,
    }
    reached = {
        f"{given.kills} kills, none of the stages spared": hits.total() >= given.kills and set(seconds) <= set(hits),
        "the same bytes as an undisturbed run": not differing,
        "nothing left over": not left,
    }
    publish("killed", rows, figures=figures, reached=reached)


def disturb(
    command: Sequence[str], seconds: Mapping[str, float], kills: int, rng: np.random.Generator
) -> tuple[list[Course], Counter[str]]:
    """Kill the command in every stage, `kills` times at least, and let it end: its courses, and stages asked for."""
    courses, asked, done, most = list[Course](), Counter[str](), set[str](), dict(seconds)
    todo = plan(list(seconds), kills, rng)
    while todo:
        again = [f"--force={todo[0]}"] if todo[0] in done else []
        asked.update([todo[0]] if again else [])
        course = follow([*command, *again], todo[0], rng.uniform(0, most[todo[0]]))
        courses.append(course)
        done |= course.done
        print(f"{todo[0]}: {course.hit or 'not'} hit, {len(todo)} to go", file=sys.stderr, flush=True)
        if course.hit == todo[0]:
            del todo[0]
        else:
            most[todo[0]] /= 2  # it was over before: the machine was slower when alone, or less of it was left
    return [*courses, follow(command)], asked


def plan(names: list[str], kills: int, rng: np.random.Generator) -> list[str]:
    """The stages to kill in, in their order: each once, then at random."""
    more = rng.choice(names, max(0, kills - len(names))).tolist()
    return sorted([*names, *more], key=names.index)


def follow(command: Sequence[str], stage: str = "", after: float = 0.0) -> Course:
    """Run a command in a process group of its own; a `stage` that begins is killed with all of it, `after` seconds."""
    course, running, since = Course(), "", 0.0
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        timer = threading.Timer(after, kill, [child.pid])
        for line in child.stderr or ():
            name, _, said = line.rstrip().partition(": ")
            if name not in NAMES:
                continue
            if said == "current" or name == running:
                course.done.add(name)
                course.seconds |= {name: time.monotonic() - since} if name == running else {}
                running = ""
                continue
            running, since = name, time.monotonic()
            if name == stage:
                timer.start()
        timer.cancel()
    if child.returncode == -signal.SIGKILL:
        course.seconds |= {running: time.monotonic() - since} if running else {}
        course.hit = running or BETWEEN
    elif child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}: {line}")
    return course


def kill(group: int) -> None:
    """End a process group, if it is still there."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def differences(one: Path, other: Path) -> list[str]:
    """The files of two folders that are not the same, timings apart."""
    ours, theirs = contents(one), contents(other)
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by name, without what takes its words from a clock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_bytes(timeless(path)) for path in files}


def timeless(path: Path) -> bytes:
    """The bytes of a file, or of what it has beside timings."""
    if path.name not in TIMED:
        return path.read_bytes()
    keys = TIMED[path.name]
    found = {key: json.loads(path.read_text())[key] for key in keys} if keys else {}
    return json.dumps([measured(engine) for engine in found["engines"]] if "engines" in found else found).encode()


def measured(engine: Mapping[str, Any]) -> list[Any]:
    """What a report says of an engine that no clock and no folder's name is in."""
    rows = [{key: value for key, value in row.items() if key != "added_s"} for row in engine["corrections"]]
    return [rows, *(engine[key] for key in ("sets", "sites", "coverage", "ranges", "sampling", "digests"))]


def leftovers(folder: Path) -> list[str]:
    """Temporary files, shards and parts of what is finished, in a folder and below it."""
    found = [path for pattern in REMAINS for path in folder.rglob(pattern)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


if __name__ == "__main__":
    main()
