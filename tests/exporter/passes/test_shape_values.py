import numpy as np

from quaver.exporter.passes import shape_values, unused


def attention_shapes(make):
    """A reshape to [B, heads, -1], its shape taken apart and put together, and a scale taken from a shape."""
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "zero"], ["b"], {"axis": 0}),
        ("Gather", ["s", "one"], ["c"], {"axis": 0}),
        ("Div", ["c", "heads"], ["d"], {}),
        ("Concat", ["b", "heads", "d"], ["to"], {"axis": 0}),
        ("Reshape", ["x", "to"], ["h"], {}),
        ("Shape", ["h"], ["hs"], {}),
        ("Slice", ["hs", "two", "end"], ["last"], {}),
        ("Cast", ["last"], ["f"], {"to": 1}),
        ("Sqrt", ["f"], ["root"], {}),
        ("Mul", ["h", "root"], ["y"], {}),
    ]
    constants = {"zero": [0], "one": [1], "two": [2], "heads": [4], "end": [2**62]}
    return make(nodes, {"x": ["batch", 12]}, ["y"], **{k: np.array(v) for k, v in constants.items()})


def test_what_follows_from_shapes_becomes_constant_and_the_batch_minus_one(make, run):
    model = attention_shapes(make)
    assert shape_values.run(model, [{"x": (2, 12)}, {"x": (3, 12)}])
    unused.run(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape", "Mul"]
    for batch in (1, 5):
        x = np.random.default_rng(batch).random((batch, 12), np.float32)
        np.testing.assert_allclose(run(model, x=x)[0], x.reshape(batch, 4, 3) * np.sqrt(3), rtol=1e-6)


def test_without_sizes_only_constants_are_worked_out(make):
    model = attention_shapes(make)
    assert not shape_values.run(model)
    nodes = [("Exp", ["a"], ["e"], {}), ("Mul", ["x", "e"], ["y"], {})]
    plain = make(nodes, {"x": [2]}, ["y"], a=np.zeros(2, np.float32))
    assert shape_values.run(plain) and [n.op_type for n in plain.graph.node] == ["Mul"]


def test_random_and_large_values_stay(make):
    nodes = [
        ("RandomNormalLike", ["a"], ["r"], {}),
        ("Expand", ["a", "wide"], ["w"], {}),
        ("Add", ["x", "r"], ["h"], {}),
        ("Add", ["h", "w"], ["y"], {}),
    ]
    model = make(nodes, {"x": [100, 100]}, ["y"], a=np.zeros(100, np.float32), wide=np.array([100, 100]))
    assert not shape_values.run(model) and len(model.graph.node) == 4


def test_two_sizes_that_differ_keep_the_computed_shape(make):
    model = attention_shapes(make)
    assert shape_values.run(model, [{"x": (2, 12)}, {"x": (3, 16)}]) is False
    assert "Shape" in {node.op_type for node in model.graph.node}
