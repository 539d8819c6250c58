"""Reading a float ONNX denoiser: its layers and the edges worth a range.

A layer is a node that multiplies an activation by a constant weight (Conv, Gemm, MatMul). Its multiply-accumulates per
sample are

    Conv: prod(output positions) * C_out * (C_in / groups) * prod(kernel)        Gemm, MatMul: rows * K * N

with every symbolic dimension (the batch) counted as 1. Its name is the module path that the tracer left in the node's
metadata under MODULE_KEY, so that rules speak of "down_blocks.1.resnets.0.conv1" and not of "node_conv2d_5".
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.runtime.errors import ArtifactError
from quaver.runtime.lazy import need
from quaver.runtime.modelproto import read_weightless

if TYPE_CHECKING:
    import onnx

MODULE_KEY = "quaver.module"
MACS_KEY = "quaver.macs"  # of a layer whose graph leaves sizes open, at those of the model's card
LAYER_OPS = ("Conv", "Gemm", "MatMul")
# the operators whose operands a placement may want to quantize
RANGED_OPS = (*LAYER_OPS, "Add", "Concat", "Resize")
_FLOATS = (1, 10, 16)  # TensorProto FLOAT, FLOAT16, BFLOAT16


@dataclass(frozen=True)
class Layer:
    """One weighted node of the graph; edges and initializers are named as in the file.

    name: module path, made unique with "#2", "#3", ... when a module runs more than once. axis: the output-channel
    axis of the weight. bias: initializer name or "". macs: per sample, None when the graph carries no shapes.
    """

    name: str
    node: str
    op: str
    input: str
    output: str
    weight: str
    weight_shape: tuple[int, ...]
    macs: int | None
    axis: int = 0
    bias: str = ""


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file, its large weights left where they are: `external_data` says at which place of which file.

    Raises: ArtifactError when the file is missing or damaged.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: 'quaver run RECIPE' writes it")
    try:
        return need("onnx", extra="calib").ModelProto.FromString(read_weightless(path))
    except Exception as error:  # protobuf raises a class of its own
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ArtifactError:
    """The error about an ONNX file that does not read."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ArtifactError(f"{path} is damaged ({line}): remove it, and 'quaver run RECIPE' writes it anew")


def layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a model in topological order; weights may be left on disk."""
    shapes, weights, seen = edge_shapes(model), _initializer_dims(model), Counter[str]()
    found = []
    for node in model.graph.node:
        if node.op_type in LAYER_OPS and node.input[1] in weights and node.input[0] not in weights:
            name = module_of(node) or node.name
            seen[name] += 1
            unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
            found.append(_layer(node, unique, weights[node.input[1]], shapes.get(node.output[0])))
    return found


def module_of(node: onnx.NodeProto) -> str:
    """The module path in a node's metadata, "" when there is none."""
    return next((p.value for p in node.metadata_props if p.key == MODULE_KEY), "")


def activation_edges(model: onnx.ModelProto) -> list[str]:
    """Float edges that a layer, a sum of two activations, a Concat or a Resize reads or writes, in graph order."""
    constants = _initializer_dims(model)
    floats = float_edges(model) - constants.keys()
    edges: dict[str, None] = {}
    for node in model.graph.node:
        adds_constant = node.op_type == "Add" and not constants.keys().isdisjoint(node.input)
        if node.op_type in RANGED_OPS and not adds_constant:
            edges.update(dict.fromkeys(e for e in (*node.input, *node.output) if e in floats))
    return list(edges)


def edge_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The recorded shape of every edge; None stands for a symbolic dimension."""
    return {v.name: _dims(v) for v in _values(model) if v.type.tensor_type.HasField("shape")}


def float_edges(model: onnx.ModelProto) -> set[str]:
    """Names of the edges that carry floats; types that the file does not record are inferred."""
    known = {v.name for v in _values(model)}
    if any(out not in known for node in model.graph.node for out in node.output if out):
        model = need("onnx", extra="calib").shape_inference.infer_shapes(without_weights(model))
    return {v.name for v in _values(model) if v.type.tensor_type.elem_type in _FLOATS}


def _layer(node: onnx.NodeProto, name: str, dims: tuple[int, ...], out: tuple[int | None, ...] | None) -> Layer:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if node.op_type == "Conv" or transposed else len(dims) - 1
    bias = node.input[2] if len(node.input) > 2 else ""
    noted = next((int(p.value) for p in node.metadata_props if p.key == MACS_KEY), None)
    macs = noted if noted is not None or out is None else _macs(node.op_type, dims, out, axis)
    return Layer(name, node.name, node.op_type, node.input[0], node.output[0], node.input[1], dims, macs, axis, bias)


def _macs(op: str, weight: tuple[int, ...], out: tuple[int | None, ...], axis: int) -> int:
    positions = out[2:] if op == "Conv" else out[:-1]
    stacked = weight[:-2] if op == "MatMul" else ()  # a batched weight repeats along dimensions already in `out`
    return math.prod(d or 1 for d in positions) * math.prod(weight) // math.prod(stacked)


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = model.graph
    return [*graph.input, *graph.value_info, *graph.output]


def _dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _initializer_dims(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large initializers as inputs: to look at it as a whole serializes, up to 2 GB only."""
    onnx = need("onnx", extra="calib")
    graph, light = model.graph, onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(graph, field))
    light.graph.name = graph.name
    light.functions.extend(model.functions)
    small = [t for t in graph.initializer if math.prod(t.dims) <= 1024 and not t.external_data]
    light.graph.initializer.extend(small)
    kept = {t.name for t in small}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer if t.name not in kept
    )
    return light
