from __future__ import annotations

import json

import pytest

from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import QuaverError
from quaver.runtime.measure import bench, table
from quaver.runtime.measure.joint import find_subjects
from quaver.runtime.progress import quiet


@pytest.fixture
def timed(bundle: Bundle) -> dict:
    bundle.recipe.write_text("[sampling]\nsteps = 3\n")
    subjects = find_subjects([bundle.root])
    return bench.bench(subjects, batches=(1, 4), runs=3, warmup=1, generations=1, threads=1, progress=quiet())


def test_calls_of_each_batch_a_generation_and_loading_are_timed(timed: dict):
    (engine,) = timed["engines"]
    assert set(engine["calls"]) == {"1", "4"} and engine["generations"]["ort-cpu"]["steps"] == 3
    assert engine["calls"]["4"]["ort-cpu"]["runs"] == 3 and timed["threads"] == 1
    assert engine["generations"]["ort-cpu"]["median_s"] > engine["calls"]["1"]["ort-cpu"]["median_s"]
    assert set(engine["load_s"]) == set(engine["bytes"]) == {"float", "ort-cpu"}
    json.dumps(timed, allow_nan=False)


def test_what_is_said_names_the_machine_and_has_a_row_for_each(timed: dict):
    text = bench.describe(timed)
    assert "processor" in text and "1 thread, 3 pairs of calls after 1 of warm-up, 1 generation;" in text
    rows = bench.bench_rows(timed)
    assert [row["What"] for row in rows] == ["call, batch 1", "call, batch 4", "clip, 3 steps"]
    assert [row["Peak memory (MB)"] is None for row in rows] == [True, True, False]
    assert text.endswith(table.markdown(rows).rstrip())


@pytest.mark.parametrize("counts", [{"batches": (0,)}, {"runs": 0}, {"threads": -1}, {"generations": -1}])
def test_counts_that_cannot_be_meant_are_refused(bundle: Bundle, counts: dict):
    with pytest.raises(QuaverError, match="1 or more"):
        bench.bench([], **counts)
