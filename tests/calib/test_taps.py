"""Summaries computed in the graph against numpy on the stored activations."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from quaver.calib.moments import variance
from quaver.calib.taps import ENDS, open_tapped, read_summaries, sample_name, tap_samples, tap_summaries, tap_tensors
from quaver.runtime.errors import ArtifactError, EngineError

EDGES = ["x", "far", "last"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """x -> x + 1000 -> * 0.5, the sum far from zero."""
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("offset", 1000.0), ("half", 0.5))]
    nodes = [helper.make_node("Add", ["x", "offset"], ["far"]), helper.make_node("Mul", ["far", "half"], ["last"])]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["B", 3, "T"]) for n in ("x", "last")]
    graph = helper.make_graph(nodes, "far", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 5000)).astype(np.float32)


def test_summaries_equal_numpy_on_the_stored_activations(path: Path, x: np.ndarray) -> None:
    def both(model: onnx.ModelProto) -> None:
        tap_tensors(model, EDGES)
        tap_summaries(model, EDGES)

    with open_tapped(path, both) as run:
        outputs = run({"x": x})
    got = read_summaries(outputs)
    stored = [x if edge == "x" else outputs[edge] for edge in EDGES]
    assert got.count.tolist() == [60_000] * 3
    np.testing.assert_allclose(got.mean, [s.mean(dtype=np.float64) for s in stored], rtol=1e-5, atol=1e-6)
    # Sums of squares in float32 would leave nothing of a variance of 1 around 1000.
    np.testing.assert_allclose(variance(got), [s.var(dtype=np.float64) for s in stored], rtol=1e-5)
    assert got.amin.tolist() == [s.min() for s in stored] and got.amax.tolist() == [s.max() for s in stored]


@pytest.mark.parametrize(("most", "every"), [(60_000, 1), (59_999, 3), (20_000, 3), (16_384, 5), (1000, 61)])
def test_samples_are_every_kth_value_and_the_ends_of_all(path: Path, x: np.ndarray, most: int, every: int) -> None:
    with open_tapped(path, lambda model: tap_samples(model, EDGES, most)) as run:
        outputs = run({"x": x})
    np.testing.assert_array_equal(outputs[sample_name(0)], x.ravel()[::every])
    assert all(len(outputs[sample_name(index)]) <= most for index in range(3))
    ends = outputs[ENDS].reshape(3, 3)
    assert ends[0, 1:].tolist() == [x.min(), x.max()] and ends[0, 0] == pytest.approx(x.mean(), abs=1e-5)


def test_samples_meet_every_column_of_a_power_of_two(path: Path) -> None:
    x = np.tile(np.arange(16, dtype=np.float32), 3 * 4096).reshape(4, 3, -1)
    with open_tapped(path, lambda model: tap_samples(model, EDGES, 1000)) as run:
        sample = run({"x": x})[sample_name(0)]
    assert 900 < len(sample) <= 1000 and np.bincount(sample.astype(int)).min() > 50


def test_the_outputs_of_the_model_stay(path: Path, x: np.ndarray) -> None:
    with open_tapped(path, lambda model: tap_summaries(model, EDGES)) as run:
        np.testing.assert_array_equal(run({"x": x})["last"], (x + np.float32(1000)) * np.float32(0.5))


def test_external_weights_are_found_and_nothing_is_written(path: Path, x: np.ndarray) -> None:
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    before = sorted(path.parent.iterdir())
    with open_tapped(path, lambda model: tap_tensors(model, ["far"]), outputs=["far"]) as run:
        assert list(run({"x": x})) == ["far"]
    assert sorted(path.parent.iterdir()) == before


def test_an_edge_does_not_wait_for_its_taps(tmp_path: Path) -> None:
    size, edges = 4_000_000, [f"e{index}" for index in range(40)]
    nodes = [helper.make_node("Add", [a, a], [b]) for a, b in pairwise(["x", *edges])]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [size]) for n in ("x", edges[-1])]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    code = f"""
from pathlib import Path; import numpy as np
from quaver.calib.taps import open_tapped, tap_samples, ENDS
from quaver.runtime.measure.latency import peak_rss_bytes
with open_tapped(Path({str(tmp_path / "m.onnx")!r}), lambda m: tap_samples(m, {edges!r}, 16), outputs=[ENDS]) as run:
    before = peak_rss_bytes()
    run({{"x": np.ones({size}, np.float32)}})
    print(peak_rss_bytes() - before)
"""
    held = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert held < 10 * 4 * size  # of 40 edges


def test_an_edge_that_is_not_there_and_a_missing_model_are_named(path: Path) -> None:
    with pytest.raises(EngineError, match="no edge 'gone'"), open_tapped(path, lambda m: tap_summaries(m, ["gone"])):
        pass
    missing = path.with_name("other.onnx")
    with pytest.raises(ArtifactError, match=r"other\.onnx does not exist"), open_tapped(missing, lambda m: None):
        pass
