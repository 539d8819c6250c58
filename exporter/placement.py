"""Where quantizers go, decided as data before any graph is touched.

Every layer gets an answer. One that stays float is a single site that says why; one that runs in integers has a site
for its input, its weight, its bias when the target codes biases, and its output when the target's kernel needs that:

    ort-cpu       Conv          Q(x) W8 B32 -> Q(y)          Gemm, MatMul   Q(x) W8 -> float
    tensorrt      Conv          Q(x) W8     -> float         Gemm, MatMul   Q(x) W8 -> float

An edge has one scale whoever reads it, and layers that read one edge share its quantizer. Around the layers:

    concat     shared: the parts of a skip Concat that a convolution reads are coded alike. split: each part gets its
               own scale, as Q-Diffusion (arXiv:2302.04304, section 4.2) splits them; the weights take up the ratio
    residual   where the target wants it, the operand that a coded layer's output is added to
    product    Q K^T and softmax(S) V stay float unless [export] attention says otherwise; a softmax ends at 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quaver.calib.graph import Layer
from quaver.calib.quant import FLOAT16_MAX
from quaver.calib.rules import FLOATS, Rule, resolve
from quaver.exporter.targets import PRODUCT, Target, Way, find_way
from quaver.exporter.topology import Product, Topology
from quaver.runtime.errors import ArtifactError, RecipeError

Role = Literal["layer", "input", "part", "weight", "bias", "output", "residual", "operand", "product", "island"]
Ranges = Mapping[str, tuple[float, float]]
SMALLEST_BLOCK = 16
HALF_ROOM = 2.0  # a sample outside calibration may reach so much further before float16 overflows


@dataclass(frozen=True)
class Site:
    """One decision about one edge.

    edge: its name in the float graph. layer, node: whose it is; a product of activations belongs to no layer. role:
    "layer" or "product" for one that stays float, "island" for a node in float32 amid float16. format: "float",
    "float16", "uint8", "int8", "int4", "int32", "uint16", "float8". scale: where its scale comes from, "ranges" (of
    this edge), "weight" (its own values), "input*weight", "parts" (those of a Concat), "softmax" ([0, 1]), or "" for
    float. reason: why, in words. pattern: how codes become the weight (`patterns`). block: weights along the inputs
    that share a scale, 0 for a whole output channel. compute: the type of the floats around the layer.
    """

    edge: str
    layer: str
    node: str
    role: Role
    format: str
    scale: str
    reason: str
    pattern: str = ""
    block: int = 0
    compute: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class Placement:
    """What a recipe decides beside the rules. half: what "float" means where a target has float16 kernels."""

    half: bool = False
    concat: Literal["shared", "split"] = "shared"
    residual: Literal["target", "float", "coded"] = "target"
    attention: Literal["float", "int8", "float8"] = "float"


def place(
    layers: Sequence[Layer],
    rules: Sequence[Rule],
    target: Target,
    ranges: Ranges,
    *,
    topology: Topology | None = None,
    options: Placement | None = None,
) -> list[Site]:
    """The sites of every layer, in graph order, from rules, a target and the calibrated range of each edge.

    Without a topology, what stands around the layers is left as it is.
    Raises: RecipeError for rules that match nothing or ask for what the target refuses; ArtifactError naming the layer
    when a range is missing or not finite.
    """
    options, topology = options or Placement(), topology or Topology()
    decided = resolve(rules, [layer.name for layer in layers])
    sites: list[Site] = []
    for layer in layers:
        rule = decided[layer.name]
        half = target.half and (rule.activation == "float16" or (rule.activation != "float32" and options.half))
        made = _layer_sites(layer, rule, target, ranges, half=half, parts=_parts(layer, topology, options))
        sites += [_in_float16(site) for site in made] if half and _fits(layer, ranges) else made
    coded = (options.residual == "target" and target.residuals) or options.residual == "coded"
    sites += _residuals(layers, sites, ranges, topology) if coded else []
    return sites + [s for product in topology.products for s in _product_sites(product, target, ranges, options)]


def quantized_layers(sites: Iterable[Site]) -> list[str]:
    """Names of the layers whose input and weight are both coded: those meant for an integer (or float8) kernel."""
    inputs = {site.layer for site in sites if site.role == "input"}
    return [site.layer for site in sites if site.role == "weight" and site.layer in inputs]


def _layer_sites(
    layer: Layer, rule: Rule, target: Target, ranges: Ranges, *, half: bool, parts: Sequence[str]
) -> list[Site]:
    way = _way(layer, rule, target, half)
    if way is None or (keep := _stays_float(layer, way, target, ranges)):
        return [
            _site(
                layer,
                "layer",
                layer.output,
                "float",
                "",
                rule.reason or f"rule {rule.match!r}" if way is None else keep,
            )
        ]
    why = rule.reason or f"rule {rule.match!r}"
    rows = (layer.macs or 0) // max(math.prod(layer.weight_shape), 1)
    if way.activation and layer.op != "Conv" and 0 < rows < target.min_rows:
        alone = find_way(target, rule.weight, "float", layer.op)
        if isinstance(alone, Way):
            way, why = alone, f"{why}; {rows} row per sample: coding the input gains nothing on {target.name}"
    return _coded(layer, rule, way, why, target, parts)


def _way(layer: Layer, rule: Rule, target: Target, half: bool) -> Way | None:
    """How a layer is coded, None when its rule leaves it float. Raises: RecipeError for what the target cannot run."""
    weight, activation = rule.weight, rule.activation
    asked = (
        f"rule {rule.match!r} asks for {weight} weights and {activation} activations on {target.name} ({layer.name})"
    )
    if weight in FLOATS and activation not in FLOATS:
        raise RecipeError(f"{asked}: it codes activations but not weights, and no kernel mixes them; set weight too")
    if weight == "float32" and activation == "float16":
        raise RecipeError(f"{asked}: no kernel mixes them; set both to 'float16' or to 'float32'")
    if weight in FLOATS and (half or (weight != "float16" and activation != "float16")):
        return None
    found = find_way(target, weight, activation, layer.op)
    if isinstance(found, str):
        raise RecipeError(f"{asked}: {found}")
    if rule.block and found.blocks == "refused":
        raise RecipeError(
            f"{asked} in blocks of {rule.block}: its kernel takes one scale per output channel; set block = 0, or "
            "activation = 'float'"
        )
    return found


def _stays_float(layer: Layer, way: Way, target: Target, ranges: Ranges) -> str:
    """Why a layer that is to be coded stays float, "" when it does not."""
    if way.weight is None:
        return ""
    if len(layer.weight_shape) > 2 and layer.op != "Conv":
        return f"a weight of rank {len(layer.weight_shape)} has no integer kernel"
    if (channels := _channels(layer)) < target.min_channels:
        return f"{channels} channels: {target.name} gains nothing below {target.min_channels}"
    if way.activation is None:
        return ""
    read = [layer.input, layer.output] if way.coded_output else [layer.input]
    dead = [edge for edge in read if _range(f"layer {layer.name}", edge, ranges) == (0.0, 0.0)]
    return f"{'its input' if layer.input in dead else 'its output'} is always 0 in calibration" if dead else ""


def _coded(layer: Layer, rule: Rule, way: Way, why: str, target: Target, parts: Sequence[str]) -> list[Site]:
    block, said = _block(layer, rule, way)
    weight = way.weight.name if way.weight else "float16"
    scale = "weight" if way.weight else ""
    sites = [replace(_site(layer, "weight", layer.weight, weight, scale, why + said), pattern=way.pattern, block=block)]
    if way.activation is None:
        return sites
    activation = way.activation.name
    sites.insert(0, _site(layer, "input", layer.input, activation, "parts" if parts else "ranges", why))
    split = "each part of the Concat keeps its own scale (export.concat)"
    sites[1:1] = [_site(layer, "part", edge, activation, "ranges", split) for edge in parts]
    if layer.bias and way.bias:
        sites.append(_site(layer, "bias", layer.bias, way.bias.name, "input*weight", "added to integer sums"))
    if way.coded_output:
        needs = f"{layer.op} has an integer kernel on {target.name} only with a coded output"
        sites.append(_site(layer, "output", layer.output, activation, "ranges", needs))
    return sites


def _block(layer: Layer, rule: Rule, way: Way) -> tuple[int, str]:
    """The block that fits a layer (the largest common divisor with its inputs), and what is to be said about it."""
    inputs = layer.weight_shape[_inner(layer)]
    block = math.gcd(inputs, rule.block)
    if not rule.block:
        return 0, ""
    if way.blocks == "channels" or block < SMALLEST_BLOCK:
        why = f"{inputs} inputs have no block" if block < SMALLEST_BLOCK else f"{layer.op} takes no blocks here"
        return 0, f"; one scale per channel: {why}"
    return block, "" if block == rule.block else f"; blocks of {block}, the largest that divide {inputs} inputs"


def _fits(layer: Layer, ranges: Ranges) -> bool:
    return all(fits_half(ranges.get(edge)) for edge in (layer.input, layer.output))


def fits_half(limits: tuple[float, float] | None) -> bool:
    """Whether a calibrated range leaves room in float16; an edge without one is taken to fit."""
    return limits is None or max(-limits[0], limits[1]) * HALF_ROOM <= FLOAT16_MAX


def _in_float16(site: Site) -> Site:
    return replace(site, compute="float16", format="float16" if site.role == "layer" else site.format)


def _parts(layer: Layer, topology: Topology, options: Placement) -> tuple[str, ...]:
    split = options.concat == "split" and layer.op == "Conv"
    # the weights of a grouped convolution have no axis of all channels to take up the ratios
    split = split and topology.channels.get(layer.input) == layer.weight_shape[1]
    return topology.concats.get(layer.input, ()) if split else ()


def _residuals(layers: Sequence[Layer], sites: Sequence[Site], ranges: Ranges, topology: Topology) -> list[Site]:
    """The other operand of every sum that a coded layer writes into; of two coded ones the later is the fused one."""
    inputs = {site.layer: site for site in sites if site.role == "input"}
    last = {r.node: x for x in layers if x.name in inputs and (r := topology.residuals.get(x.output))}
    found = []
    for node, layer in last.items():
        edge, like = topology.residuals[layer.output].edge, inputs[layer.name]
        if edge in ranges and _range(f"the sum {node}", edge, ranges) != (0.0, 0.0):
            why = f"the operand that {layer.name} is added to: the sum joins its kernel"
            found.append(replace(like, edge=edge, node=node, role="residual", scale="ranges", reason=why))
    return found


def _product_sites(product: Product, target: Target, ranges: Ranges, options: Placement) -> list[Site]:
    """The operands of a product of activations, or why it stays float."""
    site = Site("", "", product.node, "product", "float", "", "")
    compute: Literal["float32", "float16"] = "float16" if options.half and target.half else "float32"
    whose, fmt = f"the product {product.name}", options.attention
    way = find_way(target, fmt, fmt, PRODUCT) if fmt != "float" else "export.attention"
    if isinstance(way, str) and fmt != "float":
        raise RecipeError(f"export.attention = {fmt!r} on {target.name}: {way}")
    if isinstance(way, str) or way.activation is None:
        return [replace(site, edge=product.operands[0], reason=f"{whose} stays float (export.attention)")]
    if target.longest and product.positions > target.longest:
        why = f"{whose} spans {product.positions} positions: {target.name} gains nothing above {target.longest}"
        return [replace(site, edge=product.operands[0], reason=why)]
    softmax = {product.softmax} - {""}
    dead = [e for e in product.operands if e not in softmax and _range(whose, e, ranges) == (0.0, 0.0)]
    if dead:
        return [replace(site, edge=dead[0], reason=f"{whose} reads what is always 0 in calibration")]
    coded = replace(
        site, role="operand", format=way.activation.name, compute=compute, reason=f"{whose} in {way.kernel}"
    )
    return [replace(coded, edge=e, scale="softmax" if e in softmax else "ranges") for e in product.operands]


def _range(whose: str, edge: str, ranges: Ranges) -> tuple[float, float]:
    if edge not in ranges:
        raise ArtifactError(f"no range for {edge!r}, an edge of {whose}: run 'quaver ranges RECIPE' again")
    low, high = ranges[edge]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArtifactError(
            f"the range of {edge!r}, an edge of {whose}, is [{low}, {high}]: its activations overflowed, or none were "
            "seen; look at the samples, then run 'quaver ranges RECIPE' again"
        )
    if low > high:
        raise ArtifactError(
            f"the range of {edge!r}, an edge of {whose}, is empty: [{low}, {high}]; run 'quaver ranges RECIPE' again"
        )
    return low, high


def _inner(layer: Layer) -> int:
    """The input-channel axis of a layer's weight."""
    return 1 if layer.op == "Conv" else len(layer.weight_shape) - 1 if layer.axis == 0 else len(layer.weight_shape) - 2


def _channels(layer: Layer) -> int:
    """The smaller of a layer's input and output channel counts."""
    return min(layer.weight_shape[layer.axis], layer.weight_shape[_inner(layer)])


def _site(layer: Layer, role: Role, edge: str, fmt: str, scale: str, reason: str) -> Site:
    return Site(edge, layer.name, layer.node, role, fmt, scale, reason)
