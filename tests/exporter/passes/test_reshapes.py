import numpy as np

from quaver.exporter.passes import reshapes, unused


def shaped(make, dims):
    nodes = [
        ("Relu", ["x"], ["h"], {}),
        ("Reshape", ["h", "groups"], ["g"], {}),
        ("Shape", ["h"], ["s"], {}),
        ("Reshape", ["g", "s"], ["y"], {}),
    ]
    return make(nodes, {"x": dims}, ["y"], groups=np.array([0, 2, -1]))


def test_a_shape_that_is_known_but_for_the_batch_is_a_constant(make, run):
    model = shaped(make, ["batch", 4, 3, 5])
    model.graph.output[0].type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    assert reshapes.run(model) and unused.run(model)
    assert "Shape" not in {node.op_type for node in model.graph.node}
    for batch in (1, 3):
        x = np.random.default_rng(batch).random((batch, 4, 3, 5), np.float32)
        np.testing.assert_array_equal(run(model, x=x)[0], x)


def test_two_open_sizes_keep_the_computed_shape(make):
    model = shaped(make, ["batch", 4, "time", 5])
    model.graph.output[0].type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    assert not reshapes.run(model)
