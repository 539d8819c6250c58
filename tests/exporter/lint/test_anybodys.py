"""Graphs that are coded in ways no kernel takes, or lie in odd places: lint says so and does not break."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

import onnx

from quaver.exporter.cli import main
from quaver.exporter.lint import lint
from tests.exporter.lint.zoo import Graph, conv, product


def save(model, folder, name="m.onnx"):
    onnx.save(model, folder / name)
    return folder / name


def gemm(x, w):
    """A Gemm [.., 64] by [64, 32] whose bias has a code, whatever its operands are like; scales in the wrong number."""

    def make():
        g = Graph()
        edge = g.coded(g.input(8, 64), "uint8", **x)
        weight = g.weight("int8", (64, 32), **w)
        ends = [g.scales((32,)), g.constant(np.zeros(32, np.int32))]
        bias = g.node("DequantizeLinear", g.constant(np.arange(32, dtype=np.int32)), *ends, axis=0)
        return g.model(g.node("Gemm", edge, weight, bias, name="layer"))

    return make


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (gemm({}, {"axis": 0, "block": 16}), "its weight has a scale per block"),
        (gemm({}, {"axis": 0}), "its weight has a scale per input channel"),
        (gemm({"channels": 64}, {"axis": 1}), "its input has a scale per channel"),
    ],
)
def test_a_coded_bias_beside_scales_that_none_can_match(make, why, tmp_path):
    path = save(make(), tmp_path)
    assert lint(path, "ort-cpu").rows[0].kernel.why == why
    assert lint(path, "tensorrt-rtx").refused


@pytest.mark.parametrize("how", [{"axis": 1}, {"x": "", "axis": 0, "block": 16}])
def test_weights_that_the_graph_quantizes_are_coded_as_it_does_to_see_them_saturate(how, tmp_path):
    model = product(pattern="float", **how)()
    weight = next(t for t in model.graph.initializer if list(t.dims) == [64, 32])
    numbers = np.zeros((64, 32), np.float32)
    numbers[62:64, 3] = 10
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    (warning,) = lint(save(model, tmp_path), "ort-cpu").warnings
    assert "neighbouring weight codes sum to 254 in layer, above 128" in warning


def bits(**attributes):
    """MatMulNBits of 64 by 8 with some of its attributes."""
    g = Graph()
    held = [g.constant(np.zeros((8, 4, 8), np.uint8)), g.constant(np.ones(32, np.float32))]
    edge = g.node("MatMulNBits", g.input(2, 64), *held, name="layer", domain="com.microsoft", **attributes)
    return g.model(edge)


def test_a_matmulnbits_that_does_not_say_its_sizes_is_refused_as_onnxruntime_refuses_it(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    report = lint(save(bits(K=64, N=8, bits=4, block_size=16), tmp_path), "ort-cpu")
    assert (report.refused, report.rows[0].kernel.type) == ((), "MatMulNBits")
    path = save(bits(K=64, bits=4), tmp_path)
    assert lint(path, "ort-cpu").refused == (
        "layer: MatMulNBits without N, block_size: onnxruntime does not load it; set it",
    )
    with pytest.raises(Exception, match="Required attribute"):
        ort.InferenceSession(path)


def test_a_file_of_two_names_and_a_link_to_it_are_read(tmp_path):
    model = product(per="tensor")()  # codes are read to see whether they saturate
    path = save(model, tmp_path)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "linked.onnx"
    link.symlink_to(path)
    expected = lint(path, "ort-cpu")
    os.link(path, tmp_path / "another.onnx")
    assert lint(path, "ort-cpu") == expected
    found = lint(link, "ort-cpu")
    assert (found.file, found.rows, found.warnings) == ("linked.onnx", expected.rows, expected.warnings)


def test_a_folder_and_what_is_not_there_are_told_apart(tmp_path, capsys):
    assert main(["lint", str(tmp_path), "--target", "ort-cpu"]) == 1
    assert f"{tmp_path} is not a file: name an .onnx file" in capsys.readouterr().err
    assert main(["lint", str(tmp_path / "a"), "--target", "ort-cpu"]) == 1
    assert "a does not exist: name an .onnx file" in capsys.readouterr().err


def test_a_constant_that_is_read_twice_at_every_level_is_looked_at_once(tmp_path):
    g = Graph()
    edge = g.floats(64, 32)
    for _ in range(2000):  # as a recursion, 2^2000 calls
        edge = g.node("Add", edge, edge)
    path = save(g.model(g.node("MatMul", g.input(2, 64), edge, name="layer")), tmp_path)
    start = time.process_time()
    (row,) = lint(path, "ort-cpu").rows
    assert time.process_time() - start < 5
    assert (row.kernel.type, row.stored) == ("float MatMul", "float32")


@pytest.mark.parametrize(("target", "code"), [("tensorrt-rtx", 1), ("ort-cpu", 0)])
def test_a_reader_that_stops_reading_leaves_the_verdict(tmp_path, target, code):
    path = save(conv()(), tmp_path)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "quaver.exporter.cli", "lint", str(path), "--target", target]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, text=True)
    os.close(write)
    assert done.returncode == code
    assert done.stderr.startswith("quaver: tensorrt-rtx refuses m.onnx") if code else done.stderr == ""
