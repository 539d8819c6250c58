"""Write a whole attention as the one operator that onnxruntime's CPU has a kernel for.

    y = merge(softmax(s split(q) split(k)^T) split(v))      split: [B, S, H D] -> [B, H, S, D], merge: back

is com.microsoft.MultiHeadAttention(q, k, v) with H heads and scale s: no transposes, and the scores never leave the
cache. What is masked, or coded between its steps, or of a length that the graph leaves open, stays as it is. Source:
Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaver.calib.graph import edge_shapes
from quaver.exporter.draft import Read
from quaver.exporter.passes import unused
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

DOMAIN, OPERATOR = "com.microsoft", "MultiHeadAttention"
HEADS, KEYS, BOTH = [0, 2, 1, 3], [0, 1, 3, 2], [0, 2, 3, 1]  # to heads and back; K^T; K^T straight from its split


@dataclass(frozen=True)
class Graph:
    """Who writes an edge, who reads it, which are asked for; shapes; the value of a constant."""

    writers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    outputs: set[str]
    shapes: Mapping[str, tuple[int | None, ...]]
    constants: Mapping[str, onnx.TensorProto]
    read: Read


def run(model: onnx.ModelProto, *, read: Read) -> bool:
    """Replace every such attention, with the nodes that nobody reads any more; `read` gives a constant's values."""
    graph = _graph(model, read)
    found = [_fuse(node, graph) for node in model.graph.node if node.op_type == "Softmax"]
    if not any(found):
        return False
    model.opset_import.add(domain=DOMAIN, version=1)
    unused.run(model)
    return True


def _graph(model: onnx.ModelProto, read: Read) -> Graph:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for edge in node.input:
            readers.setdefault(edge, []).append(node)
    writers = {edge: node for node in model.graph.node for edge in node.output}
    outputs, constants = {value.name for value in model.graph.output}, {t.name: t for t in model.graph.initializer}
    return Graph(writers, readers, outputs, edge_shapes(model), constants, read)


def _fuse(softmax: onnx.NodeProto, graph: Graph) -> bool:
    """Turn the node that ends the attention around a Softmax into the whole of it."""
    scores, scale = _scaled(softmax.input[0], graph)
    inner, outer = _written(scores, graph, "MatMul"), _read_by(softmax.output[0], graph, "MatMul")
    last_axis = _settings(softmax).get("axis", -1) in (-1, 3)
    if not last_axis or not inner or not outer or outer.input[0] != softmax.output[0]:
        return False
    query, of_query = _scaled(inner.input[0], graph)
    keys, of_keys = _scaled(inner.input[1], graph)
    split = [_split(query, graph), _keys(keys, graph), _split(outer.input[1], graph)]
    last = _merged(outer.output[0], graph)
    heads = {number for _, number in split}
    if not last or len(heads) > 1 or 0 in heads:
        return False
    helper = need("onnx", extra="export").helper
    last.op_type, last.domain = OPERATOR, DOMAIN
    del last.input[:], last.attribute[:]
    last.input.extend(edge for edge, _ in split)
    last.attribute.append(helper.make_attribute("num_heads", heads.pop()))
    last.attribute.append(helper.make_attribute("scale", scale * of_query * of_keys))
    return True


def _scaled(edge: str, graph: Graph) -> tuple[str, float]:
    """What `edge` is a constant multiple of, and the factor."""
    node = _written(edge, graph, "Mul") or _written(edge, graph, "Div")
    fixed = [e for e in node.input if e in graph.constants] if node else []
    if not node or len(fixed) != 1 or (value := graph.read(graph.constants[fixed[0]])).size != 1:
        return edge, 1.0
    if node.op_type == "Div" and fixed[0] != node.input[1]:
        return edge, 1.0
    source, factor = _scaled(next(e for e in node.input if e != fixed[0]), graph)
    constant = float(value.reshape(()))
    return source, factor * constant if node.op_type == "Mul" else factor / constant


def _split(edge: str, graph: Graph) -> tuple[str, int]:
    """The [B, S, H D] that `edge` [B, H, S, D] is made from, and H; ("", 0) when it is made otherwise."""
    return _reshaped(edge, graph, HEADS)


def _keys(edge: str, graph: Graph) -> tuple[str, int]:
    """The same of K^T [B, H, D, S]."""
    turned = _transposed(edge, graph, KEYS)
    return _split(turned, graph) if turned else _reshaped(edge, graph, BOTH)


def _reshaped(edge: str, graph: Graph, order: list[int]) -> tuple[str, int]:
    wide = _transposed(edge, graph, order)
    node = _written(wide, graph, "Reshape")
    if not node:
        return "", 0
    before, after = graph.shapes.get(node.input[0], ()), graph.shapes.get(wide, ())
    if len(before) != 3 or len(after) != 4 or before[1] is None or before[1] != after[1] or not after[2]:
        return "", 0
    return node.input[0], after[2]


def _merged(edge: str, graph: Graph) -> onnx.NodeProto | None:
    """The Reshape that makes [B, S, H D] of `edge` [B, H, S, D], when nothing else reads what lies between."""
    turn = _read_by(edge, graph, "Transpose")
    if not turn or _settings(turn).get("perm") != HEADS:
        return None
    last = _read_by(turn.output[0], graph, "Reshape")
    before, after = (graph.shapes.get(e, ()) for e in (turn.output[0], last.output[0] if last else ""))
    fits = len(before) == 4 and len(after) == 3 and before[1] is not None and before[1] == after[1]
    return last if fits else None


def _transposed(edge: str, graph: Graph, order: list[int]) -> str:
    """What `edge` is a transpose of in that order, else ""."""
    node = _written(edge, graph, "Transpose")
    return node.input[0] if node and _settings(node).get("perm") == order else ""


def _written(edge: str, graph: Graph, op: str) -> onnx.NodeProto | None:
    """The node that writes an edge, when it is an `op`."""
    node = graph.writers.get(edge)
    return node if node is not None and node.op_type == op else None


def _read_by(edge: str, graph: Graph, op: str) -> onnx.NodeProto | None:
    """The only node that reads an edge, when it is an `op` and nobody asks for the edge itself."""
    found = [] if edge in graph.outputs else graph.readers.get(edge, [])
    return found[0] if len(found) == 1 and found[0].op_type == op else None


def _settings(node: onnx.NodeProto) -> dict[str, object]:
    helper = need("onnx", extra="export").helper
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
