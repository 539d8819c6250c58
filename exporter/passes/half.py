"""Let the float part of a graph compute in float16 (strongly typed: a Cast wherever the type changes).

`choose` decides, `run` writes. All nodes go to float16 but those that

    * the target keeps in float32 (squares and sums of a decomposed norm, phases of a time embedding), with what feeds
      their phases
    * read or write an edge whose calibrated range leaves no room in float16
    * read a constant that float16 cannot hold: too large, or so small that it becomes 0; the huge negative numbers of
      masks are clamped instead

and each exception says why. Graph inputs and outputs keep float32. Q and DQ have the type of their scales already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import float_edges
from quaver.calib.quant import FLOAT16_MAX
from quaver.exporter.draft import Keep, Read
from quaver.exporter.placement import Ranges, Site, fits_half
from quaver.exporter.targets import Target
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

PHASES = ("Sin", "Cos")
MASKED = ("Add", "Where", "Max", "Min", "Clip")
UNTYPED = ("Shape", "Size", "Cast", "IsNaN", "IsInf")  # they read floats of any type, and make none
QDQ = ("QuantizeLinear", "DequantizeLinear")
# inputs that the operator wants in float32 whatever it computes in
KEPT_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,)}
FLOAT, HALF = 1, 10  # TensorProto


@dataclass(frozen=True)
class Halves:
    """nodes: those that compute in float16. islands: the exceptions, node -> why."""

    nodes: frozenset[str]
    islands: Mapping[str, str]


def choose(
    model: onnx.ModelProto, sites: Iterable[Site], target: Target, ranges: Ranges, *, whole: bool, read: Read
) -> Halves:
    """Which nodes of a float graph go to float16: the layers that sites put there, and with `whole` all others.

    `read` gives the values of a constant.
    """
    decided = {site.node: site.compute for site in sites if site.role != "product"}
    wanted = [n for n in model.graph.node if decided.get(n.name, "float16" if whole else "float32") == "float16"]
    coded = {(site.node, site.edge) for site in sites if site.role == "weight"}
    constants = {t.name: t for t in model.graph.initializer if t.data_type == FLOAT}
    phases = _feeding(model.graph.node, PHASES) if set(PHASES) & target.single.keys() else set()
    islands = {}
    for node in wanted:
        values = [constants[e] for e in node.input if e in constants and (node.name, e) not in coded]
        wide = next((e for e in (*node.input, *node.output) if not fits_half(ranges.get(e))), None)
        if node.op_type in target.single or node.name in phases:
            islands[node.name] = target.single.get(node.op_type, target.single.get(PHASES[0], ""))
        elif wide:
            islands[node.name] = f"{wide} spans [{ranges[wide][0]:g}, {ranges[wide][1]:g}]: no room in float16"
        elif why := next((w for t in values if (w := _lost(read(t), node.op_type))), ""):
            islands[node.name] = why
        elif any(a.HasField("g") or a.graphs for a in node.attribute):
            islands[node.name] = "it holds a graph of its own"
    return Halves(frozenset(n.name for n in wanted) - islands.keys(), islands)


def settle(sites: Iterable[Site], halves: Halves, model: onnx.ModelProto) -> list[Site]:
    """The sites with what `choose` decided: layers that stay float32 after all, and the other exceptions."""
    settled = []
    for site in sites:
        if why := halves.islands.get(site.node) if site.compute == "float16" else None:
            fmt = "float" if site.role == "layer" else site.format
            site = replace(site, compute="float32", format=fmt, reason=f"{site.reason}; in float32: {why}")
        settled.append(site)
    layers = {site.node for site in settled}
    others = [n for n in model.graph.node if n.name in halves.islands.keys() - layers and n.output]
    return settled + [
        Site(n.output[0], "", n.name, "island", "float", "", f"{n.op_type} in float32: {halves.islands[n.name]}")
        for n in others
    ]


def run(model: onnx.ModelProto, halves: Halves, *, read: Read, keep: Keep) -> bool:
    """Write them: constants, casts, recorded types. True if anything changed; constants go through `keep`."""
    if not halves.nodes:
        return False
    floats, graph = float_edges(model), model.graph
    constants = {t.name: t for t in graph.initializer}
    typed = [n for n in graph.node if floats.intersection(n.output) or n.op_type not in UNTYPED]
    in_half = {n.name for n in typed if _half(n, halves.nodes, constants)}
    types = {edge: n.name in in_half for n in graph.node for edge in n.output if edge in floats}
    types |= {value.name: False for value in graph.input if value.name in floats}
    results = {value.name for value in graph.output if types.get(value.name)}
    nodes: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # the casts of an edge, behind the node that writes it
    for node in typed:
        half = node.name in in_half
        if half:
            _retype(node)
        for index, edge in enumerate(node.input):
            if (node.op_type in QDQ and index > 0) or index in KEPT_INPUTS.get(node.op_type, ()):
                continue
            if edge in constants and constants[edge].data_type == FLOAT and half:
                node.input[index] = _constant(constants, edge, read, keep)
            elif edge in types and types[edge] != half:
                node.input[index] = _cast(nodes, edge, half)
    _write_results(graph, results, nodes)
    _assemble(graph, nodes, constants)
    for value in graph.value_info:
        if types.get(value.name):
            value.type.tensor_type.elem_type = HALF
    return True


def _feeding(nodes: Sequence[onnx.NodeProto], ops: Sequence[str]) -> set[str]:
    """Names of the nodes on whose results those operators depend."""
    wanted, found = set[str](), set[str]()
    for node in reversed(nodes):
        if node.op_type in ops or wanted.intersection(node.output):
            wanted.update(node.input)
            found.add(node.name)
    return found


def _lost(value: np.ndarray, op: str) -> str:
    """What float16 would lose of a constant; "" when it holds it, or when clamping it is what a mask wants."""
    size = np.abs(value[np.isfinite(value)])
    if size.size and size.max() > FLOAT16_MAX and op not in MASKED:
        return f"it reads a constant of {size.max():g}: float16 ends at {FLOAT16_MAX:g}"
    if value.size == 1 and size.size and size.max() > 0 and np.float16(size.max()) == 0:
        return f"it reads the constant {size.max():g}: float16 makes it 0"
    return ""


def _half(node: onnx.NodeProto, nodes: frozenset[str], constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node computes in float16; Q and DQ do when their scale says so."""
    if node.op_type in QDQ:
        return node.input[1] in constants and constants[node.input[1]].data_type == HALF
    return node.name in nodes


def _retype(node: onnx.NodeProto) -> None:
    """Let what a node says about its own type say float16."""
    onnx = need("onnx", extra="export")
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = onnx.numpy_helper.from_array(np.zeros(1, np.float16))
        node.attribute.append(onnx.helper.make_attribute("value", zero))
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == FLOAT:
            attribute.i = HALF
        elif attribute.name == "value" and attribute.t.data_type == FLOAT:
            array = onnx.numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(_clamped(array), attribute.t.name))


def _clamped(value: np.ndarray) -> np.ndarray:
    """float16 values; infinities stay, what lies beyond float16 becomes its largest number."""
    bounded = np.where(np.isfinite(value), np.clip(value, -FLOAT16_MAX, FLOAT16_MAX), value)
    return np.asarray(bounded, np.float16)


def _constant(constants: dict[str, onnx.TensorProto], name: str, read: Read, keep: Keep) -> str:
    """The float16 twin of a constant."""
    twin = f"{name}.float16"
    if twin not in constants:
        array = _clamped(read(constants[name]))
        constants[twin] = keep(need("onnx", extra="export").numpy_helper.from_array(array, twin))
    return twin


def _cast(nodes: dict[str, list[onnx.NodeProto]], edge: str, half: bool) -> str:
    """The twin of an edge in the other type."""
    twin = f"{edge}.{'float16' if half else 'float32'}"
    if not any(made.output[0] == twin for made in nodes[edge]):
        make = need("onnx", extra="export").helper.make_node
        nodes[edge].append(make("Cast", [edge], [twin], twin, to=HALF if half else FLOAT))
    return twin


def _write_results(graph: onnx.GraphProto, results: set[str], nodes: dict[str, list[onnx.NodeProto]]) -> None:
    """Outputs of the graph that are made in float16 get another name inside, and their own behind a Cast."""
    make = need("onnx", extra="export").helper.make_node
    for name in results:
        inner = f"{name}.float16"
        for node in graph.node:
            for field in (node.input, node.output):
                for index, edge in enumerate(field):
                    if edge == name:
                        field[index] = inner
        casts = nodes.pop(name, [])
        for made in casts:
            made.input[0] = inner
        nodes[inner] = [*casts, make("Cast", [inner], [name], f"{name}.float32", to=FLOAT)]


def _assemble(
    graph: onnx.GraphProto, casts: Mapping[str, list[onnx.NodeProto]], constants: Mapping[str, onnx.TensorProto]
) -> None:
    """Casts go behind what they read; constants that nobody reads any more go."""
    nodes = [made for value in graph.input for made in casts.get(value.name, ())]
    for node in graph.node:
        nodes += [node, *(made for edge in node.output for made in casts.get(edge, ()))]
    used = {edge for node in nodes for edge in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(t for name, t in constants.items() if name in used)
