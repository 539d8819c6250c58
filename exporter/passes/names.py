"""Name each layer's node and weight after its module, so that every runtime's messages speak of the model.

A linear layer reaches ONNX as a MatMul with a transposed, nameless weight (`val_200`, `onnx::MatMul_1203`); it becomes
`mid_block.attentions.0.proj_in.weight` again. Shared weights keep the name of the first layer that reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaver.calib.graph import layers
from quaver.exporter.passes.provenance import WRAPPER

if TYPE_CHECKING:
    import onnx

NAMELESS = ("val_", "onnx::")  # what torch's exporters call a constant that is no parameter


def run(model: onnx.ModelProto) -> bool:
    """Rename layer nodes to their module path and constants without the tracer's prefix; True if a name changed."""
    graph, found = model.graph, layers(model)
    nodes = {node.name: node for node in graph.node}
    changed = [layer for layer in found if layer.node != layer.name]
    for layer in changed:
        nodes[layer.node].name = layer.name
    nameless = {layer.weight: f"{layer.name}.weight" for layer in found if layer.weight.startswith(NAMELESS)}
    taken = {edge for node in graph.node for edge in (*node.input, *node.output)}
    new: dict[str, str] = {}
    for tensor in graph.initializer:
        name = nameless.get(tensor.name, tensor.name.removeprefix(WRAPPER + "."))
        if name not in taken:
            new[tensor.name] = name
            tensor.name = name
            taken.add(name)
    for node in graph.node:
        for index, edge in enumerate(node.input):
            node.input[index] = new.get(edge, edge)
    return bool(changed or new)
