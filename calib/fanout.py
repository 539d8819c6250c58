"""Shards: one function over many pieces of work, in this process, over processes, or over a Ray cluster.

    result = merge(f(shard_1), ..., f(shard_n)),       merge associative, taken in the order of the shards

Which shards there are follows from the recipe and never from who runs them, and they are merged in their order, so the
number of workers cannot change a byte of the result. What a shard gives is a file: written whole or not at all, stamped
with the digests of the recipe and of the shard. A shard whose file is there is not run again, so a worker that dies
costs the shards it had in hand and a run that is killed goes on where it stood; a file of another recipe is replaced.

Processes are those of `concurrent.futures`, started afresh, with the cores shared out among them. On a cluster a shard
is one of Ray's tasks on one core; Ray places it, and runs it again when its node is lost. Every node must have quaver
installed and see the bundle under the same path.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.artifact import Stamp, digest_json, read_stamp, save_tensors
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.lazy import need
from quaver.runtime.plug import plug
from quaver.runtime.progress import Progress

KIND = "shard"
RETRIES = 3  # times a shard is run again after a worker died on it
Shard = Any  # a frozen dataclass of plain values
Result = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]  # tensors and a JSON-able rest
Compute = Callable[[Shard], Result]


@dataclass(frozen=True)
class Fanout:
    """Where shards run: a choice of the moment, which no digest contains."""

    workers: int = 1  # processes; 1: this one
    ray: str = ""  # address of a Ray cluster ("auto": the one this machine belongs to); "": none

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise RecipeError(f"--workers is {self.workers}, expected 1 or more")
        if self.ray and self.workers > 1:
            raise RecipeError("--workers and --ray exclude each other: the size of the cluster says how many run")


HERE = Fanout()


@dataclass(frozen=True)
class Work:
    """What is done to shards: `open(given, threads=)` is a context manager of the function from shard to result."""

    open: str  # "module:function", so that any process finds it
    given: Any  # hashable and picklable, with absolute paths
    key: str  # digest of all that the results depend on beside the shard


@dataclass(frozen=True)
class Task:
    """A shard and its file."""

    shard: Shard
    path: Path
    stamp: Stamp


def map_shards(
    work: Work,
    shards: Sequence[Shard],
    folder: Path,
    *,
    fanout: Fanout = HERE,
    progress: Progress,
    label: str,
    first: int = 0,
) -> Iterator[Path]:
    """The files of all shards in their order, each as soon as it and those before it are there.

    Those before number `first` are not asked for any more: the caller has what they gave.
    Raises: EngineError when workers die again and again on the same shard; whatever `work` raises.
    """
    tasks = [plan(work, shard, Path(folder).resolve() / f"{i:06}.safetensors") for i, shard in enumerate(shards)]
    tasks, total = tasks[first:], len(tasks)
    there = {task.path for task in tasks if is_done(task)}
    if first or there:
        progress.say(f"{label}  {first + len(there)} of {total} shards are there already")
    with progress.bar(total, f"{label}, shards") as bar, closing(run_tasks(work, tasks, there, fanout)) as done:
        bar.step(first)
        for task in tasks:
            if task.path not in there:
                next(done)
            bar.step()
            yield task.path


def plan(work: Work, shard: Shard, path: Path) -> Task:
    """A shard with its place and the stamp its file gets."""
    return Task(shard, path, Stamp(KIND, settings=digest_json({"work": work.key, "shard": asdict(shard)})))


def is_done(task: Task) -> bool:
    """Whether the file of a shard is there, whole, and of this recipe."""
    return read_stamp(task.path) == task.stamp


def clear(folder: Path) -> None:
    """Remove the files of shards, once what they were for is written."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()  # when it is empty


def run_tasks(work: Work, tasks: Sequence[Task], there: set[Path], fanout: Fanout) -> Generator[None, None, None]:
    """Run the tasks whose files are not `there`; yields when the first of them is done, the second, and so on."""
    todo = [task for task in tasks if task.path not in there]
    if fanout.ray:
        return over_ray(work, todo, fanout.ray)
    return over_processes(work, todo, fanout.workers) if fanout.workers > 1 else in_process(work, todo)


def in_process(work: Work, todo: Sequence[Task]) -> Generator[None, None, None]:
    """One after another, with all cores."""
    with open_work(work, None) as compute:
        for task in todo:
            finish(task, compute)
            yield


def over_processes(work: Work, todo: Sequence[Task], workers: int) -> Generator[None, None, None]:
    """Over `workers` processes; when one dies, a new pool takes what is left."""
    spawn, left = multiprocessing.get_context("spawn"), RETRIES
    threads = max(1, cores() // workers)
    while todo:
        done, broken = 0, None
        pool = ProcessPoolExecutor(min(workers, len(todo)), spawn, initializer=follow_parent)
        try:
            for future in [pool.submit(run_task, work, task, threads) for task in todo]:
                future.result()
                done += 1
                yield
        except BrokenProcessPool as error:
            broken = error
        finally:
            pool.shutdown(cancel_futures=True)
        while done < len(todo) and is_done(todo[done]):
            done += 1
            yield
        left = RETRIES if done else left - 1
        if broken and left < 0:
            raise died(todo[0]) from broken
        todo = todo[done:]


def over_ray(work: Work, todo: Sequence[Task], address: str) -> Generator[None, None, None]:
    """Over a Ray cluster, a task of one core each; Ray runs a task again when its worker or its node dies."""
    ray = need("ray", extra="ray")
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"no Ray cluster at {address} ({error}): start one with 'ray start --head', or leave --ray out"
        ) from error
    try:
        remote, queue, refs = ray.remote(max_retries=RETRIES, num_cpus=1)(run_task), iter(todo), deque[Any]()
        for task in todo:
            # No more than twice what can run: on an error these end by themselves. Ray aborts the whole process when a
            # task that is being cancelled comes to its end.
            ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 0))) - len(refs)
            refs.extend(remote.remote(work, next_task, 1) for next_task in islice(queue, max(0, ahead)))
            try:
                ray.get(refs.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # what the shard raised, without the cluster around it
            except ray.exceptions.RayError as error:
                raise died(task) from error
            yield
    finally:
        if ours:
            ray.shutdown()


def run_task(work: Work, task: Task, threads: int) -> None:
    """Run one task in a worker; nothing to do when an earlier try came to its end."""
    if not is_done(task):
        finish(task, opened(work, threads)[0])


def finish(task: Task, compute: Compute) -> None:
    """Compute a shard and write its file."""
    tensors, meta = compute(task.shard)
    save_tensors(task.path, tensors, task.stamp, meta=meta)


def open_work(work: Work, threads: int | None) -> AbstractContextManager[Compute]:
    """The function of `work`, with what it keeps open."""
    return plug(work.open, {}, what="shard function")(work.given, threads=threads)


@lru_cache(maxsize=1)
def opened(work: Work, threads: int) -> tuple[Compute, ExitStack]:
    """The function of `work` in a worker, opened once: it stays open until the process ends or other work comes."""
    stack = ExitStack()
    return stack.enter_context(open_work(work, threads)), stack


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follow_parent() -> None:
    """Make a worker end without a word at Ctrl-C, and when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def died(task: Task) -> EngineError:
    """The error about a shard that no worker survives."""
    return EngineError(
        f"workers died {RETRIES + 1} times over shard {task.path.stem}, killed for memory or crashed: use fewer"
        " --workers, or lower the batch in the recipe; shards that ended are kept, and the same command goes on"
    )
