"""The torch reading of coded operators, against onnxruntime's own kernels for them."""

import numpy as np
import pytest

from quaver.calib.reconstruct.replay import read_node
from quaver.exporter.parity.operators import as_tensor, by_onnxruntime, operator
from quaver.runtime.errors import EngineError

onnx, torch = pytest.importorskip("onnx"), pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")
OPSETS = [onnx.helper.make_opsetid("", 21)]


def both(op, inputs, **attributes):
    names = [f"i{index}" for index in range(len(inputs))]
    proto = onnx.helper.make_node(op, names, ["out"], "node", **attributes)
    tensors = [as_tensor(x) for x in inputs]
    mine = operator(proto, OPSETS)(read_node(proto), tensors)
    (theirs,) = by_onnxruntime(proto, tensors, OPSETS)
    return mine, theirs


def x():
    values = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    values.flat[:4] = [0.05, 0.15, 1e9, -1e9]  # ties of a scale of 0.1, and what is clipped
    return values


@pytest.mark.parametrize(
    ("scale", "zero", "attributes"),
    [
        (np.float32(0.1), np.uint8(128), {}),
        (np.float32(0.1), np.int8(-3), {}),
        (np.float32(1e-3), np.int16(0), {}),
        (np.float32(1e-3), np.uint16(30000), {}),
        (np.linspace(0.01, 0.2, 6, dtype=np.float32), np.arange(6, dtype=np.uint8), {"axis": 1}),
        (
            np.linspace(0.01, 0.2, 60, dtype=np.float32).reshape(4, 3, 5),
            np.zeros((4, 3, 5), np.int8),
            {"axis": 1, "block_size": 2},
        ),
    ],
)
def test_codes_are_those_of_onnxruntime_bit_by_bit(scale, zero, attributes):
    mine, theirs = both("QuantizeLinear", [x(), np.asarray(scale), np.asarray(zero)], **attributes)
    assert mine.dtype == theirs.dtype
    assert np.array_equal(mine.numpy(), theirs.numpy())
    codes = mine.numpy()
    back, theirs = both("DequantizeLinear", [codes, np.asarray(scale), np.asarray(zero)], **attributes)
    assert np.array_equal(back.numpy(), theirs.numpy())


def test_float8_codes_saturate_at_448():
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    codes = operator(onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), OPSETS)(
        read_node(onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])),
        [as_tensor(np.array([500.0, -1000.0, 17.0], np.float32)), as_tensor(np.float32(1)), as_tensor(zero)],
    )
    assert codes.float().tolist() == [448.0, -448.0, 16.0]


def test_four_bit_constants_are_read_as_bytes():
    codes = np.array([-8, 7, 3], ml_dtypes.int4)
    assert as_tensor(codes).dtype == torch.int8
    assert as_tensor(codes).tolist() == [-8, 7, 3]


def test_an_operator_that_torch_does_not_know_runs_in_onnxruntime():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 4), np.float32)
    proto = onnx.helper.make_node("Einsum", ["a", "b"], ["c"], equation="ij,jk->ik")
    (found,) = operator(proto, OPSETS)(read_node(proto), [as_tensor(a), as_tensor(b)])
    assert np.array_equal(found.numpy(), a @ b)


def test_axes_as_an_attribute_are_those_of_an_older_opset():
    proto = onnx.helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0)
    (found,) = operator(proto, [onnx.helper.make_opsetid("", 13)])(read_node(proto), [as_tensor(x())])
    assert np.allclose(found.numpy(), x().mean(axis=1))


def test_a_node_that_nothing_runs_is_named():
    proto = onnx.helper.make_node("Unheard", ["x"], ["y"], "mystery")
    with pytest.raises(EngineError, match="Unheard mystery runs neither in torch nor in onnxruntime"):
        operator(proto, OPSETS)(read_node(proto), [as_tensor(x())])
