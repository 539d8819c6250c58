"""What torch has exported, as an ONNX graph that refers to the program's own memory for its large weights.

A ModelProto with its weights is a copy of them, beside torch's, and onnxruntime is handed another. A reference instead,

    location = "memory/<name>"        and {location: tensor}

is none: weights go from torch's memory to onnxruntime and to the file (modelfile.save_model). Half the memory, and the
same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

LARGE = 1 << 20  # bytes of a weight that no clean-up of the graph looks into


def share(program: Any, *, large: int = LARGE) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The graph of an exported program, and the weights of `large` bytes or more, which it refers to."""
    ir = need("onnx_ir", extra="export")
    memory: dict[str, np.ndarray] = {}
    for name, value in program.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= large:
            location = f"memory/{name}"
            memory[location] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                location, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
    return program.model_proto, memory


def values(model: onnx.ModelProto, memory: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The constants of a graph that lie in memory, by the names they have now."""
    places = {t.name: {e.key: e.value for e in t.external_data}.get("location", "") for t in model.graph.initializer}
    return {name: memory[place] for name, place in places.items() if place in memory}
