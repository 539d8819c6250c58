import numpy as np

from quaver.calib.graph import MODULE_KEY, layers
from quaver.exporter.passes import names


def test_nodes_and_nameless_weights_take_the_name_of_their_module(make, run):
    nodes = [("MatMul", ["x", "val_7"], ["h"], {}), ("MatMul", ["h", "net.second.weight"], ["y"], {})]
    weights = {"val_7": np.eye(2, dtype=np.float32), "net.second.weight": np.full((2, 2), 2, np.float32)}
    model = make(nodes, {"x": ["b", 2]}, ["y"], **weights)
    for node, module in zip(model.graph.node, ("first", "second"), strict=True):
        node.metadata_props.add(key=MODULE_KEY, value=module)
    assert names.run(model) and not names.run(model)
    assert [(x.node, x.weight) for x in layers(model)] == [("first", "first.weight"), ("second", "second.weight")]
    assert run(model, x=np.ones((1, 2), np.float32))[0].tolist() == [[4, 4]]


def test_two_constants_never_get_one_name(make, run):
    nodes = [("MatMul", ["x", "val_1"], ["h"], {}), ("Add", ["h", "net.a.weight"], ["y"], {})]
    constants = {"val_1": np.eye(2, dtype=np.float32), "net.a.weight": np.ones((2, 2), np.float32)}
    model = make(nodes, {"x": [2, 2]}, ["y"], **constants)
    model.graph.node[0].metadata_props.add(key=MODULE_KEY, value="a")
    names.run(model)
    assert len({t.name for t in model.graph.initializer}) == 2
    assert run(model, x=np.zeros((2, 2), np.float32))[0].tolist() == [[1, 1], [1, 1]]
