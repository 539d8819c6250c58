"""Give Reshape the shape it computes at run time as a constant, where all sizes but one are known.

    x -> Shape -> ... -> Concat -> Reshape     becomes     Reshape to [-1, C, H, W]

Exporters that follow a program step by step leave such computations before every view; runtimes then neither fold nor
fuse what stands around them. What nobody reads any more is for the pass `unused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import edge_shapes
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx


def run(model: onnx.ModelProto, shapes: Mapping[str, tuple[int | None, ...]] | None = None) -> bool:
    """Replace every such shape; True if there was any. `shapes` are those of all edges (None: as recorded)."""
    onnx = need("onnx", extra="export")
    known, constants = shapes or edge_shapes(model), {tensor.name for tensor in model.graph.initializer}
    changed = False
    for node in model.graph.node:
        dims = known.get(node.output[0], ()) if node.op_type == "Reshape" and node.input[1] not in constants else ()
        if dims and dims.count(None) < 2 and 0 not in dims:
            node.input[1] = f"{node.output[0]}.shape"
            shape = np.array([-1 if size is None else size for size in dims], np.int64)
            model.graph.initializer.append(onnx.numpy_helper.from_array(shape, node.input[1]))
            del node.attribute[:]  # allowzero, which means nothing without a zero
            changed = True
    return changed
