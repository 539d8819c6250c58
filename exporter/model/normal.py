"""The form of a float graph that the rest of the exporter expects, made of any ONNX graph.

    one opset, constants as initializers, attention as MatMul, layers with module paths, group norms in operators that
    runtimes have kernels for, a batch that is free, the shape of every edge

Each is a pass of its own (`passes/`); here is their order, and what it takes around them. Weights are looked at one
after another, once, and stay where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import MACS_KEY, edge_shapes, layers
from quaver.exporter.model.ends import Ends
from quaver.exporter.model.opset import stand_ins, to_opset
from quaver.exporter.modelfile import Weights
from quaver.exporter.passes import clean, constants, einsum, identities, provenance, scopes, shape_values, unused, widen
from quaver.exporter.passes.batch import BATCH, free_batch, free_time
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

READ = 1 << 16  # bytes of a constant that passes may want to look at
Sizes = Mapping[str, Sequence[int]]  # of inputs, behind the batch


def normalised(
    model: onnx.ModelProto, ends: Ends, sizes: Sizes, weights: Weights, path: Path, *, free: bool
) -> onnx.ModelProto:
    """The graph of the file `path` in that form, its inputs of the given sizes or, when `free`, of any.

    Raises: RecipeError for weights that are not finite, or a graph that cannot be brought into that form.
    """
    keep = partial(keep_large, weights)
    provenance.run(model)
    collect(model, weights, path)
    widen.run(model)
    scopes.name_nodes(model)
    model = to_opset(model)
    constants.run(model, read=weights.read, keep=keep)
    shape_values.run(model)
    scopes.run(model)
    if einsum.run(model):
        constants.run(model, read=weights.read, keep=keep)
    kept = [value for value in model.graph.output if value.name == ends.output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    unused.run(model)
    batch = ends.inputs[ends.sample].dims[0]
    if batch is not None:
        free_batch(model, batch, edge_shapes(with_shapes(model)))
    if not ends.inputs[ends.time].dims:
        free_time(model, ends.time)
    set_sizes(model, ends.time, {} if free else sizes)
    if not free:
        column = [1] * (len(ends.inputs[ends.time].dims) > 1)
        known = {**sizes, ends.time: column}
        shape_values.run(model, [{name: (batch, *dims) for name, dims in known.items()} for batch in (2, 3)])
        unused.run(model)
    model = with_shapes(model)
    identities.run(model)
    clean(model)
    model = with_shapes(model)
    if free:
        note_macs(model, sizes)
    return model


def keep_large(weights: Weights, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A constant where weights lie, unless passes may want to look at it."""
    return weights.keep(tensor) if tensor.ByteSize() > READ else tensor


def collect(model: onnx.ModelProto, weights: Weights, path: Path) -> None:
    """Look at every float weight once; small ones come into the graph, inputs that are weights go.

    Raises: RecipeError naming one that is not finite.
    """
    onnx = need("onnx", extra="export")
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                check_finite(node.output[0], weights.read(attribute.t), path)
    for tensor in model.graph.initializer:
        values = weights.read(tensor)
        check_finite(tensor.name, values, path)
        if tensor.data_type == tensor.BFLOAT16:
            raise RecipeError(f"{path} has weights in bfloat16 ({tensor.name!r}): export it in float32")
        if tensor.data_type == tensor.FLOAT16:
            tensor.CopyFrom(keep_large(weights, onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name)))
        if values.nbytes <= READ if tensor.external_data else not tensor.raw_data:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def check_finite(name: str, values: np.ndarray, path: Path) -> None:
    """Raises: RecipeError when a weight has values that are not finite."""
    if values.dtype.kind != "f":
        return
    fine = np.isfinite(values) if values.size > 1 else ~np.isnan(values)  # a mask may be filled with one infinity
    if not fine.all():
        raise RecipeError(
            f"{path}: the weight {name!r} has {int((~fine).sum())} of {values.size} values that are not finite: the "
            "checkpoint is damaged, export it from a whole one"
        )


def set_sizes(model: onnx.ModelProto, time: str, sizes: Sizes) -> None:
    """Free the batch of every end; the other sizes of inputs become `sizes`, and those of the answer follow."""
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if value.name == time and not shape.dim:
            shape.dim.add()
        if len(shape.dim):
            shape.dim[0].dim_param = BATCH
        for dim, size in zip(list(shape.dim)[1:], sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    if sizes:
        model.graph.output[0].type.tensor_type.ClearField("shape")


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shape of every edge recorded, as far as onnx infers it.

    Raises: RecipeError with onnx's words when shapes contradict each other.
    """
    infer = need("onnx", extra="export").shape_inference.infer_shapes
    del model.graph.value_info[:]
    light, held = _inferable(model)
    try:
        found = infer(light, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx's InferenceError, of its C++ module
        line = " ".join(str(error).split())[:300]
        raise RecipeError(f"the shapes of the graph do not fit together ({line}): is model.latent right?") from error
    names = {tensor.name for tensor in held}
    model.graph.value_info.extend(value for value in found.value_info if value.name not in names)
    for value, shaped in zip(model.graph.output, found.output, strict=True):
        value.CopyFrom(shaped)
    return model


def note_macs(model: onnx.ModelProto, sizes: Sizes) -> None:
    """Write on each layer of a graph of open sizes its multiply-accumulates at given ones, [...] behind the batch."""
    pinned = _inferable(model)[0]
    for value in pinned.graph.input:
        for dim, size in zip(list(value.type.tensor_type.shape.dim)[1:], sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del pinned.graph.value_info[:]
    shaped = need("onnx", extra="export").shape_inference.infer_shapes(pinned, data_prop=True)
    held = (t for t in model.graph.initializer if t.name not in {x.name for x in shaped.graph.initializer})
    shaped.graph.initializer.extend(type(t)(name=t.name, dims=t.dims, data_type=t.data_type) for t in held)
    macs = {layer.node: layer.macs for layer in layers(shaped)}
    for node in model.graph.node:
        if macs.get(node.name) is not None:
            node.metadata_props.add(key=MACS_KEY, value=str(macs[node.name]))


def _inferable(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """As `stand_ins`, with an Identity for every GroupNormalization, whose shape onnx does not infer."""
    light, held = stand_ins(model)
    for node in light.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return light, held
