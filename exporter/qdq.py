"""Write the decided sites into a graph: QuantizeLinear, DequantizeLinear and weights at their real width.

    input    x -> Q -> DQ -> layer            one pair per edge, shared by all layers that read it
    parts    a -> Q, b -> Q -> Concat -> DQ   codes are joined; one zero point z, scales s_a, s_b
    output   layer -> Q -> DQ -> y            whoever read y reads the coded one
    weight   codes -> .. -> layer             one of `patterns`
    bias     int32 codes -> DQ(s_x s_w) -> layer

A layer that reads [a, b] joined so multiplies q_a - z and q_b - z by W_a s_a and W_b s_b: the scales of the parts go
into its weights, and one integer kernel serves both. Nothing is decided here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import Layer, edge_shapes, module_of
from quaver.calib.quant import INT32, common_zero_point, half_scale, scale_zero_point
from quaver.exporter.draft import Draft, Keep, Read, assemble, constant, dequantize, node, real, zero_point
from quaver.exporter.passes import unused
from quaver.exporter.patterns import FORMATS, code, finite, write_weight
from quaver.exporter.placement import Ranges, Site
from quaver.exporter.targets import Target
from quaver.exporter.weights import Coded, with_bias
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

SOFTMAX = (0.0, 1.0)


def insert(
    model: onnx.ModelProto,
    layers: Iterable[Layer],
    sites: Sequence[Site],
    ranges: Ranges,
    target: Target,
    *,
    learned: Mapping[str, Coded] | None = None,
    read: Read | None = None,
    keep: Keep | None = None,
    say: Callable[[str], None] | None = None,
) -> onnx.ModelProto:
    """Change `model` in place into the quantized graph that `sites` describe, and return it.

    `learned` are weight codes and scales by layer name; the others are rounded to nearest. One weight is in memory at a
    time when `read` and `keep` say where values lie (modelfile.Weights); without them all are in `model`. `say` hears
    of output channels without weights.
    Raises: ArtifactError naming the layer whose weights are not finite.
    """
    read, keep = read or need("onnx", extra="export").numpy_helper.to_array, keep or (lambda tensor: tensor)
    draft = Draft({tensor.name: tensor for tensor in model.graph.initializer}, read, keep)
    nodes, shapes = {node.name: node for node in model.graph.node}, edge_shapes(model)
    by_layer: dict[str, dict[str, list[Site]]] = defaultdict(lambda: defaultdict(list))
    for site in sites:
        by_layer[site.layer][site.role].append(site)
    dead = {}
    for layer in layers:
        if "weight" in by_layer[layer.name]:
            codes, parts = (learned or {}).get(layer.name), by_layer[layer.name]["part"]
            one = {role: found[0] for role, found in by_layer[layer.name].items() if found}
            ratio = _write_input(draft, nodes[layer.node], layer, one, parts, ranges, shapes)
            dead[layer.name] = _write_weights(draft, nodes[layer.node], layer, one, ranges, target, codes, ratio)
            _write_output(draft, nodes[layer.node], layer, one, ranges)
    for site in sites:
        if site.role in ("residual", "operand"):
            _rewire(draft, nodes[site.node], site, ranges)
    assemble(model, draft)
    unused.run(model)
    if say and any(dead.values()):
        say(f"output channels without weights: {', '.join(f'{n} of {name}' for name, n in dead.items() if n)}")
    return model


def _write_input(
    draft: Draft,
    at: onnx.NodeProto,
    layer: Layer,
    sites: Mapping[str, Site],
    parts: Sequence[Site],
    ranges: Ranges,
    shapes: Mapping[str, tuple[int | None, ...]],
) -> tuple[float | None, np.ndarray | None]:
    """Rewire a layer's input; returns its scale, and by how much each input channel's weights grow ([I] or None)."""
    if "input" not in sites:
        return None, None
    site, fmt = sites["input"], FORMATS[sites["input"].format]
    if not parts:
        at.input[0] = _coded_edge(draft, site, ranges[layer.input], module_of(at))
        return float(_scale(ranges[layer.input], site)[0]), None
    scales, zero = common_zero_point([ranges[part.edge] for part in parts], fmt)
    scales = half_scale(scales) if _half(site) else scales
    scale, result, codes = scales.max(), f"{layer.name}.input", []
    for index, (part, own) in enumerate(zip(parts, scales, strict=True)):
        codes.append(f"{result}.{index}.codes")
        names = [real(draft, f"{codes[-1]}.scale", own, half=_half(site))]
        names.append(zero_point(draft, f"{result}.zero", zero, fmt))
        draft.behind[part.edge].append(node("QuantizeLinear", [part.edge, *names], codes[-1], module_of(at)))
    names = [real(draft, f"{result}.scale", scale, half=_half(site)), names[1]]
    draft.before[layer.node] += [
        node("Concat", codes, f"{result}.codes", module_of(at), axis=1),
        node("DequantizeLinear", [f"{result}.codes", *names], result, module_of(at)),
    ]
    at.input[0] = result
    return float(scale), np.repeat(scales / scale, [shapes[part.edge][1] or 0 for part in parts])


def _write_weights(
    draft: Draft,
    at: onnx.NodeProto,
    layer: Layer,
    sites: Mapping[str, Site],
    ranges: Ranges,
    target: Target,
    learned: Coded | None,
    scaled: tuple[float | None, np.ndarray | None],
) -> int:
    """Rewire a layer's weight and bias to codes; returns how many output channels have no weights."""
    site, module = sites["weight"], module_of(at)
    input_scale, ratio = scaled
    bias = draft.read(draft.constants[layer.bias]) if "bias" in sites else None
    if learned is not None:
        coded = with_bias(learned.codes, half_scale(learned.scale) if _half(site) else learned.scale, bias, input_scale)
    else:
        weight = finite(draft.read(draft.constants[layer.weight]), layer)
        if ratio is not None:
            weight = weight * ratio.reshape(1, -1, *[1] * (weight.ndim - 2))
        coded = code(weight, layer, site, target, bias, input_scale)
    at.input[1] = write_weight(draft, layer, coded, site, module)
    if coded.bias is not None and coded.bias_scale is not None:
        name = f"{layer.name}.bias"
        codes = constant(draft, f"{name}.codes", coded.bias)
        made = dequantize(draft, codes, coded.bias_scale, INT32, f"{name}.dq", module, half=False, axis=0)
        draft.before[layer.node].append(made)
        at.input[2] = f"{name}.dq"
    others = tuple(d for d in range(coded.codes.ndim) if d != layer.axis)
    return int((~coded.codes.any(axis=others)).sum())


def _write_output(draft: Draft, at: onnx.NodeProto, layer: Layer, sites: Mapping[str, Site], ranges: Ranges) -> None:
    if "output" in sites:
        site, raw = sites["output"], f"{layer.output}.float"
        at.output[0] = raw
        draft.behind[raw] += _pair(draft, raw, layer.output, ranges[layer.output], site, module_of(at))
        draft.coded[layer.output, site.format, _half(site)] = layer.output


def _rewire(draft: Draft, at: onnx.NodeProto, site: Site, ranges: Ranges) -> None:
    """Let a node that is no layer read the coded twin of an edge."""
    limits = SOFTMAX if site.scale == "softmax" else ranges[site.edge]
    twin = _coded_edge(draft, site, limits, module_of(at))
    for index, edge in enumerate(at.input):
        if edge == site.edge:
            at.input[index] = twin


def _coded_edge(draft: Draft, site: Site, limits: tuple[float, float], module: str) -> str:
    """The dequantized twin of an edge, made when the first reader asks for it."""
    key = (site.edge, site.format, _half(site))
    if key not in draft.coded:
        draft.coded[key] = f"{site.edge}.{site.format}" + ".float16" * _half(site)
        draft.behind[site.edge] += _pair(draft, site.edge, draft.coded[key], limits, site, module)
    return draft.coded[key]


def _pair(
    draft: Draft, source: str, result: str, limits: tuple[float, float], site: Site, module: str
) -> list[onnx.NodeProto]:
    """Q and DQ from edge `source` to edge `result`, per tensor."""
    scale, zero = _scale(limits, site)
    names = [real(draft, f"{result}.scale", scale, half=_half(site))]
    names.append(zero_point(draft, f"{result}.zero", zero, FORMATS[site.format]))
    codes = f"{result}.codes"
    return [
        node("QuantizeLinear", [source, *names], codes, module),
        node("DequantizeLinear", [codes, *names], result, module),
    ]


def _scale(limits: tuple[float, float], site: Site) -> tuple[np.ndarray, np.ndarray]:
    scale, zero = scale_zero_point(*limits, FORMATS[site.format])
    return (half_scale(scale) if _half(site) else scale), zero


def _half(site: Site) -> bool:
    return site.compute == "float16"
