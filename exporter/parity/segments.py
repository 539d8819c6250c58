"""A quantized graph cut at the edges that can be looked at, and replayed between them in torch.

    segment(e) = the nodes that compute e from the nearest edges whose values are known

Fed with what an executor had on those edges, a segment says what the executor should have had on e: the error made
here, without what had piled up before. Moves (Reshape, Transpose, ...) compute nothing and are passed over. An edge
between a quantizer and its dequantizer is looked at as the reals that its codes stand for. Of the weights, only those
that a segment reads are in memory.

`twin` ties an edge to the float graph: by its name, or, for codes, by the name of what was rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import float_edges
from quaver.calib.reconstruct import replay
from quaver.calib.reconstruct.operators import torch
from quaver.calib.reconstruct.replay import Node, read_node
from quaver.exporter.model.onnxfile import read_values
from quaver.exporter.parity.grids import DEQUANTIZE, QUANTIZE, Grid, constants_of, read_grid
from quaver.exporter.parity.operators import as_tensor, operator

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

MOVES = {"Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Cut:
    """A quantized graph: nodes named by their first output, what makes each edge, and how its codes are read."""

    model: onnx.ModelProto
    folder: Path  # of the file, where external weights lie
    nodes: Mapping[str, Node]  # by first output, in topological order
    protos: Mapping[str, onnx.NodeProto]  # the same
    place: Mapping[str, int]  # where each stands
    maker: Mapping[str, str]  # edge -> the node that makes it
    constants: Mapping[str, onnx.TensorProto]
    grids: Mapping[str, Grid]  # of codes that a quantizer writes
    decoded: Mapping[str, tuple[str, ...]]  # codes -> the edges that carry the reals they stand for
    edges: Mapping[str, None]  # to look at, in topological order


def cut(model: onnx.ModelProto, folder: Path) -> Cut:
    """Read a graph whose weights may be left on disk."""
    constants = constants_of(model)
    protos = {proto.output[0]: proto for proto in model.graph.node if proto.output[0] not in constants}
    nodes = {name: replace(read_node(proto), name=name) for name, proto in protos.items()}
    maker = {edge: name for name, node in nodes.items() for edge in node.outputs if edge}
    place = {name: index for index, name in enumerate(nodes)}
    whole = Cut(model, folder, nodes, protos, place, maker, constants, {}, {}, {})
    grids = {edge: grid for edge in nodes if (grid := read_grid(nodes[edge], QUANTIZE, constants, folder)) is not None}
    whole = replace(whole, grids=grids)
    whole = replace(whole, decoded=_decoded(whole))
    return replace(whole, edges=dict.fromkeys(_looked(whole)))


def segment(whole: Cut, edge: str, known: Collection[str]) -> tuple[list[Node], set[str]]:
    """The nodes that compute `edge` from `known` edges and constants, in order, and the known edges that they read.

    What only its own quantizer reads does not count as known, else nothing but the rounding would be left.
    """
    nodes, read, queue, own = set(), set(), [edge], raw(whole, edge)
    while queue:
        name = whole.maker[queue.pop()]
        if name in nodes:
            continue
        nodes.add(name)
        for source in whole.nodes[name].inputs:
            if source in known and source != own:
                read.add(source)
            elif source in whole.maker:
                queue.append(source)
    return [whole.nodes[name] for name in sorted(nodes, key=whole.place.__getitem__)], read


def replay_segment(
    whole: Cut, edge: str, nodes: Sequence[Node], calls: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[np.ndarray]:
    """The values of `edge`, call by call, from those that the nodes of its segment read."""
    read = {name for node in nodes for name in node.inputs if name in whole.constants}
    constants = {name: as_tensor(read_values(whole.constants[name], whole.folder)) for name in read}
    graph = replay.Graph(tuple(nodes), constants, ())
    runs = {node.name: operator(whole.protos[node.name], whole.model.opset_import) for node in nodes}
    for given in calls:
        tensors = {name: as_tensor(value) for name, value in given.items()}
        with torch().no_grad():
            found: Tensor = replay.run(graph, tensors, [edge], layers=runs, nodes=nodes)[edge]
        yield found.numpy()


def carriers(whole: Cut, edge: str) -> tuple[str, ...]:
    """The edges whose values say what `edge` carries: itself, and those decoded from its codes."""
    return (edge, *whole.decoded.get(edge, ()))


def raw(whole: Cut, edge: str) -> str:
    """What is rounded to the codes of an edge, when nothing else reads it; else ""."""
    source = whole.nodes[whole.maker[edge]].inputs[0] if edge in whole.grids else ""
    return source if source in whole.maker and source not in whole.edges else ""


def real(whole: Cut, edge: str, values: np.ndarray) -> np.ndarray:
    """What an edge's values stand for."""
    grid = whole.grids.get(edge)
    if grid is None:
        return values
    rank = values.ndim
    return (values.astype(np.float64) - grid.along(grid.zero, rank)) * grid.along(grid.scale, rank)


def step(whole: Cut, edge: str, rank: int) -> np.ndarray | None:
    """The distance of two codes, None on an edge without."""
    grid = whole.grids.get(edge)
    return None if grid is None else grid.along(grid.scale, rank)


def twins(whole: Cut, floats: Collection[str]) -> dict[str, str]:
    """Of the edges to look at, the edge of the float graph that carries the same quantity."""

    def names(edge: str) -> Iterable[str]:
        node = whole.nodes[whole.maker[edge]]
        codes = node.inputs[0] if node.op == DEQUANTIZE else edge
        yield edge
        if codes in whole.grids:
            yield from (*whole.decoded.get(codes, ()), whole.nodes[whole.maker[codes]].inputs[0])

    found = {edge: next((name for name in names(edge) if name in floats), "") for edge in whole.edges}
    return {edge: twin for edge, twin in found.items() if twin}


@dataclass(frozen=True)
class Layer:
    """What an edge is the result of, as far as the file names it."""

    op: str
    node: str
    module: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.module, self.op, self.node if self.node != self.module else "")))


def layer_of(whole: Cut, edge: str) -> Layer:
    """The node behind an edge: of codes that a node's result is rounded to alone, that node and not the quantizer."""
    node = whole.nodes[whole.maker[edge]]
    ahead = whole.nodes.get(whole.maker.get(raw(whole, edge), ""))
    node = node if ahead is None or ahead.op == DEQUANTIZE else ahead
    return Layer(node.op, whole.protos[node.name].name or node.name, node.module)


def mismatches(whole: Cut) -> dict[str, str]:
    """Dequantizers that read other codes than their quantizer writes: edge -> both, in words."""
    found = {}
    for edge, node in whole.nodes.items():
        mine, written = (
            read_grid(node, DEQUANTIZE, whole.constants, whole.folder),
            whole.grids.get((*node.inputs, "")[0]),
        )
        if mine is not None and written is not None and not mine.same(written):
            found[edge] = f"codes are written with {written} and read with {mine}"
    return found


def _decoded(whole: Cut) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for edge, node in whole.nodes.items():
        if node.op == DEQUANTIZE and (written := whole.grids.get(node.inputs[0])):
            mine = read_grid(node, DEQUANTIZE, whole.constants, whole.folder)
            if mine is not None and mine.same(written):
                found[node.inputs[0]] = (*found.get(node.inputs[0], ()), edge)
    return found


def _looked(whole: Cut) -> Iterable[str]:
    """Codes of activations, and float edges but for those moved, decoded, constant, or seen through codes alone.

    What only a quantizer reads may be anything that gives the same codes: a Relu may have gone into the clipping.
    """
    floats, outputs = float_edges(whole.model), {value.name for value in whole.model.graph.output}
    live = {value.name for value in whole.model.graph.input} - whole.constants.keys()
    decoded = {edge for edges in whole.decoded.values() for edge in edges}
    read = {edge for node in whole.nodes.values() if node.outputs[0] not in whole.grids for edge in node.inputs}
    for node in whole.nodes.values():
        if not live.intersection(node.inputs):
            continue
        live.update(node.outputs)
        for edge in filter(None, node.outputs):
            plain = edge in floats and edge in read and node.op not in MOVES and edge not in decoded
            if edge in outputs or edge in whole.grids or plain:
                yield edge
