"""Turn the exporter's K^T of attention into one Transpose.

    K [B, H, S, D] -> Reshape [-1, S, D] -> Transpose (0, 2, 1) -> Reshape [B, H, D, S]

is Transpose (0, 1, 3, 2). The detour computes its shapes at run time (Shape, Slice, Concat) and hides the pattern
Q K^T from the runtimes' fusions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Producers = Mapping[str, "onnx.NodeProto"]


def run(model: onnx.ModelProto) -> bool:
    """Replace every such chain; the nodes it leaves without a reader are for the pass `unused`."""
    producers = {out: node for node in model.graph.node for out in node.output}
    found = [(node, keys) for node in model.graph.node if (keys := _keys(node, producers))]
    for node, keys in found:
        node.op_type = "Transpose"
        del node.attribute[:], node.input[:]
        node.input.append(keys)
        node.attribute.append(need("onnx", extra="export").helper.make_attribute("perm", [0, 1, 3, 2]))
    return bool(found)


def _keys(node: onnx.NodeProto, producers: Producers) -> str:
    """The edge K when `node` ends the chain, else ""."""
    swap = producers.get(node.input[0]) if node.op_type == "Reshape" else None
    flatten = producers.get(swap.input[0]) if swap and swap.op_type == "Transpose" else None
    if not swap or not flatten or flatten.op_type != "Reshape":
        return ""
    source = flatten.input[0]
    swaps = any(a.name == "perm" and list(a.ints) == [0, 2, 1] for a in swap.attribute)
    measured = all(_shape_of(shape, producers) == source for shape in (flatten.input[1], node.input[1]))
    return source if swaps and measured else ""


def _shape_of(edge: str, producers: Producers) -> str:
    """The tensor whose Shape, sliced and joined, makes `edge`; "" when it is made otherwise."""
    node = producers.get(edge)
    if node is None or node.op_type == "Shape":
        return node.input[0] if node else ""
    if node.op_type == "Slice":
        return _shape_of(node.input[0], producers)
    found = {_shape_of(part, producers) for part in node.input} - {""} if node.op_type == "Concat" else set()
    return found.pop() if len(found) == 1 else ""
