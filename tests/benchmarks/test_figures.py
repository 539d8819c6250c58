import json

import numpy as np

from benchmarks.figures import publish, table
from quaver.runtime.measure.quality import Interval


def test_the_last_line_is_one_json_object_and_the_machine_comes_first(capsys):
    publish("toy", [{"call": "fp32", "ms": 2.0}], figures={"ratio": np.float64(2), "i": Interval(1, 0, 2)}, reached={})
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {
        "name": "toy",
        "figures": {"ratio": 2.0, "i": {"value": 1, "low": 0, "high": 2}},
        "reached": {},
    }
    assert lines[1].startswith("processor")
    assert any(line.startswith("numpy") and np.__version__ in line for line in lines)


def test_claims_are_true_or_false_whatever_was_compared(capsys):
    publish("toy", [], figures={}, reached={"two is more than one": np.bool_(True)})
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reached"] == {"two is more than one": True}


def test_a_table_is_aligned_and_as_wide_as_its_widest_cell():
    assert table([{"a": "x", "b": 1.0}, {"a": "long", "b": 0.123456}]) == "a     b\nx     1\nlong  0.1235"


def test_an_interval_in_a_table_reads_as_value_and_bounds():
    assert table([{"snr": Interval(20.0, 19.5, 20.25)}]) == "snr\n20 [19.5, 20.25]"
