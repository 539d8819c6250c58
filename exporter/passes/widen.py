"""A graph in float16 as one in float32: calibration, and the scales it finds, are of full precision.

Weights are widened where they are read (`normal.collect`); here everything else that says float16: ends, casts and
constants in attributes. The values are exactly those that float16 held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx


def run(model: onnx.ModelProto) -> bool:
    """Say float32 wherever the graph says float16; True if it did."""
    onnx = need("onnx", extra="export")
    half, full, changed = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, False
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type, changed = full, True
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i, changed = full, True
            elif attribute.HasField("t") and attribute.t.data_type == half:
                values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
                changed = True
    return changed
