"""Types of kernels, what they multiply in, and whether a prediction came true.

A prediction (`ort`, `tensorrt`) and what a compiled graph says are both a type:

    onnxruntime    QLinearConv, QGemm, QLinearMatMul, MatMulIntegerToFloat, MatMulNBits, .., float Conv, float MatMul
    TensorRT       INT8, FP8; FP16, FP32 (after dequantize: by a kernel of its own); FP16 x INT4: unpacked in the kernel

onnxruntime writes the graph it runs to a file, TensorRT a build log; both become a list of `Compiled` layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quaver.exporter.plans.log import Compiled

AFTER = " after dequantize"
# onnxruntime's operators that multiply -> their type
ORT_TYPES = {
    **{name: name for name in ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulNBits")},
    **{name: name for name in ("DynamicQuantizeMatMul", "ConvInteger", "MatMulInteger")},
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv"), "float Conv"),
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm"), "float MatMul"),
    "ConvTranspose": "float ConvTranspose",
    "Einsum": "float Einsum",
    "MultiHeadAttention": "float attention",
}
FLOATS = {"Float": "FP32", "Half": "FP16", "BFloat16": "BF16", "float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
CODED = {"Int8": "INT8", "Int4": "INT4", "FP8": "FP8"}


@dataclass(frozen=True)
class Kernel:
    """The kernel a product is predicted to get.

    multiplies: "INT8", "FP8", "16 bit" or "32 bit". why: why not INT8, "" when it is. refused: why the target does not
    run it, or not rightly, and what to do. warning: what runs, but should not be so.
    """

    type: str
    multiplies: str
    why: str = ""
    refused: str = ""
    warning: str = ""


def disagreements(predicted: Iterable[tuple[str, str, str]], compiled: Sequence[Compiled]) -> list[dict[str, str]]:
    """Where a plan is not what was predicted: {layer, node, predicted, compiled}, from (node, layer, kernel type).

    compiled is "" for a node that no layer of the plan names. "after dequantize" agrees with the float kernel that the
    log shows: the unpacking kernel is a layer of its own there.
    """
    found = []
    for node, layer, kernel in predicted:
        if (real := compiled_type(node, compiled)) != kernel.removesuffix(AFTER):
            found.append({"layer": layer, "node": node, "predicted": kernel, "compiled": real})
    return found


def compiled_type(node: str, compiled: Sequence[Compiled]) -> str:
    """The type of the kernel that multiplies for an ONNX node, "" when no layer names it."""
    mine = [layer for layer in compiled if node in layer.nodes]
    # attention in 16 bit becomes one generated kernel, of the class that otherwise moves and scales
    ranked = sorted(mine, key=lambda layer: (not layer.multiplies, -len(layer.inputs)))
    return _type(ranked[0]) if ranked else ""


def _type(layer: Compiled) -> str:
    if layer.kernel in ORT_TYPES:
        return ORT_TYPES[layer.kernel]
    first = layer.inputs[:1]
    real = next((FLOATS[kind] for kind in (*layer.outputs, *layer.inputs) if kind in FLOATS), "?")
    # a runtime_fusion multiplies floats and unpacks codes on the way, whatever it reads
    unpacked = next((CODED[kind] for kind in (*layer.constants, *layer.inputs) if kind in CODED), "")
    if layer.kernel == "runtime_fusion":
        return f"{real} x {unpacked}" if unpacked else real
    return CODED[first[0]] if layer.multiplies and first and first[0] in CODED else real
