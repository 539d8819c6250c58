"""What stands around the layers of a graph: joined edges, residual sums, products of two activations.

    concat     c = [a, b]              two skips or halves that one convolution reads
    residual   s = f(x) + r            both of one shape; f's last node is a layer, perhaps with a bias added behind it
    product    Q K^T, softmax(S) V     a MatMul of two activations

Read once, before anything is placed; names are those of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quaver.calib.graph import edge_shapes, module_of, without_weights
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Residual:
    """A sum: its node, and the operand that a layer's output is added to."""

    node: str
    edge: str


@dataclass(frozen=True)
class Product:
    """A MatMul of two activations: name, node, operands, which of them a Softmax wrote, the most positions it spans."""

    name: str
    node: str
    operands: tuple[str, str]
    softmax: str
    positions: int


@dataclass(frozen=True)
class Topology:
    """What stands around layers.

    concats: edge -> its parts along the channels. channels: such an edge -> how many they are together. residuals:
    output of a layer -> the sum it goes into.
    """

    concats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)
    residuals: Mapping[str, Residual] = field(default_factory=dict)
    products: tuple[Product, ...] = ()


def read_topology(model: onnx.ModelProto) -> Topology:
    """The surroundings of a float graph's layers; weights may be left on disk."""
    shapes, constants = edge_shapes(model), {t.name for t in model.graph.initializer}
    producers = {edge: node for node in model.graph.node for edge in node.output}
    concats: dict[str, tuple[str, ...]] = {}
    channels: dict[str, int] = {}
    residuals: dict[str, Residual] = {}
    products = []
    for node in model.graph.node:
        operands = tuple(node.input)
        if node.op_type == "Concat" and _along_channels(node, shapes) and constants.isdisjoint(operands):
            concats[node.output[0]] = operands
            channels[node.output[0]] = sum(shapes[edge][1] or 0 for edge in operands)
        elif node.op_type == "Add" and constants.isdisjoint(operands) and _alike(operands, shapes):
            for edge, other in (operands, operands[::-1]):
                residuals[_before_bias(edge, producers, constants)] = Residual(node.name, other)
        elif node.op_type == "MatMul" and constants.isdisjoint(operands):
            written = [e for e in operands if e in producers and producers[e].op_type == "Softmax"]
            longest = max((d or 0 for e in operands for d in shapes.get(e, ())[-2:]), default=0)
            name = module_of(node) or node.name
            products.append(Product(name, node.name, (operands[0], operands[1]), "".join(written[:1]), longest))
    return Topology(concats, channels, residuals, tuple(products))


def product_macs(model: onnx.ModelProto, products: Sequence[Product]) -> dict[str, int | None]:
    """Multiply-accumulates per sample of [..., M, K] by [..., K, N], by node; None where the graph does not tell.

    Shapes that the file leaves open are inferred; a free dimension, the batch, counts as 1.
    """
    described = need("onnx", extra="calib").shape_inference.infer_shapes(without_weights(model), data_prop=True)
    shapes, outputs = edge_shapes(described), {node.name: node.output[0] for node in model.graph.node}
    found: dict[str, int | None] = {}
    for product in products:
        first, out = shapes.get(product.operands[0]), shapes.get(outputs[product.node])
        known = first and out and None not in (first[-1], *out[-2:])
        found[product.node] = math.prod(d or 1 for d in (*out, first[-1])) if known and first and out else None
    return found


def _along_channels(node: onnx.NodeProto, shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    channels = [shapes[edge][1] if len(shapes.get(edge, ())) > 1 else None for edge in node.input]
    return axis in (1, 1 - len(shapes.get(node.input[0], ()))) and len(channels) > 1 and None not in channels


def _alike(operands: tuple[str, ...], shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    """Whether both operands have one recorded shape; one value added to every position is no residual."""
    first, second = (shapes.get(edge) for edge in operands)
    return first is not None and first == second and len(first) > 2


def _before_bias(edge: str, producers: Mapping[str, onnx.NodeProto], constants: set[str]) -> str:
    """The edge itself, or the product whose bias it holds."""
    node = producers.get(edge)
    if node is None or node.op_type != "Add" or constants.isdisjoint(node.input):
        return edge
    return next((e for e in node.input if e not in constants), edge)
