"""The arithmetic of many prompts on many workers."""

from __future__ import annotations

import pytest

from benchmarks.scale import Job, scaled
from quaver.calib.fanout import Work

MEASURED = {"open s": 4.0, "shard s": 30.0, "merge s": 0.01, "shard MB": 2.0}


def test_shards_run_in_rounds_and_merge_one_by_one() -> None:
    got = scaled(MEASURED, Job(Work("", "", ""), [], 2500), 1000)
    assert got == {"shards": 2500, "rounds": 3, "min": pytest.approx((4 + 3 * 30 + 25) / 60), "GB": 5.0}


def test_shards_that_run_twice_take_rounds_of_their_own() -> None:
    assert scaled(MEASURED, Job(Work("", "", ""), [], 2500, again=1024), 1000)["rounds"] == 5


def test_workers_that_find_no_shard_do_not_help() -> None:
    few = Job(Work("", "", ""), [], 20)
    assert scaled(MEASURED, few, 1000) == scaled(MEASURED, few, 20)
