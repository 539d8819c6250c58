"""The products of a graph: every node that multiplies, and what it multiplies.

Convolutions, Gemm, MatMul and Einsum by a weight or of two activations; a whole attention, whose operands are Q and K;
and the operators on codes (NATIVE) that onnxruntime's own quantizers write. Multiply-accumulates per sample, symbolic
sizes counted as 1:

    Conv: prod(output) C_in / groups prod(kernel)        Gemm, MatMul: prod(output) K        Einsum: prod(all indices)
    attention [B, S, C] over T keys: 2 prod(output) T
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import module_of
from quaver.exporter.lint.edges import Index, Shape, following, node_name, values
from quaver.exporter.lint.operands import NAMES, Codes, Operand, Output, leaf, read_operand, read_output
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

ATTENTION = "MultiHeadAttention"
FLOAT_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "FusedConv", "FusedMatMul", "FusedGemm", ATTENTION)
# operators on codes: (codes, scale, zero point) of both operands by position, then the output's, -1 where there is none
NATIVE: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "QLinearConv": ((0, 1, 2), (3, 4, 5), (-1, 6, 7)),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5), (-1, 6, 7)),
    "QGemm": ((0, 1, 2), (3, 4, 5), (-1, 7, 8)),
    "ConvInteger": ((0, -1, 2), (1, -1, 3)),
    "MatMulInteger": ((0, -1, 2), (1, -1, 3)),
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)),
    "DynamicQuantizeMatMul": ((0, -1, -1), (1, 2, 3)),
    "MatMulNBits": ((0, -1, -1), (1, 2, 3)),
}
PRODUCTS = (*FLOAT_OPS, *NATIVE)


@dataclass(frozen=True)
class Product:
    """A node that multiplies: `name` is its module path, or its node name, or the edge it writes.

    edges: the one it writes and those behind it, as long as one node reads each alone; after: the operators of these
    nodes. macs: per sample, None without shapes. bias_off: the bias codes have another scale than the integer sums.
    attributes: of the node.
    """

    name: str
    node: str
    op: str
    left: Operand
    right: Operand
    bias: Operand | None
    output: Output
    edges: tuple[str, ...]
    after: tuple[str, ...]
    macs: int | None
    bias_off: bool = False
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def weight(self) -> Operand | None:
        """The constant operand, if there is one."""
        return next((o for o in (self.right, self.left) if o.constant), None)


def products(graph: Index) -> list[Product]:
    """Every product of a graph in its order, those of two activations too."""
    seen, found = Counter[str](), []
    for node in graph.nodes:
        if node.op_type in PRODUCTS and len(node.input) > 1:
            name = module_of(node) or node_name(node)
            seen[name] += 1
            found.append(_product(graph, node, name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return [p for p in found if not (p.left.constant and p.right.constant)]


def _product(graph: Index, node: onnx.NodeProto, name: str) -> Product:
    attributes = {a.name: _value(a) for a in node.attribute}
    if node.op_type in NATIVE:
        first, second, *rest = NATIVE[node.op_type]
        left, right = (_native(graph, node, places, attributes) for places in (first, second))
        output, bias = Output(_coded(graph, node, rest[0], "") if rest else None), None
    else:
        left, right = (read_operand(graph, edge) for edge in node.input[:2])
        added = node.input[2] if len(node.input) > 2 and node.op_type != ATTENTION else ""
        bias = read_operand(graph, added) if added else None
        output = read_output(graph, node)
    macs = _macs(graph, node, left.shape, right.shape, attributes)
    edges = tuple(following(graph, node.output[0]))
    after = tuple(graph.makers[edge].op_type for edge in edges[1:])
    return Product(
        name,
        node_name(node),
        node.op_type,
        left,
        right,
        bias,
        output,
        edges,
        after,
        macs,
        _bias_off(graph, left, right, bias),
        attributes,
    )


def _bias_off(graph: Index, left: Operand, right: Operand, bias: Operand | None) -> bool:
    """Whether a coded bias has another scale than s_x s_w, by more than rounding explains.

    Not asked of scales that no bias can match: several of the input, or others than one per output channel.
    """
    codes = [operand.codes for operand in (left, right, bias) if operand is not None]
    if bias is None or None in codes:
        return False
    x, w, b = (values(graph, c.scale) for c in codes if c is not None)
    if x is None or w is None or b is None or x.size > 1 or (w.size != b.size and 1 not in (w.size, b.size)):
        return False
    return not np.allclose(x * w.reshape(-1), b, rtol=0.1)


def _native(
    graph: Index, node: onnx.NodeProto, places: tuple[int, int, int], attributes: Mapping[str, object]
) -> Operand:
    """An operand of an operator on codes."""
    edge = node.input[places[0]]
    constant, codes = edge in graph.fixed, _coded(graph, node, places, edge)
    source = leaf(graph, edge) if constant else ""
    shape = graph.shapes.get(edge)
    if node.op_type == "MatMulNBits" and constant:
        fmt = {2: "int2", 4: "uint4", 8: "uint8"}.get(int(str(attributes.get("bits", 4))), "uint8")
        k, n, block = (int(str(attributes.get(name, 0))) for name in ("K", "N", "block_size"))
        shape = (k, n)
        codes = Codes(fmt, fmt, "block", 0, block, "", "", "float32", ())
    stored, behind = codes.stored if codes else "", graph.makers[edge].op_type if edge in graph.makers else ""
    return Operand(
        edge, "float32", shape, constant, codes, source, stored, (), behind, readers=len(graph.readers[edge])
    )


def _coded(graph: Index, node: onnx.NodeProto, places: tuple[int, int, int], edge: str) -> Codes | None:
    """The codes of an operand or output given by three positions, None when those inputs are not there."""
    scale, zero = (node.input[i] if 0 <= i < len(node.input) else "" for i in places[1:])
    fmt = NAMES.get(graph.types.get(edge or zero, 0), "")
    if (fmt.startswith("float") and fmt != "float8") or not fmt:
        return None
    scales = "channel" if math.prod(d or 1 for d in graph.shapes.get(scale, ())) > 1 else "tensor"
    return Codes(fmt, fmt, scales, 0, 0, scale, zero, "float32", ())


def _macs(
    graph: Index, node: onnx.NodeProto, left: Shape | None, right: Shape | None, attributes: Mapping[str, object]
) -> int | None:
    """Multiply-accumulates, symbolic sizes counted as 1."""
    out = graph.shapes.get(node.output[0])
    if out is None or left is None or right is None:
        return None
    size = math.prod(d or 1 for d in out)
    if "Conv" in node.op_type:
        window = math.prod(d or 1 for d in right[1:])
        return math.prod(d or 1 for d in left) * window if node.op_type == "ConvTranspose" else size * window
    if node.op_type == "Einsum":
        terms, made = str(attributes.get("equation", "")).replace(" ", "").partition("->")[::2]
        named = zip(terms.replace(",", ""), (*left, *right), strict=False)
        return size * math.prod(d or 1 for k, d in {k: d for k, d in named if k not in made}.items())
    if node.op_type == ATTENTION:
        return 2 * size * (right[1] or 1)
    inner = right[0] if node.op_type in ("MatMulNBits",) else left[0] if attributes.get("transA") == 1 else left[-1]
    return size * (inner or 1)


def _value(attribute: onnx.AttributeProto) -> object:
    value = need("onnx", extra="export").helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
