"""Keep each node's module path, drop everything else the exporter wrote about it.

torch's exporter notes the nesting of modules (`name_scopes`, innermost call last) and, beside it, stack traces with the
paths of this machine's files. The path of the module that made the node stays, as `quaver.module`; the rest goes.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from quaver.calib.graph import MODULE_KEY

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
# the attribute under which `tracing` wraps the network; it is no part of the model's own paths
WRAPPER = "net"


def run(model: onnx.ModelProto) -> bool:
    """Reduce the metadata of a model, its graph, values and nodes to MODULE_KEY; True if anything was dropped."""
    dropped = False
    for holder in (
        model.graph,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        dropped |= bool(holder.metadata_props or holder.doc_string)
        _clear(holder)
    for function in model.functions:
        _clear(function)
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "")
        if any(p.key != MODULE_KEY for p in node.metadata_props) or node.doc_string:
            dropped = True
            module = _module(scopes) if scopes else _kept(node)
            _clear(node)
            if module:
                node.metadata_props.add(key=MODULE_KEY, value=module)
    return dropped


def _module(scopes: str) -> str:
    """['', 'net', 'net.conv_in', 'conv2d'] -> 'conv_in': the operation stands last, its module before it."""
    parts = ast.literal_eval(scopes)
    path = parts[-2] if len(parts) > 1 else ""
    return "" if path == WRAPPER else path.removeprefix(WRAPPER + ".")


def _kept(node: onnx.NodeProto) -> str:
    return next((p.value for p in node.metadata_props if p.key == MODULE_KEY), "")


def _clear(holder: onnx.NodeProto) -> None:
    del holder.metadata_props[:]
    holder.doc_string = ""
