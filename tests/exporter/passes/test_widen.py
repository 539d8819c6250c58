import numpy as np

from quaver.exporter.passes import widen


def test_casts_and_constants_of_float16_become_float32(make, run):
    from onnx import numpy_helper

    half = numpy_helper.from_array(np.array([0.1], np.float16))
    nodes = [
        ("Cast", ["x"], ["h"], {"to": 10}),
        ("Constant", [], ["c"], {"value": half}),
        ("Mul", ["h", "c"], ["m"], {}),
        ("Cast", ["m"], ["y"], {"to": 1}),
    ]
    model = make(nodes, {"x": [2]}, ["y"])
    assert widen.run(model) and not widen.run(model)
    x = np.array([1.0001, 3], np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x * np.float32(np.float16(0.1)), rtol=1e-6)
