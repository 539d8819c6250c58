"""INT8 W8A8 against FP32 on onnxruntime, the same bundle, one U-Net call.

    python -m benchmarks.int8 [BUNDLE] [--target ort-cpu] [--batches 2 16] [--runs 40]

Both engines are timed in this process in turns, so a machine that slows down slows both. The output error is the norm
of the difference over the norm of the float output, on states of float trajectories of prompts that no stage has seen.
A guided sample is a batch of 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import publish
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.compare import compare_calls
from quaver.runtime.measure.quality import Interval
from quaver.runtime.measure.trajectories import held_out, take
from quaver.runtime.sample import visited
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

SEED = 4_000_000


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures of one bundle."""
    parser = argparse.ArgumentParser(prog="benchmarks.int8")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--trajectories", type=int, default=16)
    given = parser.parse_args(argv)
    rows = measure(Bundle(given.bundle), given.target, given.batches, runs=given.runs, trajectories=given.trajectories)
    publish(
        "int8",
        rows,
        figures={f"batch {row['batch']}": {k: v for k, v in row.items() if k != "batch"} for row in rows},
        reached={f"INT8 is faster than FP32 at batch {row['batch']}": row["speed-up"].low > 1 for row in rows},
    )


def measure(
    bundle: Bundle, target: str, batches: Sequence[int], *, runs: int, trajectories: int
) -> list[dict[str, Any]]:
    """One row per batch size: times in ms, speed-up and output error with intervals, bytes."""
    pairs = held_out(bundle, count=trajectories, seed=SEED)
    with open_bundle(bundle, engine_file=FLOAT) as reference, open_bundle(bundle, engine_file=target) as judged:
        sampling = sampling_of(reference)
        states, at = take(reference, pairs, sampling).states, visited(sampling, reference.schedule)
        return [
            row(batch, target, compare_calls(reference, judged, pairs, states, at, runs=runs, warmup=3, batch=batch))
            for batch in batches
        ]


def row(batch: int, target: str, call: dict[str, Any]) -> dict[str, Any]:
    """What is printed of one comparison."""
    reference, judged = call["engines"]["float"], call["engines"][target]
    return {
        "batch": batch,
        "FP32 ms": 1e3 * reference["median_s"],
        "INT8 ms": 1e3 * judged["median_s"],
        "speed-up": Interval(**call["speedup"]),
        "output error": Interval(**call["error"]),
        "FP32 MB": reference["bytes"] / 1e6,
        "INT8 MB": judged["bytes"] / 1e6,
    }


if __name__ == "__main__":
    main()
