"""Give nodes the module path that their names tell, where no metadata does.

    "/down_blocks.0/attentions.0/to_q/MatMul"      -> down_blocks.0.attentions.0.to_q        scopes in a node's name
    "MatMul_23" with weight "mid.attn.to_q.weight" -> mid.attn.to_q                          else the weight's name
    "MatMul_23" with "onnx::MatMul_7", + "mid.attn.to_q.bias"                                else that of the bias added

and drop what all layers' paths begin with ("unet.", "model.diffusion_model."), so that rules and presets written for a
model match it however it was wrapped. Every node gets a name of its own on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quaver.calib.graph import LAYER_OPS, MODULE_KEY, module_of

if TYPE_CHECKING:
    import onnx

ENDINGS = (".weight", ".bias", ".kernel")


def run(model: onnx.ModelProto) -> bool:
    """Name unnamed nodes and give every node that tells one its module path; True if anything was added."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    named = name_nodes(model)
    readers: dict[str, onnx.NodeProto] = {edge: node for node in reversed(graph.node) for edge in node.input}
    known = bool(any(map(module_of, graph.node)))
    paths = {} if known else {node.name: path_of(node, constants, readers) for node in graph.node}
    layers = [node.name for node in graph.node if node.op_type in LAYER_OPS and node.input[1] in constants]
    prefix = shared_prefix([paths[name] for name in layers if paths.get(name)])
    for node in graph.node:
        if path := paths.get(node.name, "").removeprefix(prefix):
            node.metadata_props.add(key=MODULE_KEY, value=path)
    return named or any(paths.values())


def name_nodes(model: onnx.ModelProto) -> bool:
    """Make node names unique and not empty; True if one was neither."""
    taken, changed = Counter(node.name for node in model.graph.node), False
    for index, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            taken[node.name] -= 1
            node.name, changed = f"{node.name or node.op_type}_{index}", True
    return changed


def path_of(node: onnx.NodeProto, constants: set[str], readers: Mapping[str, onnx.NodeProto]) -> str:
    """The module path that a node's name, its weight's or its bias's tells; "" when none does."""
    if "/" in node.name.strip("/"):
        return ".".join(node.name.strip("/").split("/")[:-1])
    after = readers.get(node.output[0]) if node.op_type in LAYER_OPS else None
    beside = after.input if after and after.op_type == "Add" else ()
    told = (parameter_path(edge) for edge in (*node.input, *beside) if edge in constants)
    return next(filter(None, told), "")


def parameter_path(name: str) -> str:
    """The module of a parameter: "mid.to_q.weight" -> "mid.to_q"; "" for a name that says nothing."""
    return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), "").lstrip(".")


def shared_prefix(paths: list[str]) -> str:
    """What all of several paths begin with, in whole parts, the last part apart: "unet." of "unet.a", "unet.b.c"."""
    split = [path.split(".")[:-1] for path in paths]
    parts: list[str] = []
    for column in zip(*split, strict=False):
        if len(set(column)) > 1:
            break
        parts.append(column[0])
    return "".join(f"{part}." for part in parts) if len(paths) > 1 else ""
