"""Drop nodes whose results nobody reads, and constants and recorded shapes of edges that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def run(model: onnx.ModelProto) -> bool:
    """Remove them; True if there were any. A graph with subgraphs (If, Loop) is left alone: those read edges too."""
    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return False
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    live = read | {out for node in kept for out in node.output}
    before = len(graph.node) + len(graph.initializer) + len(graph.value_info)
    _keep(graph.node, kept[::-1])
    _keep(graph.initializer, [t for t in graph.initializer if t.name in read])
    _keep(graph.value_info, [v for v in graph.value_info if v.name in live])
    return before != len(graph.node) + len(graph.initializer) + len(graph.value_info)


def _keep(field: list, items: list) -> None:
    if len(items) != len(field):
        del field[:]
        field.extend(items)
