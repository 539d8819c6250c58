"""Shards: their files, what is run again and what is not, workers and nodes that die, and that no result shows it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.calib.capture import CaptureSettings, capture
from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.calib.fanout import Fanout, Work, clear, map_shards
from quaver.calib.moments import joint_of, merge_joint, no_joint
from quaver.calib.observers import init, merge, update
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings

HERE, TWO = Fanout(), Fanout(workers=2)


@dataclass(frozen=True)
class Number:
    """A shard: a number to square, how long that takes, and how many of its workers are killed before one lives."""

    value: int
    seconds: float = 0.0
    deaths: int = 0


@contextmanager
def open_square(log: str, *, threads: int | None) -> Iterator[Any]:
    """Squares; every call leaves a file in the folder `log`."""

    def square(shard: Number) -> Any:
        if shard.value < 0:
            raise EngineError(f"{shard.value} is negative")
        calls = list(Path(log).glob(f"{shard.value}-*"))
        (Path(log) / f"{shard.value}-{len(calls)}-{os.getpid()}").touch()
        time.sleep(shard.seconds)
        if len(calls) < shard.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": np.array([shard.value**2])}, {"threads": threads}

    yield square


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "log").mkdir()
    return Work(f"{__name__}:open_square", str(tmp_path / "log"), "sha256:recipe")


def squares(work: Work, shards: list[Number], folder: Path, fanout: Fanout = HERE) -> list[int]:
    files = map_shards(work, shards, folder, fanout=fanout, progress=quiet(), label="squares")
    return [int(load_tensors(path, "shard")[0]["square"][0]) for path in files]


def calls(work: Work) -> list[int]:
    return sorted(int(path.name.partition("-")[0]) for path in Path(work.given).iterdir())


@pytest.mark.parametrize("fanout", [Fanout(), TWO], ids=["here", "two processes"])
def test_results_come_in_the_order_of_the_shards(work: Work, tmp_path: Path, fanout: Fanout) -> None:
    shards = [Number(value, seconds=0.2 if value == 0 else 0) for value in range(5)]
    assert squares(work, shards, tmp_path / "shards", fanout) == [0, 1, 4, 9, 16]
    assert calls(work) == [0, 1, 2, 3, 4]
    pids = {path.name.rpartition("-")[2] for path in Path(work.given).iterdir()}
    assert (str(os.getpid()) in pids) == (fanout.workers == 1)


def test_a_run_goes_on_where_it_stood(work: Work, tmp_path: Path) -> None:
    shards = [Number(value) for value in (1, 2, -3, 4)]
    with pytest.raises(EngineError, match="-3 is negative"):
        squares(work, shards, tmp_path / "shards")
    shards[2] = Number(3)
    assert squares(work, shards, tmp_path / "shards") == [1, 4, 9, 16]
    assert calls(work) == [1, 2, 3, 4]


def test_an_error_in_a_worker_is_the_error_of_the_run(work: Work, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^-3 is negative$"):
        squares(work, [Number(1), Number(-3)], tmp_path / "shards", TWO)
    assert not multiprocessing.active_children()


def test_shards_of_another_recipe_and_damaged_ones_are_run_again(work: Work, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    squares(work, [Number(1), Number(2)], folder)
    squares(replace(work, key="sha256:other"), [Number(1), Number(2)], folder)
    assert calls(work) == [1, 1, 2, 2]
    path = folder / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert squares(replace(work, key="sha256:other"), [Number(1), Number(2)], folder) == [1, 4]
    assert calls(work) == [1, 1, 2, 2, 2]
    clear(folder)
    assert not folder.exists()


@pytest.mark.slow
def test_the_shard_of_a_worker_that_was_killed_is_run_again(work: Work, tmp_path: Path) -> None:
    shards = [Number(1), Number(2, deaths=1), Number(3), Number(4)]
    assert squares(work, shards, tmp_path / "shards", TWO) == [1, 4, 9, 16]
    assert calls(work).count(2) == 2


@pytest.mark.slow
def test_a_shard_that_no_worker_survives_is_given_up_with_advice(work: Work, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"workers died 4 times over shard 000001.*fewer --workers"):
        squares(work, [Number(1), Number(2, deaths=99)], tmp_path / "shards", TWO)
    assert 4 <= calls(work).count(2) <= 8
    tries = calls(work).count(1)  # more than one where the other worker's death took it along
    assert squares(work, [Number(1)], tmp_path / "shards") == [1]
    assert calls(work).count(1) == tries, "what ended is kept"


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_worker_and_is_taken_up(work: Work, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.calib.test_fanout import *\n"
        "if __name__ == '__main__':\n"
        f"    squares(Work({work.open!r}, {work.given!r}, {work.key!r}), [Number(i, 0.3) for i in range(40)],"
        f" Path({str(tmp_path / 'shards')!r}), TWO)"
    )
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment) as child:
        until(lambda: len(list((tmp_path / "shards").glob("0*"))) >= 2)
        child.kill()
    workers = {int(path.name.rpartition("-")[2]) for path in Path(work.given).iterdir()}
    until(lambda: not any(alive(pid) for pid in workers))
    there = len(list((tmp_path / "shards").glob("0*")))
    before = len(calls(work))
    shards = [Number(i, 0.3) for i in range(there)]
    assert squares(work, shards, tmp_path / "shards") == [i**2 for i in range(there)]
    assert len(calls(work)) <= before + 1


def until(true: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_shard_is_four_shards_to_1e_10() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (1000, 5, 2))
    parts = np.array_split(values, 4)
    joints = [
        reduce(merge_joint, (joint_of(part.swapaxes(0, 1)) for part in some), no_joint((5,), 2))
        for some in ([values], parts)
    ]
    for name in ("count", "mean", "m2"):
        np.testing.assert_allclose(getattr(joints[1], name), getattr(joints[0], name), rtol=1e-10)
    seen = [reduce(merge, (update(init(), part.astype(np.float32)) for part in some)) for some in ([values], parts)]
    assert (seen[0].amin, seen[0].amax, seen[0].exponent) == (seen[1].amin, seen[1].amax, seen[1].exponent)
    np.testing.assert_array_equal(seen[0].counts, seen[1].counts)


def artifacts(bundle: Bundle, fanout: Fanout, **capture_how: Any) -> dict[str, bytes]:
    """The bytes of what capture, ranges and statistics write."""
    sampling = SamplingSettings(steps=4, guidance=2.0)
    settings = CaptureSettings(records=20, batch=3, **capture_how)
    capture(bundle, settings, sampling, stamp=Stamp("capture"), progress=quiet(), fanout=fanout)
    passes = RangeSettings(percentile=99.0, batch=3, memory=0.005)  # several passes over the edges
    collect_ranges(bundle, passes, stamp=Stamp("ranges"), progress=quiet(), fanout=fanout)
    stats = StatsSettings(trajectories=10, batch=3)
    collect_error_stats(bundle, stats, sampling, stamp=Stamp("stats"), progress=quiet(), fanout=fanout)
    assert not (bundle.root / ".shards").exists()
    written = (bundle.moments, bundle.samples, bundle.ranges, bundle.error_stats("ort-cpu"))
    return {path.name: path.read_bytes() for path in (*written, bundle.media("variance.svg"))}


@pytest.mark.parametrize("how", [{}, {"hold": 0}], ids=["x_t held", "drawn trajectories run again"])
def test_artifacts_do_not_know_how_many_workers_there_were(bundle: Bundle, how: dict[str, int]) -> None:
    assert artifacts(bundle, Fanout(), **how) == artifacts(bundle, TWO, **how)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said(work: Work, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(EngineError, match=r"no Ray cluster at nowhere"):
        squares(work, [Number(1)], tmp_path / "shards", Fanout(ray="nowhere"))


@pytest.mark.slow
def test_on_a_ray_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    status, said = on_ray(tmp_path / "first")
    if status not in (0, 1):  # neither passed nor failed: hung, or ended by Ray, whose deadlines a busy machine misses
        status, said = on_ray(tmp_path / "second")
    assert status == 0 and "3 passed" in said, said


def on_ray(folder: Path) -> tuple[int | None, str]:
    """Run the tests of `on_ray.py`: their process's exit status (None: it hung) and output; no node outlives this."""
    folder.mkdir()
    tests, log = Path(__file__).with_name("on_ray.py"), folder / "log"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'base'}", tests]
    with log.open("w") as out:
        child = subprocess.Popen(
            argv, cwd=tests.parents[2], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            child.wait(400)
        status = child.poll()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return status, log.read_text()


def test_choices_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--workers is 0, expected 1 or more"):
        Fanout(workers=0)
    with pytest.raises(RecipeError, match=r"--workers and --ray exclude each other"):
        Fanout(workers=2, ray="auto")
