import numpy as np

from quaver.exporter.passes import identities


def test_what_changes_nothing_goes_and_the_rest_stays(make, run):
    nodes = [
        ("Identity", ["x"], ["a"], {}),
        ("Cast", ["a"], ["b"], {"to": 1}),
        ("Div", ["b", "one"], ["c"], {}),
        ("Dropout", ["c"], ["d"], {}),
        ("Mul", ["d", "two"], ["e"], {}),
        ("Cast", ["e"], ["f"], {"to": 11}),
        ("Div", ["one", "e"], ["g"], {}),
        ("Cast", ["f"], ["h"], {"to": 1}),
        ("Add", ["g", "h"], ["y"], {}),
    ]
    model = make(nodes, {"x": [2]}, ["y"], one=np.float32(1), two=np.float32(2))
    assert identities.run(model) and not identities.run(model)
    assert [node.op_type for node in model.graph.node] == ["Mul", "Cast", "Div", "Cast", "Add"]
    x = np.array([1, 4], np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], 1 / (2 * x) + 2 * x)


def test_an_output_keeps_its_name(make):
    model = make([("Identity", ["x"], ["y"], {})], {"x": [2]}, ["y"])
    assert not identities.run(model)
