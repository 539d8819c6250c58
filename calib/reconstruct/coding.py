"""How a layer is coded, as data from whoever knows the target, and the layer's operator with that coding put in.

    y = Q_y(f(Q_x(x), s_w q) + b)            Q(x) = (clip(round(x / s) + z) - z) s, with the gradient of a clip

Grids of activations and scales of weights depend on the backend; they come from its placement and are only read here.
With steps learned (LSQ, Esser et al. 2020, arXiv:1902.08153), s gets the gradient of that expression, rounding counted
as the identity; the factor that LSQ gives that gradient is left out, since Adam divides it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.graph import Layer
from quaver.calib.quant import Format, dequantize
from quaver.calib.reconstruct.operators import OPERATORS, torch
from quaver.calib.reconstruct.replay import LayerRun, Node

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The codes of one activation edge: (q - zero) * scale with q in [qmin, qmax]."""

    scale: float
    zero: int
    qmin: int
    qmax: int


@dataclass(frozen=True)
class Coding:
    """One coded layer: the weight's format, its scale [C], its codes rounded to nearest, and its activations' grids.

    learned: whether its rounding is to be learned.
    """

    layer: Layer
    format: Format
    scale: np.ndarray
    codes: np.ndarray
    input: Grid | None = None
    output: Grid | None = None
    learned: bool = True

    @property
    def grids(self) -> dict[str, Grid]:
        """The coded activations of the layer, by edge."""
        both = {self.layer.input: self.input, self.layer.output: self.output}
        return {edge: grid for edge, grid in both.items() if grid is not None}


Quantize = Callable[["Tensor", str, Grid], "Tensor"]  # (x, edge, grid) -> x as its reader sees it


def along(scale: np.ndarray, layer: Layer) -> np.ndarray:
    """A scale [C] in the shape that multiplies the layer's weight."""
    rank = len(layer.weight_shape)
    return np.reshape(scale, [-1 if d == layer.axis % rank else 1 for d in range(rank)])


def regridded(
    codings: Mapping[str, Coding], codes: Mapping[str, np.ndarray], steps: Mapping[str, float]
) -> dict[str, Coding]:
    """Codings with new codes by layer, and new scales of activation edges wherever those are coded."""

    def moved(edge: str, grid: Grid | None) -> Grid | None:
        return replace(grid, scale=steps[edge]) if grid is not None and edge in steps else grid

    return {
        name: replace(
            coding,
            codes=codes.get(name, coding.codes),
            input=moved(coding.layer.input, coding.input),
            output=moved(coding.layer.output, coding.output),
        )
        for name, coding in codings.items()
    }


def hard_layers(codings: Mapping[str, Coding], nodes: Iterable[Node], device: str) -> dict[str, LayerRun]:
    """The coded layers among `nodes` with their integer codes, by node."""
    there = {node.name for node in nodes}
    found = {c.layer.node: c for c in codings.values() if c.layer.node in there}
    weights = {node: torch().from_numpy(real_weight(c)).to(device) for node, c in found.items()}
    return {node: coded_layer(c, partial(weights.__getitem__, node), on_grid) for node, c in found.items()}


def real_weight(coding: Coding) -> np.ndarray:
    """The weight (fp32) that a layer's codes stand for."""
    return dequantize(coding.codes, coding.scale, np.int32(0), axis=coding.layer.axis)


def coded_layer(coding: Coding, weight: Callable[[], Tensor], quantize: Quantize) -> LayerRun:
    """The layer's operator on its coded input, with `weight()`, and its output coded."""

    def layer(node: Node, inputs: list[Any]) -> Tensor:
        x = inputs[0] if coding.input is None else quantize(inputs[0], node.inputs[0], coding.input)
        y = OPERATORS[node.op]([x, weight(), *inputs[2:]], node.attributes)
        return y if coding.output is None else quantize(y, node.outputs[0], coding.output)

    return layer


def on_grid(x: Tensor, edge: str, grid: Grid) -> Tensor:
    """x on its grid; the gradient passes where nothing is clipped."""
    return torch().fake_quantize_per_tensor_affine(x, grid.scale, grid.zero, grid.qmin, grid.qmax)


def on_learned_grid(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """x on the grid with another scale [], differentiable in it (LSQ)."""
    ratio = x / scale
    codes = ratio + (ratio.round() - ratio).detach()
    return codes.clamp(grid.qmin - grid.zero, grid.qmax - grid.zero) * scale
