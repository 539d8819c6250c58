"""What a target refuses in a graph, whichever product it serves: operators, opsets, types of codes, zero points.

TensorRT: symmetric codes only (zero points 0), int8, int4 and float8; biases float; standard operators. onnxruntime:
operators of its own domain too, and types only from the opset on that brought them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from quaver.exporter.lint.edges import Index, node_name, values
from quaver.exporter.lint.operands import NAMES
from quaver.exporter.targets import Target

OLDEST = 13
NEWEST = {"ort-cpu": 27}  # the newest opset that its release knows; a builder of TensorRT says so itself
HOME = {"ort-cpu": ("", "ai.onnx", "ai.onnx.ml", "com.microsoft"), "": ("", "ai.onnx", "trt")}
UNKNOWN = ("DynamicQuantizeLinear", "QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearConcat")
# type of codes or of what they stand for -> the opset whose Q/DQ take it first
SINCE = {"int16": 21, "uint16": 21, "int4": 21, "uint4": 21, "float8": 19, "float16": 19, "bfloat16": 19}
TENSORRT = ("int8", "int4", "float8", "uint8")
BITS = {"K", "N", "block_size"}  # what MatMulNBits must say


def refusals(graph: Index, opset: int, target: Target) -> Iterator[str]:
    """Why a target refuses a graph as a whole, one line each, naming the node and what to do."""
    native = target.name == "ort-cpu"
    if opset < OLDEST:
        yield f"opset {opset}: Q/DQ with a scale per channel came with {OLDEST}; export it at 21"
    if opset > NEWEST.get(target.name, opset):
        yield f"opset {opset}: onnxruntime knows {NEWEST[target.name]}; export it at 21"
    home = HOME.get(target.name, HOME[""])
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in graph.nodes if n.domain not in home})
    if foreign:
        yield f"{', '.join(foreign[:4])}: {target.name} has no such operator; use standard ONNX ones"
    if not native and (unknown := sorted({n.op_type for n in graph.nodes if n.op_type in UNKNOWN})):
        yield f"{', '.join(unknown)}: {target.name} has no such operator; use Q/DQ around float ones"
    reasons = (*_too_young(graph, opset), *_incomplete(graph)) if native else _not_tensorrt(graph, target)
    yield from gathered(reasons)


def _too_young(graph: Index, opset: int) -> Iterator[tuple[str, str]]:
    """(node, why) for Q and DQ whose types or blocks the opset does not have."""
    for node in _quantizers(graph):
        kinds = {NAMES.get(graph.types.get(edge, 0), "") for edge in node.input[:3]}
        for kind in sorted(kinds & SINCE.keys()):
            if opset < SINCE[kind]:
                yield node_name(node), f"{kind} in Q/DQ needs opset {SINCE[kind]}, this is {opset}"
        if opset < 21 and any(a.name == "block_size" and a.i for a in node.attribute):
            yield node_name(node), f"blocks need opset 21, this is {opset}"


def _incomplete(graph: Index) -> Iterator[tuple[str, str]]:
    """(node, why) for operators that do not say how they are coded."""
    for node in graph.nodes:
        if node.op_type == "MatMulNBits" and (missing := sorted(BITS - {a.name for a in node.attribute})):
            yield node_name(node), f"MatMulNBits without {', '.join(missing)}: onnxruntime does not load it; set it"


def _not_tensorrt(graph: Index, target: Target) -> Iterator[tuple[str, str]]:
    """(node, why) for Q and DQ that TensorRT does not take."""
    for node in _quantizers(graph):
        quantizes = node.op_type == "QuantizeLinear"
        held = graph.types.get(node.output[0] if quantizes else node.input[0], 0)
        zero = node.input[2] if len(node.input) > 2 else ""
        kind = NAMES.get(graph.types.get(zero, 0) or held, "uint8")
        shift = values(graph, zero) if zero else None
        if shift is not None and np.any(shift.astype(np.float32)):
            yield node_name(node), "asymmetric zero point: TensorRT takes 0 alone; quantize symmetrically, to int8"
        elif kind == "int32":
            yield node_name(node), "int32 codes: TensorRT wants biases in floats"
        elif kind not in TENSORRT:
            advice = "int4" if kind == "uint4" else "int8 weights with float16 activations"
            yield node_name(node), f"TensorRT has no {kind}; use {advice}"
        elif kind == "uint8" and (target.name != "tensorrt-rtx" or (not quantizes and _stored(graph, node.input[0]))):
            yield node_name(node), "uint8 codes: TensorRT wants int8"


def _stored(graph: Index, edge: str) -> bool:
    """Whether codes are in the file, or come from outside."""
    return edge in graph.constants or edge not in graph.makers


def _quantizers(graph: Index) -> Iterable:
    return (node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def gathered(reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line a reason, with the first of the nodes or layers it holds for."""
    found: dict[str, list[str]] = {}
    for node, why in reasons:
        found.setdefault(why, []).append(node)
    for why, nodes in found.items():
        more = f" and {len(nodes) - 2} more" if len(nodes) > 2 else ""
        yield f"{', '.join(nodes[:2])}{more}: {why}"
