import numpy as np
import pytest

from quaver.calib.graph import edge_shapes
from quaver.exporter.passes.batch import BATCH, free_batch, free_time


def freed(model, batch, name="x"):
    free_batch(model, batch, edge_shapes(model))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, -1), (6, 4), (2, 1, 12)])
def test_a_reshape_that_names_the_batch_follows_it(make, run, shape):
    nodes = [("Reshape", ["x", "s"], ["h"], {}), ("Relu", ["h"], ["y"], {})]
    model = make(nodes, {"x": [2, 3, 4]}, ["y"], s=np.array(shape))
    model = freed(model, 2)
    for batch in (1, 2, 5):
        x = np.random.default_rng(0).random((batch, 3, 4), np.float32)
        expected = (shape[0] * batch // 2, *shape[1:])
        np.testing.assert_array_equal(run(model, x=x)[0], x.reshape(expected))


def test_a_constant_of_equal_rows_is_one_row(make, run):
    model = make(
        [("Add", ["x", "c"], ["y"], {})], {"x": [4, 3]}, ["y"], c=np.tile(np.arange(3, dtype=np.float32), (4, 1))
    )
    model = freed(model, 2)
    np.testing.assert_array_equal(run(model, x=np.zeros((7, 3), np.float32))[0], np.tile(np.arange(3.0), (7, 1)))


def test_a_constant_of_different_rows_stays(make):
    model = make([("Add", ["x", "c"], ["y"], {})], {"x": [2, 3]}, ["y"], c=np.arange(6, dtype=np.float32).reshape(2, 3))
    free_batch(model, 2, edge_shapes(model))
    assert model.graph.node[0].input[1] == "c"


def test_a_time_that_is_made_a_vector_is_one_already(make, run):
    nodes = [
        ("Cast", ["t"], ["f"], {"to": 1}),
        ("Unsqueeze", ["f", "zero"], ["v"], {}),
        ("Expand", ["v", "two"], ["rows"], {}),
        ("Add", ["rows", "bias"], ["y"], {}),
    ]
    model = make(nodes, {"t": []}, ["y"], zero=np.array([0]), two=np.array([2]), bias=np.float32(1))
    free_time(model, "t")
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_param=BATCH)
    model = freed(model, 2)
    t = np.array([3, 5, 8], np.float32)
    np.testing.assert_array_equal(run(model, t=t)[0], t + 1)
