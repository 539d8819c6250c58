from __future__ import annotations

import pytest

from quaver.exporter.topology import product_macs, read_topology

onnx = pytest.importorskip("onnx")


def attention(keys: int | str) -> onnx.ModelProto:
    """softmax(Q K^T) V with 4 heads of 16 over 64 positions, shapes left open inside."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
    ]
    shapes = {"q": ["B", 4, 64, 16], "k": ["B", 4, keys, 16], "v": ["B", 4, keys, 16], "y": ["B", 4, 64, 16]}
    infos = {name: helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "attention", [infos[n] for n in "qkv"], [infos["y"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_the_work_of_attention_is_heads_times_positions_times_keys_times_width():
    model = attention(77)
    assert product_macs(model, read_topology(model).products) == dict.fromkeys(("scores", "mix"), 4 * 64 * 77 * 16)


def test_work_that_the_graph_does_not_tell_is_not_guessed():
    model = attention("L")
    assert product_macs(model, read_topology(model).products) == {"scores": None, "mix": None}
