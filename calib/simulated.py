"""The quantized graph as its nodes say it, in floats: the fake quantization that papers fit their statistics on.

    DequantizeLinear(codes) -> layer in float32 -> QuantizeLinear          nothing fused, nothing folded

The engine that is deployed runs the same file through an optimizer, into integer kernels with sums of their own width
and order. Where the two say the same, a simulation would have done; `quaver show` has them side by side.
"""

from __future__ import annotations

from pathlib import Path

from quaver.runtime.backends.onnxruntime import OnnxEngine, session_options
from quaver.runtime.errors import EngineError, first_line
from quaver.runtime.lazy import need


def open_simulated(path: Path, *, threads: int | None = None) -> OnnxEngine:
    """A quantized ONNX file, executed node by node.

    Raises: EngineError when onnxruntime has no float form of one of them.
    """
    ort = need("onnxruntime", extra="calib")
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return OnnxEngine(path, ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        raise EngineError(
            f"onnxruntime cannot simulate {path.name} ({first_line(error)}): set stats.simulated = false"
        ) from error
