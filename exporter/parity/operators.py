"""What a quantized graph computes, operator by operator, in torch: codes are rounded and clipped exactly.

    QuantizeLinear     q = clip(round(x / s) + z, qmin, qmax)      ties to even; E4M3: x / s, saturating at 448
    DequantizeLinear   (q - z) s

Scales are per tensor, along an axis, or in blocks along it. The operators between are those of `calib.reconstruct`;
one that is not there, or not in the form of this graph's opset, is run alone by onnxruntime. Source: ONNX operators 21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.quant import FLOAT8_MAX
from quaver.calib.reconstruct.operators import OPERATORS, torch
from quaver.calib.reconstruct.replay import DOMAINS, LayerRun, Node
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


def quantize(inputs: Sequence[Any], at: Mapping[str, Any]) -> Tensor:
    """QuantizeLinear of x [...]."""
    x, scale, zero = (*inputs, None)[:3]
    dtype = torch().uint8 if zero is None else zero.dtype
    if zero is None and "output_dtype" in at:
        raise EngineError("a QuantizeLinear names its type without a zero point")  # left to onnxruntime
    ratio = x.float() / _spread(scale.float(), x, at)
    if dtype.is_floating_point:
        return ratio.clamp(-FLOAT8_MAX, FLOAT8_MAX).to(dtype)
    limits = torch().iinfo(dtype)
    codes = ratio.round() + (0 if zero is None else _spread(zero.float(), x, at))
    return codes.nan_to_num(nan=float(limits.min)).clamp(limits.min, limits.max).to(dtype)


def dequantize(inputs: Sequence[Any], at: Mapping[str, Any]) -> Tensor:
    """DequantizeLinear of codes [...]."""
    codes, scale, zero = (*inputs, None)[:3]
    real = scale.dtype
    if codes.dtype.is_floating_point:
        return (codes.float() * _spread(scale.float(), codes, at)).to(real)
    wide = codes.to(torch().int32) if zero is None else codes.to(torch().int32) - _spread(zero.int(), codes, at)
    return (wide.float() * _spread(scale.float(), codes, at)).to(real)


CODING = {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}


def operator(proto: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto]) -> LayerRun:
    """The function of one node: node, inputs -> tensor or tuple of tensors.

    Raises, when called: EngineError naming a node that neither torch nor onnxruntime runs.
    """
    known = CODING.get(proto.op_type) or OPERATORS.get(proto.op_type) if proto.domain in DOMAINS else None

    def run(node: Node, inputs: list[Any]) -> Any:
        # axes in an attribute: an opset whose form the table of operators does not know
        if known is not None and "axes" not in node.attributes:
            with suppress(EngineError, KeyError, RuntimeError):
                return known(inputs, node.attributes)
        return by_onnxruntime(proto, inputs, opsets)

    return run


def by_onnxruntime(
    proto: onnx.NodeProto, inputs: Sequence[Any], opsets: Sequence[onnx.OperatorSetIdProto]
) -> tuple[Tensor, ...]:
    """One node as a model of its own, nothing optimized."""
    onnx, ort = need("onnx", extra="export"), need("onnxruntime", extra="export")
    feeds = {name: x.detach().numpy() for name, x in zip(proto.input, inputs, strict=True) if name and x is not None}
    typed = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "one", typed, outputs)
    model = onnx.helper.make_model(graph, opset_imports=list(opsets), ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = iter(session.run(None, feeds))
    except Exception as error:  # onnxruntime raises a dozen classes of its own
        raise EngineError(
            f"{proto.op_type} {proto.name or proto.output[0]} runs neither in torch nor in onnxruntime "
            f"({str(error).splitlines()[0][:200]}): check the file with onnx.checker"
        ) from error
    return tuple(torch().from_numpy(np.ascontiguousarray(next(found))) if name else None for name in proto.output)


def as_tensor(array: np.ndarray) -> Tensor:
    """A numpy array, of ONNX's narrow types too, as a tensor; 4-bit codes in bytes."""
    if array.dtype.name in ("int4", "uint4"):
        array = array.astype(array.dtype.name.replace("4", "8"))
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        carrier = np.int16 if array.dtype.itemsize == 2 else np.uint8
        return torch().from_numpy(np.array(array.view(carrier))).view(getattr(torch(), array.dtype.name))
    return torch().from_numpy(np.require(array, requirements=["C", "W"]))


def _spread(value: Tensor, x: Tensor, at: Mapping[str, Any]) -> Tensor:
    """A scale or zero point in the shape that meets x."""
    if value.numel() == 1:
        return value.reshape(())
    axis = at.get("axis", 1) % x.ndim
    if block := at.get("block_size", 0):
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if d == axis else 1 for d in range(x.ndim)])
