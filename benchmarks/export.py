"""What it costs to quantize a U-Net: ranges and export, beside onnxruntime's own `quantize_static`.

    python -m benchmarks.export [--shape audioldm-s] [--latent 8 128 16] [--runs 1] [--alone]

The float graph (random weights) and two calibration samples are those of `benchmarks.shapes`. "quaver" is the stages
ranges and export with their default settings, W8A8 for ort-cpu; "quantize_static" is onnxruntime's with its defaults
(QDQ, min-max, every operator), on the same samples. Each runs in a process of its own, never both at once, in turns;
seconds are of the work without the start of Python, memory is the peak of the process's resident set (VmHWM), mapped
files included. Processor seconds are there for machines that do other things too.

quantize_static is not run on shapes above `REFERENCE` parameters (or with --alone): on the 866 M of TANGO it was killed
at 24 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.shapes import ARCHS, GRAPH, RECORDS, shape
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.calib.records import Records, save_records
from quaver.exporter.export import ExportSettings, export
from quaver.runtime.artifact import Stamp, load_tensors, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.families.audioldm import FAMILY as AUDIOLDM
from quaver.runtime.measure.latency import peak_rss_bytes
from quaver.runtime.progress import quiet

OUT = Path("build/export")
TARGET = "ort-cpu"
HALF, SECONDS, BYTES = 0.5, 180, 9 * 10**9  # what it must reach: of quantize_static; on TANGO
REFERENCE = 400_000_000
GIGA = 10**9
Found = dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds and memory of both, and their ratios."""
    parser = argparse.ArgumentParser(prog="benchmarks.export")
    parser.add_argument("--shape", default="audioldm-s", choices=sorted(path.stem for path in ARCHS.glob("*.json")))
    parser.add_argument("--latent", nargs=3, type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without quantize_static")
    parser.add_argument("--measure", choices=sorted(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    parameters = json.loads((ARCHS / f"{given.shape}.json").read_text(encoding="utf-8"))["parameters"]
    latent = given.latent or ([8, 128, 16] if given.shape == "audioldm-s" else None)
    folder = shape(given.shape, latent=latent)
    if given.measure:
        print(json.dumps(measure(WAYS[given.measure], folder)))
        return
    ways = ["quaver"] if given.alone or parameters > REFERENCE else list(WAYS)
    command = [sys.executable, "-m", "benchmarks.export", "--shape", given.shape]
    command += ["--latent", *map(str, latent)] if latent else []
    rows = [run(way, command) for _ in range(given.runs) for way in ways]
    report(given.shape, rows)


def run(way: str, command: Sequence[str]) -> dict[str, Any]:
    """One measurement in a process of its own; one that is killed costs infinitely much."""
    done = subprocess.run([*command, "--measure", way], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return {"way": way, "s": np.inf, "processor s": np.inf, "peak GB": np.inf, "file MB": np.nan}
    return {"way": way, **json.loads(done.stdout.splitlines()[-1])}


def report(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and what of the aims is reached."""
    by_way = {way: [row for row in rows if row["way"] == way] for way in dict.fromkeys(row["way"] for row in rows)}
    median = {
        way: {key: float(np.median([row[key] for row in found])) for key in found[0] if key != "way"}
        for way, found in by_way.items()
    }
    ours, theirs, reached = median["quaver"], median.get("quantize_static"), {}
    figures: dict[str, Any] = {"shape": name, **median}
    if theirs:
        figures["ratio"] = {key: ours[key] / theirs[key] for key in ours.keys() & theirs.keys()}
        reached = {
            "at most half of quantize_static's time": figures["ratio"]["s"] <= HALF,
            "at most half of quantize_static's memory": figures["ratio"]["peak GB"] <= HALF,
        }
    elif name == "tango":
        reached = {
            f"at most {SECONDS} s after tracing": ours["s"] <= SECONDS,
            f"at most {BYTES / GIGA:.0f} GB": ours["peak GB"] <= BYTES / GIGA,
        }
    publish("export", [{"way": way, **figure} for way, figure in median.items()], figures=figures, reached=reached)


def measure(work: Callable[[Path, Path], Found], folder: Path) -> Found:
    """Seconds and peak memory of `work` in this process, and the size of the file it writes."""
    out = OUT / folder.name / work.__name__
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    wall, processor = time.perf_counter(), time.process_time()
    parts = work(folder, out)
    spent = {"s": time.perf_counter() - wall, "processor s": time.process_time() - processor}
    files = [path for path in out.iterdir() if path.name.startswith(f"unet.{TARGET}.onnx")]
    return spent | parts | {"peak GB": peak_rss_bytes() / GIGA, "file MB": sum(f.stat().st_size for f in files) / 1e6}


def quaver(folder: Path, out: Path) -> Found:
    """The stages ranges and export."""
    bundle = bundle_of(folder, out)
    start = time.perf_counter()
    collect_ranges(bundle, RangeSettings(), stamp=Stamp("ranges"), progress=quiet())
    middle = time.perf_counter()
    export(bundle, ExportSettings(targets=(TARGET,)), stamp=Stamp("export"), progress=quiet())
    return {"ranges s": middle - start, "export s": time.perf_counter() - middle}


def quantize_static(folder: Path, out: Path) -> Found:
    """What onnxruntime brings."""
    from onnxruntime import quantization

    samples = iter(rows_of(folder))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(samples, None)

    quantization.quantize_static(folder / GRAPH, out / f"unet.{TARGET}.onnx", Reader())
    return {}


# a denoiser whose conditioning is called in the records what its graph calls it
FAMILY = replace(AUDIOLDM, name="shape", feeds=lambda x, t, rows: {"sample": x, "timestep": t, **rows})
WAYS: dict[str, Callable[[Path, Path], Found]] = {"quaver": quaver, "quantize_static": quantize_static}


def rows_of(folder: Path) -> list[dict[str, np.ndarray]]:
    """The samples of a shape, one a call."""
    tensors, _ = load_tensors(folder / RECORDS, "records")
    return [{name: value[k : k + 1] for name, value in tensors.items()} for k in range(len(tensors["timestep"]))]


def bundle_of(folder: Path, out: Path) -> Bundle:
    """A bundle with the float graph of a shape and its samples as calibration records without guidance."""
    bundle = Bundle(out)
    for path in folder.glob(f"{GRAPH}*"):
        os.link(path, out / path.name)
    rows, _ = load_tensors(folder / RECORDS, "records")
    x, t = rows.pop("sample"), rows.pop("timestep")
    none = np.zeros(len(t), np.int64)
    uncond = {name: value[:1] for name, value in rows.items()}
    save_records(bundle.samples, Records(x, t, rows, uncond, none, none - 1, none, 1.0, ("",), ()), Stamp("samples"))
    card = {
        "family": "benchmarks.export:FAMILY",
        "latent_shape": list(x.shape[1:]),
        "sample_rate": 16_000,
        "components": {},
    }
    save_json(bundle.card, card, Stamp("trace"))
    return bundle


if __name__ == "__main__":
    main()
