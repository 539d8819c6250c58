"""Make the batch free where a graph was exported for batches of one size.

    Reshape to a constant shape that begins with the batch, or a multiple of it      the first dimension is left to the
                                                                                     runtime: 0 (as it was) or -1
    Expand to, or a constant of, a shape that begins with it                         1: as the operand has it
    a constant whose rows are all the same, added to or multiplied with a batch      one row
    t [] -> Unsqueeze or Reshape to [1] -> ...                                       t [B] as it is

Whether rows are then independent is no question of form: the importer runs the result and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

BATCH = "batch"
ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
Dims = tuple[int | None, ...]


def free_batch(model: onnx.ModelProto, batch: int, shapes: Mapping[str, Dims]) -> None:
    """Rewrite the constant shapes that hold a batch of the given size; `shapes` are those of all edges as exported."""
    helper = need("onnx", extra="export").numpy_helper
    constants = {tensor.name: tensor for tensor in model.graph.initializer if not tensor.external_data}

    def change(node: onnx.NodeProto, index: int, value: np.ndarray) -> None:
        node.input[index] = f"{node.output[0]}.{index}"
        model.graph.initializer.append(helper.from_array(value, node.input[index]))

    for node in model.graph.node:
        if node.op_type in ("Reshape", "Expand", "ConstantOfShape") and node.input[-1] in constants:
            shape = helper.to_array(constants[node.input[-1]])
            old = shapes.get(node.input[0], ())
            new = _freed(shape, old, batch) if node.op_type == "Reshape" else _one(shape, batch)
            if not np.array_equal(new, shape):
                change(node, len(node.input) - 1, new.astype(np.int64))
        elif node.op_type in ELEMENTWISE and batch > 1:
            for index, edge in enumerate(node.input):
                other = shapes.get(node.input[1 - index], ())
                value = helper.to_array(constants[edge]) if edge in constants else np.empty(0)
                if value.ndim and value.ndim == len(other) and value.shape[0] % batch == 0 and _same(value):
                    change(node, index, value[:1])


def free_time(model: onnx.ModelProto, time: str) -> None:
    """Let the time [] be a vector [B]: what makes a vector of it, behind casts or not, is passed by."""
    scalar, kept = {time}, []
    passed: dict[str, str] = {}
    for node in model.graph.node:
        for index, edge in enumerate(node.input):
            node.input[index] = passed.get(edge, edge)
        if node.input and node.input[0] in scalar and node.op_type in ("Unsqueeze", "Reshape"):
            passed[node.output[0]] = node.input[0]
            continue
        if node.input and node.input[0] in scalar and node.op_type == "Cast":
            scalar.add(node.output[0])
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _freed(shape: np.ndarray, old: Dims, batch: int) -> np.ndarray:
    """A constant shape with its first dimension free, when it begins with a multiple of the batch."""
    if not len(shape) or not old or old[0] is None or old[0] % batch or shape[0] <= 0 or shape[0] % batch:
        return shape
    if shape[0] == old[0]:
        return np.array([0, *shape[1:]])
    return shape if -1 in shape else np.array([-1, *shape[1:]])


def _one(shape: np.ndarray, batch: int) -> np.ndarray:
    """A shape with 1 in the place of a multiple of the batch, which broadcasts, when it begins with one."""
    return np.array([1, *shape[1:]]) if len(shape) and shape[0] and shape[0] % batch == 0 else shape


def _same(value: np.ndarray) -> bool:
    """Whether all rows of a constant are the same, and there are several."""
    return len(value) > 1 and bool((value == value[:1]).all())
