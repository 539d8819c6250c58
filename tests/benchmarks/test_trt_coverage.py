import numpy as np
import pytest

from benchmarks.trt_coverage import bundle_of, claims, figures, kinds
from quaver.exporter.export import read_ranges

RECORD = {
    "coverage": {"meant": 4, "integer": 3, "by_macs": 0.995},
    "lint": {"products": 200, "agree": 196},
    "unpacked": [{}],
    "islands": [],
    "plan": {"bytes": 2_000_000},
    "seconds": 1.5,
    "layers": [
        {"kernel": "gemm", "inputs": ["Int8"], "constants": ["Int8"], "outputs": ["Float"]},
        {"kernel": "gemm", "inputs": ["Half"], "constants": ["Half"], "outputs": ["Half"]},
    ],
}


def row(**changes):
    known = {"graph": "demo", "preset": "8w8a", "for": "SM86 SM89", "same kernels": True}
    return {**known, **figures(RECORD), **changes}


def test_a_row_is_what_the_sidecar_says():
    found = figures(RECORD)
    assert (found["INT8"], found["missed"], found["lint"], found["plan MB"]) == (0.995, 1, 0.98, 2.0)


def test_claims_are_true_from_99_percent_on():
    assert [true for _, true in claims(row())] == [True, False]
    assert [true for _, true in claims(row(INT8=0.98, lint=0.99))] == [False, True]


def test_a_capability_alone_must_have_the_kernels_of_all():
    (*_, (claim, true)) = claims(row(**{"for": "SM89", "same kernels": False}))
    assert "SM89" in claim and not true


def test_kernels_are_counted_by_class_and_types():
    assert kinds(RECORD) == {("gemm", "Int8", "Int8", "Float"): 1, ("gemm", "Half", "Half", "Half"): 1}


def test_every_edge_of_a_graph_gets_a_range(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    value = [helper.make_tensor_value_info(name, 1, ["batch", 4]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "layer")
    graph = helper.make_graph([node], "g", value[:1], value[1:], [weight])
    (tmp_path / "unet.float.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "out").mkdir()
    bundle = bundle_of(tmp_path, tmp_path / "out")
    assert read_ranges(bundle) == {"x": (-4.0, 4.0), "y": (-4.0, 4.0)}
    assert bundle.float_unet.resolve() == (tmp_path / "unet.float.onnx").resolve()
