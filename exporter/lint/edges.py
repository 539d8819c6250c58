"""A graph by its edges: anybody's, its weights in the file, beside it or in Constant nodes, with shapes or without.

Edges whose shape or type the file does not record are inferred, with inputs in the place of weights: a model above 2 GB
is read without them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import edge_shapes, without_weights
from quaver.exporter.model.onnxfile import read_values
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Index:
    """A graph by its edges: who makes each, who reads it, what it carries. `fixed` ones depend on constants alone."""

    nodes: list[onnx.NodeProto]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    constants: Mapping[str, onnx.TensorProto]
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    outputs: frozenset[str]
    fixed: frozenset[str]
    folder: Path = Path()


def index(model: onnx.ModelProto, folder: Path = Path()) -> Index:
    """A graph by its edges, its weights in `folder` if they are not in it; missing shapes and types are inferred."""
    constants = {t.name: t for t in model.graph.initializer}
    makers: dict[str, onnx.NodeProto] = {}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    fixed = set(constants)
    for node in model.graph.node:
        makers.update({out: node for out in node.output if out})
        for edge in dict.fromkeys(node.input):
            readers[edge].append(node)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
            fixed.add(node.output[0])
        if any(node.input) and fixed.issuperset(filter(None, node.input)):
            fixed.update(node.output)
    described = _described(model, constants)
    values = [*described.graph.input, *described.graph.value_info, *described.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values} | {n: t.data_type for n, t in constants.items()}
    shapes = edge_shapes(described) | {name: tuple(t.dims) for name, t in constants.items()}
    outputs = frozenset(v.name for v in model.graph.output)
    return Index(list(model.graph.node), makers, readers, constants, shapes, types, outputs, frozenset(fixed), folder)


def values(graph: Index, edge: str) -> np.ndarray | None:
    """The numbers of a constant, wherever they lie; None for what is no constant."""
    tensor = graph.constants.get(edge)
    return None if tensor is None else read_values(tensor, graph.folder)


def node_name(node: onnx.NodeProto) -> str:
    """The name of a node, or of the edge it writes when it has none."""
    return node.name or next(iter(node.output), node.op_type)


def following(graph: Index, edge: str) -> Iterator[str]:
    """An edge, and those after it as long as one node reads it alone: a fused kernel is called after one of them."""
    for _ in range(5):
        yield edge
        if len(graph.readers[edge]) != 1 or not graph.readers[edge][0].output:
            return
        edge = graph.readers[edge][0].output[0]


def _described(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    known = {v.name for v in (*model.graph.value_info, *model.graph.output) if v.type.tensor_type.HasField("shape")}
    if all(out in known or out in constants for node in model.graph.node for out in node.output if out):
        return model
    onnx = need("onnx", extra="export")
    try:
        return onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
    except Exception:  # onnx raises classes of its own; without shapes there is still much to say
        return model
