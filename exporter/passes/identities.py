"""Drop what changes nothing: Identity, Dropout, a Cast to the type that is there, a product or quotient with one.

Exporters leave them where a program divides by a scale that is 1 or casts to be sure; behind them a skip connection or
a bias is not recognised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx


def run(model: onnx.ModelProto) -> bool:
    """Drop them where the file records types, and read what they read; True if there was any."""
    array = need("onnx", extra="export").numpy_helper.to_array
    graph = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    ones = {
        t.name: t.data_type
        for t in graph.initializer
        if not t.external_data and np.prod(t.dims) == 1 and len(t.dims) < 2 and array(t).item() == 1
    }
    outputs, kept = {value.name for value in graph.output}, []
    instead: dict[str, str] = {}
    for node in graph.node:
        for index, edge in enumerate(node.input):
            node.input[index] = instead.get(edge, edge)
        if node.output[0] not in outputs and _changes_nothing(node, kinds, ones):
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if instead:
        del graph.node[:]
        graph.node.extend(kept)
    return bool(instead)


def _changes_nothing(node: onnx.NodeProto, kinds: dict[str, int], ones: dict[str, int]) -> bool:
    kind = kinds.get(node.input[0], 0) if node.input else 0
    if node.op_type in ("Mul", "Div"):
        return node.input[1] in ones and ones[node.input[1]] == kind and node.input[0] not in ones
    if node.op_type == "Cast":
        return kind != 0 and next(a.i for a in node.attribute if a.name == "to") == kind
    return node.op_type in ("Identity", "Dropout") and not any(node.output[1:])
