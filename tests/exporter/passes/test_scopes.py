import numpy as np
import pytest

from quaver.calib.graph import layers, module_of
from quaver.exporter.passes import names, scopes


@pytest.mark.parametrize(
    ("paths", "prefix"),
    [
        (["unet.a.conv", "unet.b.conv"], "unet."),
        (["m.d.a", "m.d.b.c"], "m.d."),
        (["a.conv", "b.conv"], ""),
        (["conv_in", "unet.a"], ""),
        (["unet.conv"], ""),
    ],
)
def test_what_all_layers_begin_with_is_found_in_whole_parts(paths, prefix):
    assert scopes.shared_prefix(paths) == prefix


def test_the_scopes_in_a_nodes_name_are_its_module(make):
    w = np.zeros((2, 2, 1, 1), np.float32)
    model = make([("Conv", ["x", "w"], ["h"], {}), ("Conv", ["h", "w"], ["y"], {})], {"x": [1, 2, 3, 3]}, ["y"], w=w)
    for node, name in zip(model.graph.node, ("/unet/conv_in/Conv", "/unet/down.0/conv/Conv"), strict=True):
        node.name = name
    assert scopes.run(model) and not scopes.run(model)
    assert [module_of(node) for node in model.graph.node] == ["conv_in", "down.0.conv"]


def test_without_scopes_the_weight_names_the_layer_and_else_the_bias_does(make):
    nodes = [
        ("MatMul", ["x", "a.to_q.weight"], ["q"], {}),
        ("MatMul", ["q", "onnx::MatMul_7"], ["h"], {}),
        ("Add", ["h", "a.to_out.0.bias"], ["y"], {}),
    ]
    weights = {"a.to_q.weight": np.eye(4), "onnx::MatMul_7": np.eye(4), "a.to_out.0.bias": np.ones(4)}
    model = make(nodes, {"x": [2, 4]}, ["y"], **{k: v.astype(np.float32) for k, v in weights.items()})
    scopes.run(model)
    names.run(model)
    found = layers(model)
    assert [layer.name for layer in found] == ["to_q", "to_out.0"]
    assert [layer.weight for layer in found] == ["a.to_q.weight", "to_out.0.weight"]


def test_nodes_get_names_of_their_own(make):
    model = make([("Relu", ["x"], ["h"], {}), ("Relu", ["h"], ["y"], {})], {"x": [2]}, ["y"])
    model.graph.node[0].name = model.graph.node[1].name = ""
    assert scopes.name_nodes(model) and not scopes.name_nodes(model)
    assert [node.name for node in model.graph.node] == ["Relu_0", "Relu_1"]
