"""What a TensorRT-RTX plan computes in integers, against what it was meant to, and against what lint said before.

    python -m benchmarks.trt_coverage [GRAPH ...] [--presets 8w8a 4w8a ..] [--floats float32] [--apart]

GRAPH is a float denoiser, or a folder with unet.float.onnx in it: the embedded model's bundle, a folder of
`benchmarks.shapes`. Each is quantized with each preset and built for SM86, SM89 and SM120 in one plan; no GPU is
needed. Kernels do not depend on ranges, so every edge gets the same. "INT8" is the share of the multiply-accumulates
meant for INT8 that kernels run in it, counted from the build log; "lint" the share of all products whose kernel it
predicted. With --apart a plan for each capability alone is built too, and must have the same kernels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib.graph import activation_edges, read_model
from quaver.exporter.build import BuildSettings, build_target
from quaver.exporter.export import ExportSettings, export
from quaver.runtime.artifact import Stamp, load_json, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.progress import Progress

TARGET = "tensorrt-rtx"
GRAPHS = (Path("engines/demo-w8a8"), Path("build/shapes/audioldm-s-8x128x16"))
PRESETS = ("8w8a", "4w8a", "8w8a-attention", "4w8a-attention")
TOGETHER = ("SM86", "SM89", "SM120")
LEAST = 0.99
RANGE = 4.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per graph and preset, and what of the aims is reached."""
    parser = argparse.ArgumentParser(prog="benchmarks.trt_coverage")
    parser.add_argument("graphs", nargs="*", type=Path, default=GRAPHS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--floats", choices=("float32", "float16"), default="float32")
    parser.add_argument("--apart", action="store_true")
    given = parser.parse_args(argv)
    rows = list(measure(given.graphs, given.presets, given.floats, apart=given.apart))
    publish(
        "trt_coverage",
        rows,
        figures={f"{row['graph']} {row['preset']} {row['for']}": row for row in rows},
        reached={claim: true for row in rows for claim, true in claims(row)},
    )


def measure(graphs: Sequence[Path], presets: Sequence[str], floats: str, *, apart: bool) -> Iterator[dict[str, Any]]:
    """One row per graph, preset and set of capabilities."""
    sets = [TOGETHER, *((name,) for name in TOGETHER if apart)]
    for graph in graphs:
        with tempfile.TemporaryDirectory() as folder:
            bundle = bundle_of(graph, Path(folder))
            for preset in presets:
                started = time.monotonic()
                settings = ExportSettings(preset=preset, targets=(TARGET,), floats=floats)  # type: ignore[arg-type]
                export(bundle, settings, stamp=Stamp("export"), progress=Progress())
                exported = time.monotonic() - started
                kernels = None
                for capabilities in sets:
                    record = built(bundle, capabilities)
                    counted = kinds(record)
                    kernels = kernels or counted
                    yield {
                        "graph": graph.name,
                        "preset": preset,
                        "for": " ".join(capabilities),
                        **figures(record),
                        "onnx MB": bundle.qdq(TARGET).stat().st_size / 1e6,
                        "export s": exported,
                        "same kernels": counted == kernels,
                    }


def bundle_of(graph: Path, folder: Path) -> Bundle:
    """A bundle in `folder` with a float graph and a range for each of its edges."""
    bundle, file = Bundle(folder), graph if graph.is_file() else Bundle(graph).float_unet
    if not file.exists():
        raise SystemExit(f"no {file}: 'make run' makes the embedded model's, 'python -m benchmarks.shapes' the others")
    for name in (file.name, f"{file.name}.data"):
        if (part := file.with_name(name)).exists():
            (folder / name.replace(file.name, bundle.float_unet.name)).symlink_to(part.resolve())
    edges = activation_edges(read_model(file))
    limits = np.full(len(edges), RANGE, np.float32)
    save_tensors(bundle.ranges, {"amin": -limits, "amax": limits}, Stamp("ranges"), meta={"edges": edges})
    return bundle


def built(bundle: Bundle, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """The sidecar of a plan for some capabilities."""
    settings = BuildSettings(compute_capabilities=capabilities)
    build_target(bundle, TARGET, settings, stamp=Stamp("build"), progress=Progress())
    return load_json(bundle.plan_sidecar(TARGET), "build")


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a sidecar."""
    covered, lint = record["coverage"], record["lint"]
    return {
        "meant": covered["meant"],
        "INT8": covered["by_macs"],
        "missed": covered["meant"] - covered["integer"],
        "products": lint["products"],
        "lint": lint["agree"] / max(lint["products"], 1),
        "unpacked": len(record["unpacked"]),
        "islands": len(record["islands"]),
        "plan MB": record["plan"]["bytes"] / 1e6,
        "build s": record["seconds"],
    }


def kinds(record: dict[str, Any]) -> Counter[tuple[str, ...]]:
    """How many kernels of each class and data types there are."""
    return Counter((row["kernel"], *row["inputs"], *row["constants"], *row["outputs"]) for row in record["layers"])


def claims(row: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What one row must show."""
    where = f"{row['graph']} {row['preset']} on {row['for']}"
    yield f"{where}: at least {LEAST:.0%} of the MACs meant for INT8 compile to INT8 kernels", row["INT8"] >= LEAST
    yield f"{where}: lint and build log agree on at least {LEAST:.0%} of the products", row["lint"] >= LEAST
    if " " not in row["for"]:
        yield f"{where}: the kernels of the plan for all", row["same kernels"]


if __name__ == "__main__":
    main()
