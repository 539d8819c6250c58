import numpy as np

from quaver.exporter.passes import unused


def test_nodes_constants_and_shapes_that_nobody_reads_go(make, run):
    nodes = [("Relu", ["x"], ["y"], {}), ("Add", ["x", "c"], ["idle"], {}), ("Neg", ["idle"], ["idle2"], {})]
    model = make(nodes, {"x": [2]}, ["y"], c=np.ones(2, np.float32))
    assert unused.run(model) and not unused.run(model)
    assert [n.op_type for n in model.graph.node] == ["Relu"]
    assert not model.graph.initializer and "idle" not in {v.name for v in model.graph.value_info}
    assert run(model, x=np.array([-1, 2], np.float32))[0].tolist() == [0, 2]


def test_a_node_with_one_live_output_stays(make):
    model = make([("Split", ["x"], ["a", "b"], {"num_outputs": 2, "axis": 0})], {"x": [4]}, ["b"])
    assert not unused.run(model)
