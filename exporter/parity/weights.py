"""Coded weights held against the float graph's.

    d = |s (q - z) - clip(w, least, largest)| / s       [steps], clipped to what the channel's own codes reach

Rounding to nearest leaves d <= 1/2, and learned rounding, which moves a code by one at most, d <= 3/2. A scale that is
wrong by 2% puts the largest 8-bit weight 2.5 steps off. A layer is compared when the float graph has a node of its
name, operator and attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.reconstruct.replay import Node, read_node
from quaver.exporter.model.onnxfile import read_values
from quaver.exporter.parity.difference import compare
from quaver.exporter.parity.grids import DEQUANTIZE, constants_of
from quaver.exporter.parity.segments import WEIGHTED, Cut, replay_segment, segment

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class WeightError:
    """How far the weight of the node that makes `edge` lies from its float: `steps` at most, `snr` decibels overall."""

    edge: str
    steps: float
    snr: float


def compare_weights(whole: Cut, floats: onnx.ModelProto, folder: Path) -> list[WeightError]:
    """The errors of all weights that are coded here and constant there, one weight in memory at a time."""
    constants = constants_of(floats)
    twins = {proto.name or proto.output[0]: proto for proto in floats.graph.node}
    found = []
    for name, node in whole.nodes.items():
        twin = twins.get(whole.protos[name].name or name)
        if node.op not in WEIGHTED or twin is None or twin.op_type != node.op or twin.input[1] not in constants:
            continue
        decoder = _decoder(whole, node.inputs[1])
        if decoder is None or read_node(twin).attributes != node.attributes:
            continue
        nodes, _ = segment(whole, node.inputs[1], ())
        (coded,) = replay_segment(whole, node.inputs[1], nodes, [{}])
        weight = read_values(constants[twin.input[1]], folder)
        if coded.shape == weight.shape:
            steps, snr = _error(coded, weight, read_values(whole.constants[decoder.inputs[1]], whole.folder), decoder)
            found.append(WeightError(name, steps, snr))
    return found


def _decoder(whole: Cut, edge: str) -> Node | None:
    """The dequantizer that makes an edge, if there is nothing but constants behind it."""
    decoder = whole.nodes.get(whole.maker.get(edge, ""))
    if decoder is None or decoder.op != DEQUANTIZE or decoder.inputs[1] not in whole.constants:
        return None
    nodes, _ = segment(whole, edge, ())
    known = {"", *whole.constants, *(name for node in nodes for name in node.outputs)}
    return decoder if all(known.issuperset(node.inputs) for node in nodes) else None


def _error(coded: np.ndarray, weight: np.ndarray, scale: np.ndarray, decoder: Node) -> tuple[float, float]:
    """The largest error of a weight in steps, and its SNR."""
    axis, coded, weight = decoder.attributes.get("axis", 1) % coded.ndim, coded.astype(float), weight.astype(float)
    other = tuple(d for d in range(coded.ndim) if d != axis) if scale.size > 1 else None
    least, largest = coded.min(other, keepdims=True), coded.max(other, keepdims=True)
    if block := decoder.attributes.get("block_size", 0):
        step = np.repeat(scale, block, axis).take(range(coded.shape[axis]), axis)
        least, largest = coded.min(), coded.max()
    else:
        step = scale.reshape([-1 if d == axis else 1 for d in range(coded.ndim)])
    off = np.abs(coded - np.clip(weight, least, largest)) / step
    return float(np.nan_to_num(off, nan=np.inf).max()), compare(coded, weight).snr
