"""The U-Nets of both papers' models in their full sizes, with random weights: what each step of the chain takes.

    python -m benchmarks.full_size [NAME ...] [--cells trace ranges export-8w8a ..]

A cell is one step on one shape (benchmarks/archs), in a process of its own so that its peak of resident memory is its
own too (VmHWM, or that of the builder's process; mapped files included). Seconds are without the start of Python.

    trace       the network made in torch (weights of seed 0), traced, held against torch in onnxruntime, written
    ranges      the stage, default settings, of two records of noise: no real calibration, and enough for every kernel
    float       the float graph loaded in onnxruntime, and one call of two rows, as guidance makes it
    export-P    the stage, preset P for ort-cpu
    call-P      that graph loaded, one call of two rows, and how far it is from the float graph's
    kernels-P   lint, and the graph that onnxruntime writes of it: share of the multiply-accumulates in integer kernels
    rtx-P       export for tensorrt-rtx, what stays float in 16 bits, and a plan for SM86, SM89 and SM120

Results lie in build/families under what they depend on (shape, step, libraries): killed, it goes on, and makes the
graphs anew that a missing cell needs. A cell that is killed for lack of memory is left out, and said so. Graphs are
removed once all cells of a shape are there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export import bundle_of
from benchmarks.figures import machine, publish
from benchmarks.ort_coverage import figures as ort_figures
from benchmarks.shapes import ARCHS, GRAPH, RECORDS, shape, trace
from benchmarks.trt_coverage import TOGETHER, built
from benchmarks.trt_coverage import figures as rtx_figures
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.lint import lint
from quaver.exporter.model.tracing import check
from quaver.exporter.modelfile import save_model
from quaver.runtime.artifact import Stamp, digest_json, load_json, load_tensors, read_stamp, save_json, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.measure.latency import peak_rss_bytes, seconds
from quaver.runtime.measure.quality import relative_error
from quaver.runtime.progress import Progress

OUT = Path("build/families")
PRESETS = ("8w8a", "4w8a")
CPU, RTX = "ort-cpu", "tensorrt-rtx"
BASE, HEARD = "base", "heard.safetensors"
LIBRARIES = ("torch", "onnx", "onnxruntime", "tensorrt-rtx-cu13")
Found = dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per shape and cell."""
    parser = argparse.ArgumentParser(prog="benchmarks.full_size")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(by_size()))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # what the processes of their own are asked
    given = parser.parse_args(argv)
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    rows = list(measured(given.names or by_size(), given.cells))
    publish("full_size", rows, figures={f"{row['shape']} {row['cell']}": row for row in rows}, reached={})


def by_size() -> list[str]:
    """The names of all shapes, the one of fewest parameters first."""
    return sorted((path.stem for path in ARCHS.glob("*.json")), key=lambda name: arch_of(name)["parameters"])


def arch_of(name: str) -> dict[str, Any]:
    """What benchmarks/archs says of a shape."""
    found: dict[str, Any] = json.loads((ARCHS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def measured(names: Sequence[str], cells: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row per shape and cell: those that are kept, and the others once they are measured."""
    with Progress().bar(len(names) * len(cells), "full size") as bar:
        for name in names:
            for cell in cells:
                yield {"shape": name, "cell": cell, **(kept(name, cell) or made(name, cell))}
                bar.step()
            if all(kept(name, cell) for cell in CELLS):
                shutil.rmtree(folder_of(name), ignore_errors=True)


def made(name: str, cell: str) -> Found:
    """A cell measured, behind those whose files it needs and whose graphs are gone."""
    for before, left in needs(cell).items():
        if not (folder_of(name) / left).exists():
            run(name, before)
    return run(name, cell)


def needs(cell: str) -> dict[str, str]:
    """The cells before one that it reads from, and a file of each that says it is there."""
    step, _, preset = cell.partition("-")
    if step == "trace":
        return {}
    float_graph = {"trace": RECORDS}
    if not preset:
        return float_graph
    ranged = {**float_graph, "ranges": f"{BASE}/{Bundle(Path()).ranges.name}"}
    heard = {**ranged, "float": HEARD, f"export-{preset}": f"{preset}/{Bundle(Path()).qdq(CPU).name}"}
    return heard if step in ("call", "kernels") else ranged


def kept(name: str, cell: str) -> Found | None:
    """What was measured of a cell, None when it was not, or of something else."""
    path = part(name, cell)
    return load_json(path, "full_size")["found"] if read_stamp(path) == stamp(name, cell) else None


def part(name: str, cell: str) -> Path:
    """Where the result of a cell lies."""
    return OUT / f"{name}.{cell}.json"


def stamp(name: str, cell: str) -> Stamp:
    """What a result depends on."""
    there = machine()
    return Stamp("full_size", settings=digest_json([arch_of(name), cell, [there[key] for key in LIBRARIES]]))


def run(name: str, cell: str) -> Found:
    """One measurement in a process of its own; nothing of one that is killed."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--measure", name, cell]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        print(f"{name}: {cell} ended with {done.returncode}", file=sys.stderr)
        return {}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    save_json(part(name, cell), {"found": found}, stamp(name, cell))
    return found


def measure(name: str, cell: str) -> Found:
    """Seconds, processor seconds and peak bytes of a cell in this process, and what it says of its files."""
    wall, processor = time.perf_counter(), time.process_time()
    said = CELLS[cell](name)
    spent = {"s": time.perf_counter() - wall, "processor s": time.process_time() - processor}
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["processor s"] += child.ru_utime + child.ru_stime
    return {**spent, "peak": max(peak_rss_bytes(), child.ru_maxrss * 1024), **said}


def folder_of(name: str) -> Path:
    """Where the graphs of a shape lie while it is measured."""
    return OUT / f"{name}-{'x'.join(map(str, arch_of(name)['latent']))}"


def weigh(path: Path) -> int:
    """Bytes of a graph and its weights."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.suffix != ".plan")


def traced(name: str) -> Found:
    """The float graph and its records."""
    arch, folder = arch_of(name), folder_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    found = check(trace(arch, arch["latent"]), "unet")
    save_model(found.model, folder / GRAPH, Stamp("trace"), memory=found.memory)
    shape(name, out=OUT)
    return {"bytes": weigh(folder / GRAPH)}


def ranged(name: str) -> Found:
    """The stage ranges."""
    folder = folder_of(name)
    shutil.rmtree(folder / BASE, ignore_errors=True)
    (folder / BASE).mkdir()
    bundle = bundle_of(folder, folder / BASE)
    return {"bytes": collect_ranges(bundle, RangeSettings(), stamp=Stamp("ranges"), progress=Progress()).stat().st_size}


def branch(name: str, preset: str) -> Bundle:
    """A bundle of a preset beside that of the ranges, whose files it shares."""
    bundle = Bundle(folder_of(name) / preset)
    bundle.root.mkdir(exist_ok=True)
    for path in (folder_of(name) / BASE).iterdir():
        if path.is_file() and not (bundle.root / path.name).exists():
            os.link(path, bundle.root / path.name)
    return bundle


def call(name: str, path: Path) -> tuple[Found, np.ndarray]:
    """Seconds that a graph takes to load and to answer, and the answer [2, C, H, W]."""
    feeds, _ = load_tensors(folder_of(name) / RECORDS, "records")
    started = time.perf_counter()
    with open_engine(path) as engine:
        loaded = time.perf_counter() - started
        answers: list[np.ndarray] = []
        took = seconds(lambda: answers.append(np.asarray(engine({key: feeds[key] for key in engine.inputs}))))
    return {"load s": loaded, "call s": took, "bytes": weigh(path)}, answers[0]


def floats(name: str) -> Found:
    """The float graph in onnxruntime."""
    found, answer = call(name, folder_of(name) / GRAPH)
    save_tensors(folder_of(name) / HEARD, {"answer": answer}, Stamp("heard"))
    return found


def exported(name: str, preset: str) -> Found:
    """The stage export, for onnxruntime."""
    settings = ExportSettings(preset=preset, targets=(CPU,))
    return {"bytes": weigh(export(branch(name, preset), settings, stamp=Stamp("export"), progress=Progress()))}


def called(name: str, preset: str) -> Found:
    """The quantized graph in onnxruntime, and its error."""
    found, answer = call(name, branch(name, preset).qdq(CPU))
    expected = load_tensors(folder_of(name) / HEARD, "heard")[0]["answer"]
    return found | {"error": float(relative_error(answer, expected).mean())}


def kernels(name: str, preset: str) -> Found:
    """Which share of the work is done in integers."""
    bundle = branch(name, preset)
    path, table = bundle.qdq(CPU), load_json(bundle.sites(CPU), "export")
    return ort_figures(path, table) | {"INT8": lint(path, CPU).shares["INT8"]}


def planned(name: str, preset: str) -> Found:
    """Export and build for TensorRT-RTX."""
    bundle = branch(name, preset)
    started = time.perf_counter()
    settings = ExportSettings(preset=preset, targets=(RTX,), floats="float16")
    path = export(bundle, settings, stamp=Stamp("export"), progress=Progress())
    spent = time.perf_counter() - started
    found = rtx_figures(record := built(bundle, TOGETHER))
    shares = {"meant, INT8": found["INT8"], "INT8": lint(path, RTX, capabilities=TOGETHER).shares["INT8"]}
    builder = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    bundle.plan(RTX).unlink()
    sizes = {"bytes": weigh(path), "plan bytes": record["plan"]["bytes"], "builder": builder}
    return found | shares | sizes | {"export s": spent}


def cells(presets: Sequence[str]) -> dict[str, Callable[[str], Found]]:
    """What is measured, by name, in the order in which one needs the files of another."""
    steps = {"export": exported, "call": called, "kernels": kernels, "rtx": planned}
    made = {
        f"{step}-{preset}": partial(function, preset=preset) for preset in presets for step, function in steps.items()
    }
    return {"trace": traced, "ranges": ranged, "float": floats, **made}


CELLS = cells(PRESETS)

if __name__ == "__main__":
    main()
