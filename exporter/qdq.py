"""Write the decided sites into a graph: QuantizeLinear, DequantizeLinear and weights at their real width.

    input    x -> Q -> DQ -> layer            one pair per edge, shared by all layers that read it
    output   layer -> Q -> DQ -> y            whoever read y reads the coded one
    weight   codes -> DQ(scale [C], axis) -> layer
    bias     int32 codes -> DQ(s_x s_w) -> layer

4-bit codes are stored two to a byte; what fuses to an 8-bit kernel differs by target and operator (targets.int4):

    cast              INT4 -> Cast(INT8) -> DQ(s)                  folded by onnxruntime when it loads the file
    dequantize        INT4 -> DQ(s)                                TensorRT, products
    dequantize-cast   INT4 -> DQ(1) -> Cast(INT8) -> DQ(s)         TensorRT, convolutions

Nothing is decided here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from quaver.calib.graph import MODULE_KEY, Layer, module_of
from quaver.calib.quant import FLOAT8, INT4, INT8, INT32, UINT8, Format, pack_int4, scale_zero_point
from quaver.exporter.passes import unused
from quaver.exporter.placement import Ranges, Site
from quaver.exporter.targets import Target
from quaver.exporter.weights import Coded, code_weight, with_bias
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Nodes = list["onnx.NodeProto"]
Read = Callable[["onnx.TensorProto"], np.ndarray]  # the values of a constant, wherever they lie
Keep = Callable[["onnx.TensorProto"], "onnx.TensorProto"]  # a new constant, its values put wherever they shall lie
FORMATS = {fmt.name: fmt for fmt in (INT8, UINT8, INT4, INT32, FLOAT8)}


@dataclass
class Draft:
    """A graph under construction: new constants, new nodes before a node (by name) or behind an edge."""

    constants: dict[str, onnx.TensorProto]
    read: Read
    keep: Keep
    before: dict[str, Nodes] = field(default_factory=lambda: defaultdict(list))
    behind: dict[str, Nodes] = field(default_factory=lambda: defaultdict(list))
    coded: dict[tuple[str, str], str] = field(default_factory=dict)  # (edge, format) -> its dequantized twin


def insert(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    sites: Sequence[Site],
    ranges: Ranges,
    target: Target,
    *,
    learned: Mapping[str, Coded] | None = None,
    read: Read | None = None,
    keep: Keep | None = None,
) -> onnx.ModelProto:
    """Change `model` in place into the quantized graph that `sites` describe, and return it.

    `learned` are weight codes and scales by layer name; the others are rounded to nearest. One weight is in memory at a
    time when `read` and `keep` say where values lie (modelfile.Weights); without them all are in `model`.
    """
    read, keep = read or need("onnx", extra="export").numpy_helper.to_array, keep or (lambda tensor: tensor)
    draft = Draft({tensor.name: tensor for tensor in model.graph.initializer}, read, keep)
    nodes = {node.name: node for node in model.graph.node}
    by_layer: dict[str, dict[str, Site]] = defaultdict(dict)
    for site in sites:
        by_layer[site.layer][site.role] = site
    for layer in layers:
        if "weight" in by_layer[layer.name]:
            codes = (learned or {}).get(layer.name)
            _write_layer(draft, nodes[layer.node], layer, by_layer[layer.name], ranges, target, codes)
    _assemble(model, draft)
    unused.run(model)
    return model


def _write_layer(
    draft: Draft,
    node: onnx.NodeProto,
    layer: Layer,
    sites: Mapping[str, Site],
    ranges: Ranges,
    target: Target,
    learned: Coded | None,
) -> None:
    """Rewire one layer's node to coded input, weight, bias and output, as far as it has such sites."""
    module, input_scale = module_of(node), None
    if "input" in sites:
        fmt = FORMATS[sites["input"].format]
        input_scale = float(scale_zero_point(*ranges[layer.input], fmt)[0])
        node.input[0] = _coded_edge(draft, layer.input, ranges, fmt, module)
    fmt = FORMATS[sites["weight"].format]
    bias = draft.read(draft.constants[layer.bias]) if "bias" in sites else None
    if learned is not None:
        coded = with_bias(learned.codes, learned.scale, bias, input_scale)
    else:
        weight, limit = draft.read(draft.constants[layer.weight]), target.pair_limit
        coded = code_weight(weight, fmt, axis=layer.axis, bias=bias, input_scale=input_scale, pair_limit=limit)
    node.input[1] = _weight(draft, layer, coded, fmt, target.int4[layer.op] if fmt == INT4 else "", module)
    if coded.bias is not None and coded.bias_scale is not None:
        name = f"{layer.name}.bias"
        codes = _constant(draft, f"{name}.codes", coded.bias)
        draft.before[layer.node] += [_dequantize(draft, codes, coded.bias_scale, INT32, f"{name}.dq", module, axis=0)]
        node.input[2] = f"{name}.dq"
    if "output" in sites:
        fmt, raw = FORMATS[sites["output"].format], f"{layer.output}.float"
        node.output[0] = raw
        draft.behind[raw] += _pair(draft, raw, layer.output, ranges[layer.output], fmt, module)
        draft.coded[layer.output, fmt.name] = layer.output


def _coded_edge(draft: Draft, edge: str, ranges: Ranges, fmt: Format, module: str) -> str:
    """The dequantized twin of an edge, made when the first layer asks for it."""
    if (edge, fmt.name) not in draft.coded:
        draft.coded[edge, fmt.name] = f"{edge}.{fmt.name}"
        draft.behind[edge] += _pair(draft, edge, f"{edge}.{fmt.name}", ranges[edge], fmt, module)
    return draft.coded[edge, fmt.name]


def _pair(draft: Draft, source: str, result: str, limits: tuple[float, float], fmt: Format, module: str) -> Nodes:
    """Q and DQ from edge `source` to edge `result`, per tensor."""
    scale, zero = scale_zero_point(*limits, fmt)
    names = [_constant(draft, f"{result}.scale", scale), _zero_point(draft, f"{result}.zero", zero, fmt)]
    codes = f"{result}.codes"
    return [
        _node("QuantizeLinear", [source, *names], codes, module),
        _node("DequantizeLinear", [codes, *names], result, module),
    ]


def _weight(draft: Draft, layer: Layer, coded: Coded, fmt: Format, pattern: str, module: str) -> str:
    """The chain from stored codes to the real weight; returns the edge that carries it."""
    name, chain = f"{layer.name}.weight", draft.before[layer.node]
    codes = _constant(draft, f"{name}.codes", coded.codes, fmt)
    if pattern == "dequantize-cast":
        chain += [_dequantize(draft, codes, np.float32(1), INT4, f"{name}.unscaled", module)]
        codes = f"{name}.unscaled"
    if pattern in ("cast", "dequantize-cast"):
        int8 = need("onnx", extra="export").TensorProto.INT8
        chain += [_node("Cast", [codes], f"{name}.int8", module, to=int8)]
        codes, fmt = f"{name}.int8", INT8
    chain += [_dequantize(draft, codes, coded.scale, fmt, f"{name}.dq", module, axis=layer.axis)]
    return f"{name}.dq"


def _dequantize(
    draft: Draft, codes: str, scale: ArrayLike, fmt: Format, result: str, module: str, *, axis: int | None = None
) -> onnx.NodeProto:
    """DQ of symmetric codes with a scale [] or [C]."""
    zeros = np.zeros(np.shape(scale), np.int32)
    names = [_constant(draft, f"{result}.scale", np.asarray(scale)), _zero_point(draft, f"{result}.zero", zeros, fmt)]
    return _node("DequantizeLinear", [codes, *names], result, module, **({} if axis is None else {"axis": axis}))


def _zero_point(draft: Draft, name: str, zero: np.ndarray, fmt: Format) -> str:
    """A zero-point constant; equal ones are stored once."""
    if not zero.any():
        name = f"zero.{fmt.name}.{'x'.join(map(str, zero.shape))}"
    return _constant(draft, name, zero.astype(fmt.dtype), fmt)


def _constant(draft: Draft, name: str, value: np.ndarray, fmt: Format | None = None) -> str:
    """An initializer, at the width of `fmt` when that is not numpy's."""
    onnx = need("onnx", extra="export")
    if fmt is not None and fmt.bits == 4:
        raw = pack_int4(value).tobytes()
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, value.shape, raw, raw=True)
    else:
        if fmt is not None and fmt.kind == "float8":
            value = value.astype(need("ml_dtypes", extra="export").float8_e4m3fn)
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
    draft.constants[name] = draft.keep(tensor)
    return name


def _node(op: str, inputs: list[str], output: str, module: str, **attributes: int) -> onnx.NodeProto:
    """A node named after its output, with the module it serves."""
    node = need("onnx", extra="export").helper.make_node(op, inputs, [output], output, **attributes)
    if module:
        node.metadata_props.add(key=MODULE_KEY, value=module)
    return node


def _assemble(model: onnx.ModelProto, draft: Draft) -> None:
    """Put the new nodes where they belong; the order stays topological."""
    nodes: Nodes = [new for value in model.graph.input for new in draft.behind[value.name]]
    for node in model.graph.node:
        nodes += [*draft.before[node.name], node, *(new for edge in node.output for new in draft.behind[edge])]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(draft.constants.values())
