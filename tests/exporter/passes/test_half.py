"""The tiny graphs are run in onnxruntime, which computes float16 nodes between casts of its own."""

import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.rules import Rule
from quaver.exporter.passes import half
from quaver.exporter.placement import Placement, place
from quaver.exporter.qdq import insert
from quaver.exporter.targets import TENSORRT_RTX

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
HALF, FLOAT = 10, 1
RANGES = dict.fromkeys(["x", "a", "b", "y"], (-4.0, 4.0))


def graph(*nodes, constants=(), inputs=(("x", FLOAT, [2, 16]),)):
    """Named nodes (op, inputs, output, attributes) from the inputs to y."""
    made = [helper.make_node(op, ins, [out], f"node_{out}", **more) for op, ins, out, more in nodes]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants]
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    out = helper.make_tensor_value_info("y", FLOAT, None)
    model = helper.make_model(
        helper.make_graph(made, "g", values, [out], tensors), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return onnx.shape_inference.infer_shapes(model)


def halved(model, *, sites=(), ranges=None, whole=True):
    """The model with its float part in float16, and what was decided."""
    read = numpy_helper.to_array
    chosen = half.choose(model, sites, TENSORRT_RTX, ranges or RANGES, whole=whole, read=read)
    half.run(model, chosen, read=read, keep=lambda tensor: tensor)
    onnx.checker.check_model(model, full_check=True)
    return chosen


def answers(model, **feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0]


def casts(model):
    return [(n.input[0], n.attribute[0].i) for n in model.graph.node if n.op_type == "Cast"]


X = np.linspace(-4, 4, 32, dtype=np.float32).reshape(2, 16)


def test_inputs_and_outputs_keep_float32_and_everything_between_is_float16():
    model = graph(("Mul", ["x", "w"], "a", {}), ("Relu", ["a"], "y", {}), constants=[("w", np.full(16, 0.5))])
    halved(model)
    assert casts(model) == [("x", HALF), ("y.float16", FLOAT)]
    assert {t.data_type for t in model.graph.initializer} == {HALF}
    assert np.allclose(answers(model, x=X), np.maximum(X / 2, 0), atol=1e-3)


def test_phases_and_all_that_feeds_them_stay_float32():
    nodes = (("Cast", ["t"], "a", {"to": FLOAT}), ("Mul", ["a", "f"], "b", {}), ("Sin", ["b"], "c", {}))
    model = graph(
        *nodes, ("Mul", ["c", "two"], "y", {}), constants=[("f", [0.7]), ("two", [2.0])], inputs=(("t", 7, [3]),)
    )
    chosen = halved(model)
    assert chosen.islands.keys() == {"node_a", "node_b", "node_c"} and chosen.nodes == {"node_y"}
    assert "radians" in chosen.islands["node_b"]
    t = np.array([1, 500, 999])
    assert np.allclose(answers(model, t=t), 2 * np.sin(np.float32(0.7) * t), atol=2e-3)


def test_squares_of_a_decomposed_norm_stay_float32():
    nodes = (("Pow", ["x", "two"], "a", {}), ("ReduceMean", ["a"], "b", {"keepdims": 1}), ("Sqrt", ["b"], "y", {}))
    model = graph(*nodes, constants=[("two", 2.0)])
    assert halved(model).islands.keys() == {"node_a", "node_b"}
    x = np.full((2, 16), 1000, np.float32)  # its square has no float16
    assert np.allclose(answers(model, x=x), 1000)


def test_an_edge_that_leaves_no_room_keeps_its_nodes_in_float32():
    model = graph(
        ("Mul", ["x", "w"], "a", {}), ("Relu", ["a"], "b", {}), ("Tanh", ["b"], "y", {}), constants=[("w", [9])]
    )
    chosen = halved(model, ranges={**RANGES, "a": (-4e4, 1.0)})
    assert chosen.nodes == {"node_y"}
    assert chosen.islands["node_a"] == "a spans [-40000, 1]: no room in float16"


def test_masks_are_clamped_to_the_smallest_float16():
    model = graph(
        ("Add", ["x", "mask"], "a", {}), ("Softmax", ["a"], "y", {"axis": 1}), constants=[("mask", [[-1e9] + [0] * 15])]
    )
    halved(model)
    mask = next(numpy_helper.to_array(t) for t in model.graph.initializer)
    assert mask.dtype == np.float16 and mask.min() == -65504
    assert np.allclose(answers(model, x=X)[:, 0], 0) and np.allclose(answers(model, x=X).sum(1), 1, atol=1e-3)


@pytest.mark.parametrize(("value", "words"), [(1e6, "float16 ends at 65504"), (1e-12, "float16 makes it 0")])
def test_a_constant_that_float16_cannot_hold_keeps_its_node_in_float32(value, words):
    model = graph(("Mul", ["x", "w"], "a", {}), ("Relu", ["a"], "y", {}), constants=[("w", value)])
    chosen = halved(model)
    assert words in chosen.islands["node_a"] and chosen.nodes == {"node_y"}


def test_scales_of_a_resize_stay_float32():
    model = graph(
        ("Resize", ["x", "", "s"], "y", {"mode": "nearest"}),
        constants=[("s", [1, 1, 2, 2])],
        inputs=(("x", FLOAT, [1, 2, 2, 2]),),
    )
    halved(model)
    assert [t.data_type for t in model.graph.initializer] == [FLOAT]


def test_an_edge_read_in_both_types_is_cast_once():
    nodes = (("Relu", ["x"], "a", {}), ("Sin", ["a"], "b", {}), ("Cos", ["a"], "c", {}), ("Add", ["b", "c"], "y", {}))
    model = graph(*nodes)
    halved(model)
    assert sorted(edge for edge, _ in casts(model)) == ["b", "c", "y.float16"]  # a feeds phases: float32 as x is


def test_a_mixed_graph_has_quantizers_and_biases_in_the_type_of_their_layer():
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((32, 32, 1, 1), np.float32)
    conv = ("Conv", ["x", "w", "b"], "a", {})
    model = graph(
        conv,
        ("Conv", ["a", "v"], "y", {}),
        constants=[("w", weight), ("b", np.ones(32)), ("v", weight)],
        inputs=(("x", FLOAT, [1, 32, 4, 4]),),
    )
    x = draw.uniform(-4, 4, (1, 32, 4, 4)).astype(np.float32)
    plain, ranges = answers(model, x=x), {"x": (-4.0, 4.0), "a": (-60.0, 60.0), "y": (-300.0, 300.0)}
    found, rules = layers(model), [Rule("node_a"), Rule("node_y", "float32", "float32")]
    sites = place(found, rules, TENSORRT_RTX, ranges, options=Placement(half=True))
    read = numpy_helper.to_array
    chosen = half.choose(model, sites, TENSORRT_RTX, ranges, whole=True, read=read)
    insert(model, found, half.settle(sites, chosen, model), ranges, TENSORRT_RTX)
    half.run(model, chosen, read=read, keep=lambda tensor: tensor)
    onnx.checker.check_model(model, full_check=True)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["x.int8.float16.scale"] == kinds["node_a.weight.dq.scale"] == kinds["b.float16"] == HALF
    assert kinds["v"] == FLOAT
    assert np.linalg.norm(answers(model, x=x) - plain) / np.linalg.norm(plain) < 0.02


def test_nothing_changes_where_nothing_is_to_be_float16():
    model = graph(("Relu", ["x"], "y", {}))
    before = model.SerializeToString()
    assert not halved(model, whole=False).nodes and model.SerializeToString() == before


def test_a_layer_that_float16_would_break_says_so_in_its_site():
    model = graph(("MatMul", ["x", "w"], "y", {}), constants=[("w", np.full((16, 16), 1e5))])
    sites = place(layers(model), [Rule("*", "float16", "float16")], TENSORRT_RTX, RANGES)
    chosen = half.choose(model, sites, TENSORRT_RTX, RANGES, whole=False, read=numpy_helper.to_array)
    site = half.settle(sites, chosen, model)[0]
    assert (site.format, site.compute) == ("float", "float32") and "100000" in site.reason
