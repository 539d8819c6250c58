"""What onnxruntime really makes of a graph, to hold predictions against: it writes the graph it runs to a file."""

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from quaver.exporter.lint.edges import index, node_name
from quaver.exporter.lint.kernels import ORT_TYPES
from quaver.exporter.lint.products import Product, products
from quaver.exporter.model.onnxfile import open_graph
from quaver.exporter.plans.log import Compiled

FUSED = re.compile(r"(_token_\d+|_nchwc|(/\w+Fusion/?)+)$")
CAST = "InsertedPrecisionFreeCast_"


def optimized_layers(path: Path) -> list[Compiled]:
    """The products of the graph that onnxruntime runs for an ONNX file, each with the node it came from."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(made)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        model = onnx.load(path, load_external_data=False)
        named = all(node.name for node in model.graph.node)
        for node in model.graph.node:
            node.name = node_name(node)
        source = str(path) if named else model.SerializeToString()
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(made, load_external_data=False).graph
    origin = origins(products(index(open_graph(path), path.parent)))
    kinds = [node for node in graph.node if node.op_type in ORT_TYPES]
    return [Compiled(n.name, n.op_type, (), (), (), came_from(origin, n.name, n.output)) for n in kinds]


def origins(found: Sequence[Product]) -> dict[str, str]:
    """What an optimized node may be called after -> the node: its own name, the edge it writes, those behind that."""
    called: dict[str, str] = {}
    for depth in range(6):
        for product in found:
            for name in (product.node, *product.edges)[depth : depth + 1]:
                called.setdefault(name, product.node)
    return called


def came_from(origin: dict[str, str], name: str, outputs: Iterable[str]) -> tuple[str, ...]:
    """The node that an optimized one of this name, writing these edges, was made of; none when it is not told."""
    for called in (name, *outputs):
        while called:
            if (plain := called.removeprefix(CAST)) in origin:
                return (origin[plain],)
            called, before = FUSED.sub("", plain), called
            if called == before:
                break
    return ()
