"""A float ONNX graph, or a part of it, replayed in torch so that it can be differentiated.

    values[node.outputs] = operator(values[node.inputs])          node after node, in the file's order

A part is run from the edges it is given: only the nodes between those and the wanted edges are executed, and a value is
dropped when its last reader has run. `layers` puts another function in the place of a node's operator, which is how
weights become codes and activations are quantized (`coding`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quaver.calib.graph import module_of
from quaver.calib.reconstruct.operators import OPERATORS, torch
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """One node: name, operator, edges ("" for an input left out), attributes, and the module it came from."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    module: str


@dataclass(frozen=True)
class Graph:
    """The nodes of a model in topological order, its constants on a device, and the edges that leave it."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    device: str = "cpu"


LayerRun = Callable[[Node, list[Any]], Any]  # in place of a node's operator


def read_graph(model: onnx.ModelProto, *, device: str = "cpu") -> Graph:
    """A model, weights loaded, as a graph with its constants on a device.

    Raises: EngineError naming the operators that the replay does not know.
    """
    nodes = tuple(map(read_node, model.graph.node))
    known = {node.name for node, proto in zip(nodes, model.graph.node, strict=True) if proto.domain in DOMAINS}
    unknown = Counter(node.op for node in nodes if node.op not in OPERATORS or node.name not in known)
    if unknown:
        names = ", ".join(f"{op} ({count} nodes)" for op, count in sorted(unknown.items()))
        raise EngineError(
            f"learned rounding cannot replay {names}: set reconstruct.method = 'none', or add the operator to "
            "quaver.calib.reconstruct.operators"
        )
    to_array = need("onnx", extra="export").numpy_helper.to_array
    constants = {t.name: torch().tensor(to_array(t)).to(device) for t in model.graph.initializer}
    return Graph(nodes, constants, tuple(value.name for value in model.graph.output), device)


def run(
    graph: Graph,
    given: Mapping[str, Tensor],
    wanted: Collection[str],
    *,
    layers: Mapping[str, LayerRun] | None = None,
    nodes: Sequence[Node] | None = None,
) -> dict[str, Tensor]:
    """The values of the `wanted` edges, from those `given`; `layers` by node name, `nodes` in place of those needed."""
    nodes = needed(graph, wanted, given) if nodes is None else nodes
    left = Counter(edge for node in nodes for edge in node.inputs)
    values: dict[str, Any] = {**graph.constants, **given, "": None}
    kept = {edge: values[edge] for edge in wanted if edge in values}
    for node in nodes:
        inputs = [values[edge] for edge in node.inputs]
        layer = (layers or {}).get(node.name)
        found = OPERATORS[node.op](inputs, node.attributes) if layer is None else layer(node, inputs)
        found = found if isinstance(found, tuple) else (found,)
        values.update(zip(node.outputs, found, strict=False))
        kept |= {edge: values[edge] for edge in node.outputs if edge in wanted}
        for edge in node.inputs:
            left[edge] -= 1
            if not left[edge] and edge:
                del values[edge]
    return kept


def needed(graph: Graph, wanted: Iterable[str], given: Collection[str]) -> list[Node]:
    """The nodes that compute the `wanted` edges from those `given`, in order."""
    open_edges, found = set(wanted) - set(given), []
    for node in reversed(graph.nodes):
        if open_edges.intersection(node.outputs):
            found.append(node)
            open_edges |= set(node.inputs) - set(given)
    return found[::-1]


def read_node(proto: onnx.NodeProto) -> Node:
    """A node of a file; one without a name is called after its first output."""
    value = need("onnx", extra="export").helper.get_attribute_value
    attributes = {a.name: value(a) for a in proto.attribute}
    attributes = {name: v.decode() if isinstance(v, bytes) else v for name, v in attributes.items()}
    name = proto.name or proto.output[0]
    return Node(name, proto.op_type, tuple(proto.input), tuple(proto.output), attributes, module_of(proto))
