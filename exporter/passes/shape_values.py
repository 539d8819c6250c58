"""What a graph computes of shapes and constants alone, computed once.

    x [B, 4, 8, 8] -> Shape -> Gather -> Concat -> Reshape         [-1, 32, 64] as a constant
    Shape -> Slice -> Cast -> Sqrt -> Div                          a number

Exporters that follow a program step by step leave hundreds of such nodes, and nothing fuses across them. The values are
worked out for two sizes of the batch: what is the same for both does not depend on it, and a Reshape that differs in
one place has the batch there, -1. That is no proof, a graph might count up to three; the importer compares its result
with the file. What nobody reads any more is for the pass `unused`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Sizes = Mapping[str, Sequence[int]]
Values = dict[str, np.ndarray]
MOST = 4096  # elements of a value worth working out
NEVER = ("If", "Loop", "Scan", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Constant")


def run(model: onnx.ModelProto, sizes: Sequence[Sizes] = ({},)) -> bool:
    """Fold them; True if there was anything. `sizes` are the dimensions of all inputs for each of some batches."""
    onnx = need("onnx", extra="export")
    made = [work_out(model, known) for known in sizes]
    fixed = {e: v for e, v in made[0].items() if all(e in other and np.array_equal(v, other[e]) for other in made[1:])}
    outputs = {value.name for value in model.graph.output}
    there = {tensor.name for tensor in model.graph.initializer}
    kept, changed = [], False
    new: Values = {}
    for node in model.graph.node:
        if all(out in fixed and out not in outputs for out in node.output if out):
            new |= {out: fixed[out] for out in node.output if out}
            continue
        if node.op_type == "Reshape" and node.input[1] not in there | fixed.keys():
            shape = _but_for_the_batch([known.get(node.input[1]) for known in made])
            if shape is not None:
                node.input[1] = f"{node.output[0]}.shape"
                new[node.input[1]], changed = shape, True
        kept.append(node)
    changed |= len(kept) != len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in new.items())
    return changed


def work_out(model: onnx.ModelProto, sizes: Sizes) -> Values:
    """The values of all edges that follow from small constants and, given the dimensions of inputs, from shapes."""
    onnx = need("onnx", extra="export")
    small = (t for t in model.graph.initializer if not t.external_data and np.prod(t.dims) <= MOST)
    values: Values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small}
    constants, typed = set(values), onnx.helper.make_tensor_type_proto
    types = {t.name: typed(t.data_type, t.dims) for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in sizes:
            types[value.name] = typed(value.type.tensor_type.elem_type, sizes[value.name])
    opset = model.opset_import[0].version
    for node in model.graph.node:
        made = _made(node, values, types)
        if made is None:
            with suppress(Exception):  # an operator whose shape onnx cannot tell, or of another domain
                schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
                data = {e: onnx.numpy_helper.from_array(values[e], e) for e in node.input if e in values}
                seen = {e: types[e] for e in node.input if e in types}
                types |= onnx.shape_inference.infer_node_outputs(schema, node, seen, data)
            if node.op_type == "GroupNormalization" and node.input[0] in types:  # onnx tells no shape of it
                types[node.output[0]] = types[node.input[0]]
            continue
        values |= made
        kind = onnx.helper.np_dtype_to_tensor_dtype
        types |= {edge: typed(kind(value.dtype), value.shape) for edge, value in made.items()}
    return {edge: value for edge, value in values.items() if edge not in constants}


def _made(node: onnx.NodeProto, values: Values, types: Mapping[str, Any]) -> Values | None:
    """The outputs of a node as values, None when they are not to be told."""
    if node.op_type == "Shape" and node.input[0] in types:
        dims = types[node.input[0]].tensor_type.shape.dim
        if types[node.input[0]].tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            said = {a.name: a.i for a in node.attribute}
            known = [d.dim_value for d in dims][said.get("start", 0) : said.get("end", len(dims))]
            return {node.output[0]: np.array(known, np.int64)}
    if node.op_type in NEVER or not node.input or any(e and e not in values for e in node.input):
        return None
    with suppress(Exception):  # an operator that onnx's reference does not know stays where it is
        return _evaluated(node, values)
    return None


def _evaluated(node: onnx.NodeProto, values: Values) -> Values | None:
    """The outputs of a node of known inputs, None when they are large."""
    evaluator = need("onnx.reference", extra="export").ReferenceEvaluator(node)
    with np.errstate(all="ignore"):
        made = evaluator.run(None, {edge: values[edge] for edge in node.input if edge})
    found = {edge: np.asarray(v) for edge, v in zip(node.output, made, strict=True) if edge}
    return found if all(v.size <= MOST for v in found.values()) else None


def _but_for_the_batch(shapes: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Shapes that differ in one place as one, with -1 there."""
    if len(shapes) < 2 or any(s is None or s.shape != shapes[0].shape for s in shapes):  # type: ignore[union-attr]
        return None
    table = np.stack(shapes)  # type: ignore[arg-type]
    differs = (table != table[0]).any(axis=0)
    return np.where(differs, -1, table[0]) if differs.sum() == 1 and -1 not in table[0][~differs] else None
