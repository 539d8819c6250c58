import numpy as np

from quaver.calib.graph import layers
from quaver.exporter.passes import constants


def test_a_weight_that_is_transposed_in_the_graph_becomes_a_layers_weight(make, run):
    w = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    nodes = [("Transpose", ["w"], ["wt"], {"perm": [1, 0]}), ("MatMul", ["x", "wt"], ["y"], {})]
    model = make(nodes, {"x": [2, 4]}, ["y"], w=w)
    assert not layers(model)
    assert constants.run(model) and not constants.run(model)
    (layer,) = layers(model)
    assert layer.weight == "wt" and layer.weight_shape == (4, 3)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x @ w.T, rtol=1e-6)


def test_constant_nodes_become_initializers_whatever_they_hold(make, run):
    nodes = [
        ("Constant", [], ["a"], {"value_floats": [1.0, 2.0]}),
        ("Constant", [], ["b"], {"value_int": 3}),
        ("Cast", ["b"], ["c"], {"to": 1}),
        ("Add", ["x", "a"], ["h"], {}),
        ("Mul", ["h", "c"], ["y"], {}),
    ]
    model = make(nodes, {"x": [2]}, ["y"])
    assert constants.run(model)
    assert [node.op_type for node in model.graph.node] == ["Add", "Mul"]
    np.testing.assert_array_equal(run(model, x=np.zeros(2, np.float32))[0], [3.0, 6.0])


def test_values_pass_through_the_hands_that_know_where_they_lie(make):
    seen = []
    nodes = [("Identity", ["w"], ["v"], {}), ("MatMul", ["x", "v"], ["y"], {})]
    model = make(nodes, {"x": [2, 2]}, ["y"], w=np.zeros((2, 2), np.float32))
    read = lambda tensor: seen.append(tensor.name) or np.eye(2, dtype=np.float32)  # noqa: E731
    constants.run(model, read=read, keep=lambda tensor: seen.append(f"keep {tensor.name}") or tensor)
    assert seen == ["w", "keep v"]
