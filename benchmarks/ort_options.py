"""What onnxruntime's options are worth: each against the backend's own session, on the float and the W8A8 graph.

    python -m benchmarks.ort_options BUNDLE [--batch 2 16] [--variants NAME ..] [--runs 15] [--threads N]

A variant is the backend's session with one thing changed:

    again             nothing changed: what the measurement itself is worth
    arena off         every tensor is allocated and freed by itself
    pattern on        the memory of a whole call is planned ahead, onnxruntime's default
    extended          no change of layout: convolutions on NCHW, not on blocks of channels
    prepacking off    weights are not copied into the order that kernels read them in
    cleanup           pairs of Q and DQ that are left between two floats are removed
    blocks            products are handed out in smaller pieces as a thread's share runs out
    sleep             threads sleep while they wait
    bound             inputs that stay and the output are bound once: no lookup, no new output array

Gain is seconds of the backend's own session over the variant's, in turns in this process, a median over pairs with its
bootstrap interval: above 1 the variant is faster. Peak memory is that of a process that opens the graph and calls it
five times, less what the same process held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.figures import publish
from quaver.calib.records import branches, load_records
from quaver.runtime.backends.onnxruntime import session_options
from quaver.runtime.bundle import Bundle
from quaver.runtime.family import family_of
from quaver.runtime.measure.latency import peak_rss_bytes, time_pair

Feeds = Mapping[str, np.ndarray]
BOUND = "bound"
OURS = "as the backend has it"
VARIANTS: Mapping[str, Callable[[Any], object]] = {
    OURS: lambda options: None,
    "again": lambda options: None,
    "arena off": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    "pattern on": lambda options: setattr(options, "enable_mem_pattern", True),
    "extended": lambda options: setattr(
        options, "graph_optimization_level", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ),
    "prepacking off": lambda options: options.add_session_config_entry("session.disable_prepacking", "1"),
    "cleanup": lambda options: options.add_session_config_entry("session.enable_quant_qdq_cleanup", "1"),
    "blocks": lambda options: options.add_session_config_entry("session.dynamic_block_base", "4"),
    "sleep": lambda options: options.add_session_config_entry("session.intra_op.allow_spinning", "0"),
    BOUND: lambda options: None,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the gain and the memory of every variant."""
    parser = argparse.ArgumentParser(prog="benchmarks.ort_options")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS)[1:], default=list(VARIANTS)[1:])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    bundle = Bundle(given.bundle)
    if given.peak:
        variant, graph, batch = given.peak
        print(json.dumps(peak(variant, Path(graph), feeds_of(bundle, int(batch)), given.threads)))
        return
    rows = [row for path in (bundle.float_unet, bundle.qdq("ort-cpu")) for row in measure(path, bundle, given)]
    gains = [row["gain"] for row in rows if row["variant"] != OURS]
    publish(
        "ort_options",
        rows,
        figures={f"{row['graph']} {row['batch']} {row['variant']}": row for row in rows},
        reached={"no option gains 2% anywhere": all(gain.low < 1.02 for gain in gains)},
    )


def measure(path: Path, bundle: Bundle, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per batch and variant of one graph."""
    for batch in given.batch:
        feeds = feeds_of(bundle, batch)
        ours = caller(OURS, path, feeds, given.threads)
        for variant in (OURS, *given.variants):
            row: dict[str, Any] = {"graph": path.stem, "batch": batch, "variant": variant, "ms": "", "gain": ""}
            if variant != OURS:
                call = caller(variant, path, feeds, given.threads)
                rng = np.random.default_rng(0)
                _, timing, row["gain"] = time_pair(ours, call, rng=rng, runs=given.runs)
                row["ms"] = 1e3 * timing.median_s
            found = subprocess.run(
                [sys.executable, "-m", "benchmarks.ort_options", str(bundle.root)]
                + ["--peak", variant, str(path), str(batch)]
                + (["--threads", str(given.threads)] if given.threads else []),
                capture_output=True,
                check=True,
                text=True,
            )
            yield {**row, "peak MB": json.loads(found.stdout) / 1e6}


def caller(variant: str, path: Path, feeds: Feeds, threads: int | None) -> Callable[[], object]:
    """A function that runs a graph once, in a session of its own."""
    options = session_options(threads)
    VARIANTS[variant](options)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if variant != BOUND:
        return lambda: session.run(None, dict(feeds))
    binding = session.io_binding()
    output = session.get_outputs()[0].name
    held = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    first = session.run(None, dict(feeds))[0]
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(np.empty_like(first)))
    return lambda: session.run_with_iobinding(binding)


def peak(variant: str, path: Path, feeds: Feeds, threads: int | None) -> int:
    """Bytes that opening a graph and calling it added to this process at most."""
    before = peak_rss_bytes()
    call = caller(variant, path, feeds, threads)
    for _ in range(5):
        call()
    return peak_rss_bytes() - before


def feeds_of(bundle: Bundle, batch: int) -> dict[str, np.ndarray]:
    """The graph's inputs for calibration records of a bundle, both guidance branches together `batch` rows."""
    records = load_records(bundle.samples)
    branch = 1 if records.guidance == 1.0 else 2
    return branches(records, np.arange(batch // branch), family_of(bundle).feeds)


if __name__ == "__main__":
    main()
