"""Where the numbers of an operand come from, in a graph quantized in any of the usual ways.

    x -> Q -> DQ -> op        coded activation            codes -> DQ -> op             coded weight
    w -> Q -> DQ -> op        weight coded at load        codes -> DQ -> Cast -> DQ     4-bit codes for an 8-bit kernel
    codes -> Cast -> DQ       4-bit codes, cast at load   codes -> Cast -> Mul -> op    multiplied out at load

Operators that move numbers without changing them (MOVES) may stand between a DQ and its reader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quaver.exporter.lint.edges import Index, Shape, values

if TYPE_CHECKING:
    import onnx

MOVES = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "MaxPool", "Dropout", "Split")
NAMES = {1: "float32", 10: "float16", 16: "bfloat16", 11: "float64", 17: "float8", 18: "float8", 22: "int4"}
NAMES |= {21: "uint4", 3: "int8", 2: "uint8", 5: "int16", 4: "uint16", 6: "int32", 7: "int64"}


@dataclass(frozen=True)
class Codes:
    """How the numbers of an operand are coded.

    format: type of the codes that are multiplied. stored: type in the file. scales: one per "tensor", "channel" (along
    `axis`) or "block" (of `block` codes along it). scale, zero: their edges, "" for none. real: what codes stand for.
    chain: operators from the stored or real numbers to the decoded ones. declared: QuantizeLinear names its type.
    """

    format: str
    stored: str
    scales: str
    axis: int
    block: int
    scale: str
    zero: str
    real: str
    chain: tuple[str, ...]
    declared: bool = False


@dataclass(frozen=True)
class Operand:
    """One input of a product.

    real: type of its numbers. constant: known when the file is loaded. source: the constant its codes or numbers are
    stored in, "" for an activation; stored: its type. moved: operators between DQ and product, the nearest first.
    behind: what computes it when nothing is coded there; past: whether that reads coded numbers. readers: how many
    nodes read the decoded numbers.
    """

    edge: str
    real: str
    shape: Shape | None
    constant: bool
    codes: Codes | None
    source: str = ""
    stored: str = ""
    moved: tuple[str, ...] = ()
    behind: str = ""
    past: bool = False
    readers: int = 1


@dataclass(frozen=True)
class Output:
    """What becomes of a product: its codes when one QuantizeLinear reads it, else who reads it as a float.

    through: operators before that QuantizeLinear. lowest: its zero point is its lowest code, so that it clips at 0.
    added: shape of what a lone Add adds.
    """

    codes: Codes | None
    readers: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    added: Shape | None = None
    lowest: bool = False


def read_operand(graph: Index, edge: str) -> Operand:
    """Follow an edge back to its codes, or to what computes it."""
    start, moved = edge, list[str]()
    while (node := graph.makers.get(edge)) and (node.op_type in MOVES or _joins(graph, node) or _idle(graph, node)):
        moved.append("Identity" if _idle(graph, node) else node.op_type)
        edge = node.input[0]
    constant = start in graph.fixed
    source = leaf(graph, edge) if constant else ""
    codes = _decoded(graph, node) if node is not None and node.op_type == "DequantizeLinear" else None
    return Operand(
        start,
        codes.real if codes else NAMES.get(graph.types.get(start, 0), "float32"),
        graph.shapes.get(start),
        constant,
        codes,
        source,
        NAMES.get(graph.types.get(source, 0), "") if constant else "",
        tuple(moved),
        node.op_type if node is not None and codes is None else "",
        node is not None and any(_op(graph, e) == "DequantizeLinear" for e in node.input),
        len(graph.readers[edge]) if constant or node is None else _readers(graph, node),
    )


def read_output(graph: Index, node: onnx.NodeProto) -> Output:
    """Follow the output of a node to the one QuantizeLinear that reads it, or say who else does."""
    edge, through = node.output[0], list[str]()
    while True:
        readers = graph.readers[edge]
        if edge in graph.outputs or len(readers) != 1:
            names = tuple(n.op_type for n in readers) + (("an output of the graph",) if edge in graph.outputs else ())
            return Output(None, names or ("nothing",), tuple(through))
        (reader,) = readers
        if reader.op_type == "QuantizeLinear":
            return Output(
                _quantized(graph, reader, ("QuantizeLinear",)), (), tuple(through), lowest=_lowest(graph, reader)
            )
        if reader.op_type not in (*MOVES, "Relu", "Clip"):
            other = next((e for e in reader.input if e != edge), "") if reader.op_type == "Add" else ""
            return Output(None, (reader.op_type,), tuple(through), graph.shapes.get(other) if not through else None)
        through.append(reader.op_type)
        edge = reader.output[0]


def _readers(graph: Index, node: onnx.NodeProto) -> int:
    """How many nodes read what a node makes; of a DQ, what all DQs of the same codes make."""
    same = graph.readers[node.input[0]] if node.op_type == "DequantizeLinear" else [node]
    return sum(len(graph.readers[twin.output[0]]) for twin in same)


def _joins(graph: Index, node: onnx.NodeProto) -> bool:
    """Whether a node is a Concat of parts that are all coded with the same scale."""
    makers = [graph.makers.get(edge) for edge in node.input] if node.op_type == "Concat" else []
    found = [values(graph, m.input[1]) for m in makers if m is not None and m.op_type == "DequantizeLinear"]
    scales = [scale for scale in found if scale is not None]
    return 0 < len(makers) == len(scales) and all(np.array_equal(scale, scales[0]) for scale in scales)


def _idle(graph: Index, node: onnx.NodeProto) -> bool:
    """Whether a node changes neither sizes nor type where it could."""
    ends = node.input[0], node.output[0]
    before, after = ((graph.shapes.get(edge), graph.types.get(edge)) for edge in ends)
    return node.op_type in ("Expand", "Pad", "Cast") and before == after and None not in (before[0] or (None,))


def _op(graph: Index, edge: str) -> str:
    return graph.makers[edge].op_type if edge in graph.makers else ""


def _lowest(graph: Index, node: onnx.NodeProto) -> bool:
    zero = values(graph, node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    return zero is not None and zero.dtype in (np.uint8, np.int8) and bool(np.all(zero == np.iinfo(zero.dtype).min))


def leaf(graph: Index, edge: str) -> str:
    """The largest constant that a constant edge is made of."""
    seen, queue = dict[str, None](), [edge]
    while queue:
        if (edge := queue.pop()) not in seen:
            seen[edge] = None
            queue += reversed(graph.makers[edge].input if edge in graph.makers else ())
    constants = (edge for edge in seen if edge in graph.constants)
    return max(constants, key=lambda edge: math.prod(graph.constants[edge].dims), default="")


def _decoded(graph: Index, node: onnx.NodeProto) -> Codes:
    """The codes that a DequantizeLinear reads, with the chain that brought them there."""
    chain, edge, declared = ["DequantizeLinear"], node.input[0], False
    while (maker := graph.makers.get(edge)) and maker.op_type in ("Cast", "DequantizeLinear", "QuantizeLinear", *MOVES):
        if maker.op_type not in MOVES:
            chain.append(maker.op_type)
        declared |= maker.op_type == "QuantizeLinear" and any(a.name == "output_dtype" for a in maker.attribute)
        if maker.op_type == "QuantizeLinear":
            break
        edge = maker.input[0]
    quantizer = graph.makers.get(edge)
    if quantizer is not None and quantizer.op_type == "QuantizeLinear" and chain[-1] == "QuantizeLinear":
        return _quantized(graph, node, tuple(chain), _format(graph, quantizer, 2), declared)
    stored = NAMES.get(graph.types.get(edge, 0), "")
    made = NAMES.get(graph.types.get(node.input[0], 0), "") or stored
    return _quantized(graph, node, tuple(chain), made, declared, stored)


def _quantized(
    graph: Index, node: onnx.NodeProto, chain: tuple[str, ...], fmt: str = "", declared: bool = False, stored: str = ""
) -> Codes:
    """The codes on the near side of a Q or DQ."""
    values = {a.name: a.i for a in node.attribute if a.name in ("axis", "block_size", "output_dtype")}
    scale = graph.shapes.get(node.input[1], ())
    block = values.get("block_size", 0)
    scales = "block" if block else "channel" if math.prod(d or 1 for d in scale) > 1 else "tensor"
    zero = node.input[2] if len(node.input) > 2 else ""
    fmt = fmt or _format(graph, node, 2)
    real = NAMES.get(graph.types.get(node.input[1], 0), "float32")
    return Codes(fmt, stored or fmt, scales, values.get("axis", 1), block, node.input[1], zero, real, chain, declared)


def _format(graph: Index, node: onnx.NodeProto, zero: int) -> str:
    """The type of the codes of a QuantizeLinear."""
    declared = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    edge = node.input[zero] if len(node.input) > zero else ""
    return NAMES.get(graph.types.get(edge, 0) or declared, "uint8")
