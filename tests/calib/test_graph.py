import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, activation_edges, edge_shapes, layers

onnx = pytest.importorskip("onnx")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT


def weight(name, *dims):
    return numpy_helper.from_array(np.ones(dims, np.float32), name)


@pytest.fixture
def model():
    """conv(1x3x8x8 -> 4x4x4, groups 1) -> flatten -> linear -> matmul, an Add, and a shape computation on the side."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["s"], "shape"),
        helper.make_node("Add", ["s", "one"], ["s2"], "add_int"),
        helper.make_node("Flatten", ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w2"], ["g"], "gemm", transB=1),
        helper.make_node("MatMul", ["g", "w3"], ["m"], "mm1"),
        helper.make_node("MatMul", ["m", "w4"], ["y"], "mm2"),
        helper.make_node("MatMul", ["y", "m"], ["z"], "dynamic"),
    ]
    for index, module in ((0, "net.conv"), (4, "net.lin"), (5, "net.proj"), (6, "net.proj")):
        nodes[index].metadata_props.add(key=MODULE_KEY, value=module)
    weights = [weight("w1", 4, 3, 3, 3), weight("b1", 4), weight("w2", 5, 64), weight("w3", 5, 5), weight("w4", 5, 5)]
    weights.append(numpy_helper.from_array(np.ones(1, np.int64), "one"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("z", FLOAT, ["batch", 5])],
        weights,
    )
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_layers_are_named_by_module_and_unique(model):
    assert [(layer.name, layer.op) for layer in layers(model)] == [
        ("net.conv", "Conv"),
        ("net.lin", "Gemm"),
        ("net.proj", "MatMul"),
        ("net.proj#2", "MatMul"),
    ]


def test_macs_follow_the_closed_form_per_sample(model):
    assert [layer.macs for layer in layers(model)] == [4 * 4 * 4 * 3 * 9, 64 * 5, 25, 25]


def test_output_channel_axis_and_bias(model):
    assert [(layer.axis, layer.bias) for layer in layers(model)] == [(0, "b1"), (0, ""), (1, ""), (1, "")]


def test_a_model_without_shapes_has_layers_without_macs(model):
    del model.graph.value_info[:]
    assert layers(model)[0].macs is None and layers(model)[0].weight_shape == (4, 3, 3, 3)


@pytest.mark.parametrize("recorded", [True, False])
def test_activation_edges_are_floats_and_leave_constants_and_shape_arithmetic_out(model, recorded):
    if not recorded:
        del model.graph.value_info[:]
    assert activation_edges(model) == ["x", "c", "f", "g", "m", "y", "z"]


def test_symbolic_dimensions_are_none(model):
    assert edge_shapes(model)["c"] == (None, 4, 4, 4)
