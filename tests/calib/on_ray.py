"""Shards over a real Ray cluster. `test_fanout.py` runs this file in a process of its own.

Ray is part of the driver's process, and ends it when its nodes are out of reach: a test's worker must not go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from quaver.calib.fanout import Fanout, map_shards
from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError
from quaver.runtime.progress import quiet
from tests.calib import test_fanout
from tests.calib.test_fanout import Number, Work, artifacts, calls, squares

work = test_fanout.work  # a fixture


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, and this process as its driver."""
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.extra = made.add_node(**node)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_ray_cluster_gives_the_bytes_of_one_process(bundle: Bundle, cluster: Any) -> None:
    assert artifacts(bundle, Fanout(ray=cluster.address)) == artifacts(bundle, Fanout())


def test_an_error_on_a_cluster_is_the_error_of_the_run(work: Work, tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(EngineError, match=r"^-3 is negative$"):
        squares(work, [Number(1), Number(-3)], tmp_path / "shards", Fanout(ray=cluster.address))


def test_a_node_lost_in_the_middle_costs_only_what_it_had_in_hand(work: Work, tmp_path: Path, cluster: Any) -> None:
    folder, shards = tmp_path / "shards", [Number(value, seconds=0.5) for value in range(24)]
    files = map_shards(work, shards, folder, fanout=Fanout(ray=cluster.address), progress=quiet(), label="squares")
    got = []
    for index, path in enumerate(files):
        got.append(int(load_tensors(path, "shard")[0]["square"][0]))
        if index == 4:
            cluster.remove_node(cluster.extra, allow_graceful=False)
    assert got == [value**2 for value in range(24)]
    assert len(calls(work)) <= len(shards) + 2
