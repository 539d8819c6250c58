import numpy as np
import pytest

from quaver.calib.reconstruct.operators import OPERATORS
from quaver.calib.reconstruct.replay import read_graph, run
from quaver.runtime.errors import EngineError

onnx, torch, ort = (pytest.importorskip(name) for name in ("onnx", "torch", "onnxruntime"))


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


X = draw(2, 4, 6, 6)
UNARY = ("Sigmoid", "Tanh", "Sin", "Cos", "Exp", "Sqrt", "Relu", "Neg", "Reciprocal", "Identity")
CASES = [
    ("Conv", [X, draw(8, 2, 3, 3), draw(8)], {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}),
    ("Conv", [draw(2, 4, 9), draw(3, 4, 2)], {"pads": [1, 1], "dilations": [2]}),
    ("Gemm", [draw(4, 3), draw(5, 4), draw(5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("InstanceNormalization", [X, draw(4), draw(4)], {"epsilon": 1e-3}),
    ("GroupNormalization", [X, draw(4), draw(4)], {"num_groups": 2}),
    ("LayerNormalization", [X, draw(6, 6), draw(6, 6)], {"axis": 2}),
    ("LayerNormalization", [X, draw(6)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("Reshape", [X, ints(0, 2, -1)], {}),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [X], {}),
    ("Concat", [X, X], {"axis": -1}),
    ("Split", [X], {"axis": 3, "num_outputs": 4}),
    ("Split", [X, ints(1, 3)], {"axis": 1}),
    ("Slice", [X, ints(1, -4), ints(3, 9), ints(1, -1), ints(1, 2)], {}),
    ("Resize", [X, None, np.array([1, 1, 2, 2], np.float32)],
     {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    ("Resize", [X, None, None, ints(2, 4, 12, 9)], {"mode": "linear"}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Erf", [X], {}),
    ("Cast", [X], {"to": 7}),
    ("Unsqueeze", [X, ints(1, -1)], {}),
    ("Squeeze", [X[:, :1], ints(1)], {}),
    ("ReduceMean", [X, ints(1, -1)], {"keepdims": 0}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", [X], {"kernel_shape": [2, 2]}),
    ("Gather", [X, ints(2, -1)], {"axis": 1}),
    ("Shape", [X], {"start": 1}),
    ("Expand", [X[:, :1], ints(2, 4, 1, 1)], {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}),
    ("Div", [ints(-7, 7), ints(2, 2)], {}),
    ("Pow", [np.abs(X), np.float32(1.5)], {}),
    ("MatMul", [X, draw(4, 6, 3)], {}),
    ("Sub", [X, draw(6)], {}),
    *((op, [np.abs(X)], {}) for op in UNARY),
    *((op, [X, draw(4, 1, 1)], {}) for op in ("Add", "Mul")),
]  # fmt: skip


def single(op, inputs, attributes):
    """A model of one node whose first input is given and whose others are constants."""
    names = ["" if value is None else f"i{i}" for i, value in enumerate(inputs)]
    outputs = [f"o{i}" for i in range(attributes.get("num_outputs", 2 if op == "Split" else 1))]
    made = onnx.helper.make_node(op, names, outputs, name="node", **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    constants = [
        onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names[1:], inputs[1:], strict=True) if n
    ]
    graph = onnx.helper.make_graph(
        [made],
        "one",
        [onnx.helper.make_tensor_value_info("i0", kind, inputs[0].shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        constants,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_operator_gives_what_onnxruntime_gives(op, inputs, attributes):
    model = single(op, inputs, attributes)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"i0": inputs[0]})
    found = run(read_graph(model), {"i0": torch.from_numpy(inputs[0])}, [o.name for o in model.graph.output])
    for output, value in zip(model.graph.output, expected, strict=True):
        made = found[output.name].numpy()
        assert made.dtype == value.dtype and made.shape == value.shape
        assert np.allclose(made, value, rtol=1e-5, atol=2e-6)


def test_every_operator_is_tried():
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_what_is_not_replayed_exactly_is_refused():
    with pytest.raises(EngineError, match="a Resize is cubic"):
        run(
            read_graph(single("Resize", [X, None, np.ones(4, np.float32)], {"mode": "cubic"})),
            {"i0": torch.from_numpy(X)},
            ["o0"],
        )


def test_an_operator_that_is_not_known_is_named_with_the_way_out():
    with pytest.raises(EngineError, match=r"cannot replay Hardmax \(1 nodes\): set reconstruct.method = 'none'"):
        read_graph(single("Hardmax", [X], {}))
