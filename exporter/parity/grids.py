"""The constants of a graph, and the grids that its quantizers write: codes q stand for (q - zero) scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.reconstruct.replay import Node
from quaver.exporter.model.onnxfile import read_values

if TYPE_CHECKING:
    import onnx

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Grid:
    """The codes of an edge: (q - zero) scale, per tensor or along an axis; half: of 16-bit floats."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int
    half: bool

    def along(self, value: np.ndarray, rank: int) -> np.ndarray:
        """`scale` or `zero` as it meets an array of that rank."""
        axis = self.axis % rank if rank else 0
        return value if value.ndim == 0 else value.reshape([-1 if d == axis else 1 for d in range(rank)])

    def same(self, other: Grid) -> bool:
        """Whether both mean the same reals."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)

    def __str__(self) -> str:
        return f"{self.scale.size} scales" if self.scale.ndim else f"scale {self.scale:.6g} and zero point {self.zero}"


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and the values of Constant nodes, by edge."""
    values = {
        node.output[0]: attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return {tensor.name: tensor for tensor in model.graph.initializer} | values


def read_grid(node: Node, op: str, constants: Mapping[str, onnx.TensorProto], folder: Path) -> Grid | None:
    """The grid of a node of type `op` that codes or decodes with constant integers, None of any other."""
    names = [name for name in node.inputs[1:] if name]
    if node.op != op or not all(name in constants for name in names):
        return None
    scale, *rest = (read_values(constants[name], folder) for name in names)
    zero = np.asarray(rest[0] if rest else 0)
    untyped = not rest and "output_dtype" in node.attributes
    if zero.dtype.kind not in "iu" or untyped or "block_size" in node.attributes:
        return None
    scale, zero = (np.asarray(value.reshape(()) if value.size == 1 else value) for value in (scale, zero))
    axis, half = node.attributes.get("axis", 1), scale.dtype.itemsize == 2
    return Grid(scale.astype(np.float32), zero.astype(np.int64), axis, half)
