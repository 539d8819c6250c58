"""Constants as initializers, and what is computed of a weight alone computed once.

    Constant -> c                                         c becomes an initializer
    W -> Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze -> V -> layer       V becomes one, and is the weight

A layer is known by its constant weight; exporters that do not fold constants leave a Transpose before every MatMul.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Read = Callable[["onnx.TensorProto"], np.ndarray]  # the values of a constant, wherever they lie
Keep = Callable[["onnx.TensorProto"], "onnx.TensorProto"]  # a new one, put wherever it shall lie
FOLDED = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


def run(model: onnx.ModelProto, *, read: Read | None = None, keep: Keep | None = None) -> bool:
    """Fold them; True if there were any. One weight is in memory at a time when `read` and `keep` are given."""
    onnx = need("onnx", extra="export")
    read, keep = read or onnx.numpy_helper.to_array, keep or (lambda tensor: tensor)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    before, nodes = len(model.graph.node), []
    for node in model.graph.node:
        if node.op_type == "Constant":
            made: Any = onnx.numpy_helper.from_array(constant_value(node), node.output[0])
        elif node.op_type in FOLDED and all(name in constants for name in node.input):
            made = onnx.numpy_helper.from_array(folded(node, [read(constants[x]) for x in node.input]), node.output[0])
        else:
            nodes.append(node)
            continue
        constants[made.name] = keep(made)
    outputs = {value.name for value in model.graph.output}
    if before == len(nodes) or outputs & (constants.keys() - {t.name for t in model.graph.initializer}):
        return False
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants.values())
    return True


def constant_value(node: onnx.NodeProto) -> np.ndarray:
    """What a Constant node holds."""
    onnx = need("onnx", extra="export")
    (attribute,) = node.attribute
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    return np.array(value, np.float32 if attribute.name.startswith("value_float") else None)


def folded(node: onnx.NodeProto, values: list[np.ndarray]) -> np.ndarray:
    """What one of FOLDED makes of constants."""
    evaluator = need("onnx.reference", extra="export").ReferenceEvaluator(node)
    (out,) = evaluator.run(None, dict(zip(node.input, values, strict=True)))
    return np.ascontiguousarray(out)
