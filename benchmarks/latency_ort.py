"""What integers gain on onnxruntime's CPU kernels: the AudioLDM-S shape, batch 2, latent 8 x 128 x 16.

    python -m benchmarks.latency_ort [--shape audioldm-s] [--runs 9]

Files of one U-Net with random weights (`benchmarks.shapes`), all calibrated on the same two records:

    float            as traced
    quantize_static  onnxruntime's own, no option set but where the files go
    8w8a, ...        ours by preset: attention's projections float, or quantized too

Each is timed against the float file and against quantize_static's, in turns in this process, threads as onnxruntime
chooses them. Error is that of the output on the records, relative, in the same kernels. Files lie below
build/latency_ort and are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export import TARGET, bundle_of, quantize_static
from benchmarks.figures import publish
from benchmarks.shapes import GRAPH, RECORDS, shape
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.exporter.export import ExportSettings, export
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.measure.latency import time_pair
from quaver.runtime.measure.quality import relative_error
from quaver.runtime.progress import quiet

OUT = Path("build/latency_ort")
PRESETS = ("8w8a", "8w8a-attention")
WANTED = {"float": 1.6, "quantize_static": 1.15}
MOST_ERROR = 0.06


def main(argv: Sequence[str] | None = None) -> None:
    """Print speed-ups and errors."""
    parser = argparse.ArgumentParser(prog="benchmarks.latency_ort")
    parser.add_argument("--shape", default="audioldm-s")
    parser.add_argument("--latent", nargs=3, type=int, default=[8, 128, 16])
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args(argv)
    folder = shape(given.shape, latent=given.latent)
    feeds, _ = load_tensors(folder / RECORDS, "records")
    files = make(folder, OUT / folder.name)
    with open_engine(files["float"]) as plain:
        expected = np.asarray(plain(feeds))
        rows = [
            {"file": name, "MB": size(path), **against(plain, path, "float", feeds, given.runs, expected)}
            for name, path in files.items()
            if name != "float"
        ]
    with open_engine(files["quantize_static"]) as theirs:
        for row in rows[1:]:
            row |= against(theirs, files[row["file"]], "quantize_static", feeds, given.runs)
    best = max(rows[1:], key=lambda row: row["over float"].value)
    publish(
        "latency_ort",
        [{"file": "float", "MB": size(files["float"])}, *rows][::-1],
        figures={row["file"]: {key: value for key, value in row.items() if key != "file"} for row in rows},
        reached={
            **{f"{k} times as fast as {other}": best[f"over {other}"].value >= k for other, k in WANTED.items()},
            f"output error of at most {MOST_ERROR}": best["error"] <= MOST_ERROR,
        },
    )


def against(
    reference: Engine,
    path: Path,
    name: str,
    feeds: Mapping[str, np.ndarray],
    runs: int,
    expected: np.ndarray | None = None,
) -> dict[str, Any]:
    """Seconds of a call, how many times as fast as `reference` it is, and its error where something is expected."""
    with open_engine(path) as engine:
        answer = np.asarray(engine(feeds))
        rng = np.random.default_rng(0)
        _, timing, speedup = time_pair(lambda: reference(feeds), lambda: engine(feeds), rng=rng, runs=runs)
    error = {} if expected is None else {"error": float(relative_error(answer[None], expected[None])[0])}
    return {"s": timing.median_s, f"over {name}": speedup, **error}


def make(folder: Path, out: Path) -> dict[str, Path]:
    """The files by name; those that are there are not made again."""
    files = {"float": folder / GRAPH}
    for name in ("quantize_static", *PRESETS):
        place = out / name
        files[name] = place / f"unet.{TARGET}.onnx"
        if files[name].exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        if name == "quantize_static":
            quantize_static(folder, place)
            continue
        bundle = bundle_of(folder, place)
        collect_ranges(bundle, RangeSettings(), stamp=Stamp("ranges"), progress=quiet())
        export(bundle, ExportSettings(preset=name, targets=(TARGET,)), stamp=Stamp("export"), progress=quiet())
    return files


def size(path: Path) -> float:
    """Megabytes of a file and what lies beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*")) / 1e6


if __name__ == "__main__":
    main()
