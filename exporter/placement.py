"""Where quantizers go, decided as data before any graph is touched.

Every layer gets an answer. One that stays float is a single site that says why; one that runs in integers has a site
for its input, its weight, its bias when the target codes biases, and its output when the target's kernel needs that:

    ort-cpu       Conv          Q(x) W8 B32 -> Q(y)          Gemm, MatMul   Q(x) W8 -> float
    tensorrt-rtx  Conv          Q(x) W8     -> float         Gemm, MatMul   Q(x) W8 -> float

An edge has one scale whoever reads it, so the parts of a skip Concat that a convolution reads are coded alike, and two
layers that read one edge share its quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quaver.calib.graph import Layer
from quaver.calib.rules import Rule, resolve
from quaver.exporter.targets import Target
from quaver.runtime.errors import ArtifactError, RecipeError

Role = Literal["layer", "input", "weight", "bias", "output"]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Site:
    """One decision about one edge.

    edge: its name in the float graph. layer, node: whose it is. role: "layer" for a whole layer that stays float.
    format: "float", "uint8", "int8", "int4", "int32", "float8". scale: where its scale comes from, "ranges" (of this
    edge), "weight" (its own values), "input*weight", or "" for float. reason: why, in words.
    """

    edge: str
    layer: str
    node: str
    role: Role
    format: str
    scale: str
    reason: str


def place(layers: Sequence[Layer], rules: Sequence[Rule], target: Target, ranges: Ranges) -> list[Site]:
    """The sites of every layer, in graph order, from rules, a target and the calibrated range of each edge.

    Raises: RecipeError for rules that match nothing or ask for what the target refuses; ArtifactError naming the layer
    when a range is missing or not finite.
    """
    decided = resolve(rules, [layer.name for layer in layers])
    sites: list[Site] = []
    for layer in layers:
        rule = decided[layer.name]
        _allowed(layer, rule, target)
        keep = _stays_float(layer, rule, target, ranges)
        sites += [_site(layer, "layer", layer.output, "float", "", keep)] if keep else _coded(layer, rule, target)
    return sites


def quantized_layers(sites: Iterable[Site]) -> list[str]:
    """Names of the layers whose input and weight are both coded: those meant for an integer (or float8) kernel."""
    inputs = {site.layer for site in sites if site.role == "input"}
    return [site.layer for site in sites if site.role == "weight" and site.layer in inputs]


def _allowed(layer: Layer, rule: Rule, target: Target) -> None:
    for kind, wanted, known in (
        ("weights", rule.weight, target.weights),
        ("activations", rule.activation, target.activations),
    ):
        if wanted != "float" and wanted not in known:
            why = target.refused.get(wanted, f"use one of {', '.join(known)}")
            raise RecipeError(f"rule {rule.match!r} asks for {wanted} {kind} on {target.name} ({layer.name}): {why}")
    if rule.weight == "float" and rule.activation != "float":
        raise RecipeError(
            f"rule {rule.match!r} codes activations but not weights: no kernel mixes them; set weight too"
        )
    if "float8" in (rule.weight, rule.activation) and rule.weight != rule.activation != "float":
        raise RecipeError(f"rule {rule.match!r} mixes float8 with integers: set both to 'float8' or to 'int8'")


def _stays_float(layer: Layer, rule: Rule, target: Target, ranges: Ranges) -> str:
    """Why a layer stays float, "" when it does not."""
    if not rule.quantized:
        return rule.reason or f"rule {rule.match!r}"
    if len(layer.weight_shape) > 2 and layer.op != "Conv":
        return f"a weight of rank {len(layer.weight_shape)} has no integer kernel"
    if (channels := _channels(layer)) < target.min_channels:
        return f"{channels} channels: {target.name} gains nothing below {target.min_channels}"
    if rule.activation == "float":
        return ""
    read = [layer.input, layer.output] if layer.op in target.quantized_outputs else [layer.input]
    dead = [edge for edge in read if _range(layer, edge, ranges) == (0.0, 0.0)]
    return f"{'its input' if layer.input in dead else 'its output'} is always 0 in calibration" if dead else ""


def _coded(layer: Layer, rule: Rule, target: Target) -> list[Site]:
    why = rule.reason or f"rule {rule.match!r}"
    sites = [_site(layer, "weight", layer.weight, target.weights[rule.weight].name, "weight", why)]
    if rule.activation == "float":
        return sites
    activation = target.activations[rule.activation].name
    sites.insert(0, _site(layer, "input", layer.input, activation, "ranges", why))
    if layer.bias and target.bias:
        sites.append(_site(layer, "bias", layer.bias, target.bias.name, "input*weight", "added to integer sums"))
    if layer.op in target.quantized_outputs:
        needs = f"{layer.op} has an integer kernel on {target.name} only with a coded output"
        sites.append(_site(layer, "output", layer.output, activation, "ranges", needs))
    return sites


def _range(layer: Layer, edge: str, ranges: Ranges) -> tuple[float, float]:
    if edge not in ranges:
        raise ArtifactError(f"no range for {edge!r}, an edge of layer {layer.name}: run 'quaver ranges RECIPE' again")
    low, high = ranges[edge]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArtifactError(
            f"the range of {edge!r}, an edge of layer {layer.name}, is [{low}, {high}]: its activations overflowed; "
            "look at the samples, then run 'quaver ranges RECIPE' again"
        )
    return low, high


def _channels(layer: Layer) -> int:
    """The smaller of a layer's input and output channel counts."""
    inner = 1 if layer.op == "Conv" else 1 - layer.axis
    return min(layer.weight_shape[layer.axis], layer.weight_shape[inner])


def _site(layer: Layer, role: Role, edge: str, fmt: str, scale: str, reason: str) -> Site:
    return Site(edge, layer.name, layer.node, role, fmt, scale, reason)
