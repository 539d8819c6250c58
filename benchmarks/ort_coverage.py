"""What onnxruntime computes in integers, against what was meant to be, and against what lint said before.

    python -m benchmarks.ort_coverage [GRAPH ...] [--presets 8w8a 4w8a ..]

GRAPH is as in `benchmarks.trt_coverage`. Each is quantized with each preset, and onnxruntime is asked to write the
graph that it runs. "integers" is the share of the multiply-accumulates of layers meant for integers that run in
QLinearConv, QGemm, QLinearMatMul, MatMulIntegerToFloat or MatMulNBits; "lint" the share of all products whose kernel it
predicted; "4-bit convs" the share of the coded convolution weights that lie in the file as four bits.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import publish
from benchmarks.trt_coverage import GRAPHS, bundle_of
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.lint import lint
from quaver.exporter.lint.edges import index, node_name
from quaver.exporter.lint.kernels import ORT_TYPES, disagreements
from quaver.exporter.lint.products import Product, products
from quaver.exporter.model.onnxfile import open_graph
from quaver.exporter.plans.log import Compiled
from quaver.runtime.artifact import Stamp, load_json
from quaver.runtime.progress import Progress

TARGET = "ort-cpu"
PRESETS = ("8w8a", "4w8a", "8w8a-attention", "4w8a-attention")
LEAST, LEAST_LINT = 0.95, 0.99
INTEGERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeMatMul")
FUSED = re.compile(r"(_token_\d+|_nchwc|(/\w+Fusion/?)+)$")
CAST = "InsertedPrecisionFreeCast_"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per graph and preset, and what of the aims is reached."""
    parser = argparse.ArgumentParser(prog="benchmarks.ort_coverage")
    parser.add_argument("graphs", nargs="*", type=Path, default=GRAPHS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    given = parser.parse_args(argv)
    rows = list(measure(given.graphs, given.presets))
    publish(
        "ort_coverage",
        rows,
        figures={f"{row['graph']} {row['preset']}": row for row in rows},
        reached={claim: true for row in rows for claim, true in claims(row)},
    )


def measure(graphs: Sequence[Path], presets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row per graph and preset."""
    for graph in graphs:
        with tempfile.TemporaryDirectory() as folder:
            bundle = bundle_of(graph, Path(folder))
            for preset in presets:
                settings = ExportSettings(preset=preset, targets=(TARGET,))
                path = export(bundle, settings, stamp=Stamp("export"), progress=Progress())
                yield {
                    "graph": graph.name,
                    "preset": preset,
                    **figures(path, load_json(bundle.sites(TARGET), "export")),
                }


def figures(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a quantized graph and its site file."""
    report, compiled = lint(path, TARGET), optimized_layers(path)
    kernel = {node: layer.kernel for layer in compiled for node in layer.nodes}
    weights = {site["layer"]: site for site in table["sites"] if site["role"] == "weight"}
    inputs = {site["layer"] for site in table["sites"] if site["role"] == "input"}
    meant = [layer for layer in table["layers"] if layer["name"] in weights and layer["name"] in inputs]
    convs = [layer for layer in meant if layer["op"] == "Conv"]
    narrow = [layer for layer in convs if weights[layer["name"]]["format"] == "int4"]
    wrong = disagreements(report.predicted, compiled)
    return {
        "meant": len(meant),
        "integers": _macs(x for x in meant if kernel.get(x["node"]) in INTEGERS) / max(_macs(meant), 1),
        "products": len(report.rows),
        "lint": 1 - len(wrong) / max(len(report.rows), 1),
        "4-bit convs": len(narrow) / max(len(convs), 1),
        "MB": path.stat().st_size / 1e6,
    }


def claims(row: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What one row must show."""
    where = f"{row['graph']} {row['preset']}"
    yield (
        f"{where}: at least {LEAST:.0%} of the MACs meant for integers run in integer kernels",
        row["integers"] >= LEAST,
    )
    yield f"{where}: lint is right on at least {LEAST_LINT:.0%} of the products", row["lint"] >= LEAST_LINT


def _macs(found: Iterable[dict[str, Any]]) -> int:
    return sum(layer["macs"] or 0 for layer in found)


def optimized_layers(path: Path) -> list[Compiled]:
    """The products of the graph that onnxruntime runs for an ONNX file, each with the node it came from: it is asked to
    write that graph to a file.
    """
    import onnx
    import onnxruntime as ort

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


if __name__ == "__main__":
    main()
