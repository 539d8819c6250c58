"""What the corrections cost beside the engine call that they correct, on onnxruntime.

    python -m benchmarks.overhead [BUNDLE] [--target ort-cpu] [--shape audioldm-s] [--runs 40]

Of a bundle with its own statistics, one guided sample and a batch of 8; and of the AudioLDM-S shape (latent 8 x 128 x
16, `benchmarks.latency_ort` makes its file) with made-up statistics: what a correction costs does not depend on their
values. Both calls take turns in this process. A guided sample is a batch of 2 to the engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.latency_ort import OUT, make
from benchmarks.shapes import RECORDS, shape
from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import CORRECTIONS, make_correct
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.error_law import ErrorStats, Local, load_stats
from quaver.runtime.measure.latency import time_pair
from quaver.runtime.session import open_bundle

MOST = 0.01
LATENT = (8, 128, 16)
K = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Print the share of an engine call that each correction adds."""
    parser = argparse.ArgumentParser(prog="benchmarks.overhead")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--shape", default="audioldm-s")
    parser.add_argument("--runs", type=int, default=40)
    given = parser.parse_args(argv)
    bundle = Bundle(given.bundle)
    rows = []
    with open_bundle(bundle, engine_file=given.target) as session:
        stats = load_stats(bundle.error_stats(given.target))
        for batch in (1, 8):
            latent = np.random.default_rng(0).standard_normal((batch, *session.latent_shape), np.float32)
            cond = session.family.embed(session.parts, [""] * 2 * batch)
            feeds = session.family.feeds(np.concatenate([latent, latent]), np.full(2 * batch, 501, np.int64), cond)
            rows += measure(f"{bundle.root.name}, batch {batch}", session.engine, feeds, latent, stats, given.runs)
    folder = shape(given.shape, latent=LATENT)
    feeds, _ = load_tensors(folder / RECORDS, "records")
    with open_engine(make(folder, OUT / folder.name)["8w8a"]) as engine:
        latent = np.asarray(feeds["sample"][:1])
        rows += measure(given.shape, engine, feeds, latent, made_up(latent.shape[1]), max(given.runs // 4, 5))
    publish(
        "overhead",
        rows,
        figures={f"{row['engine']}, {row['correction']}": row for row in rows},
        reached={
            f"{row['engine']}: {row['correction']} adds at most {MOST:.0%}": bool(row["share"].value <= MOST)
            for row in rows
        },
    )


def measure(
    name: str, engine: Engine, feeds: Mapping[str, np.ndarray], latent: np.ndarray, stats: ErrorStats, runs: int
) -> list[dict[str, Any]]:
    """One row per correction: seconds of both calls, and the share with its interval."""
    rng, t, rows = np.random.default_rng(1), float(stats.timesteps[-2]), []
    for correction in CORRECTIONS:
        if correction == "none":
            continue
        correct = make_correct(correction, stats, lambda index, size: rng.standard_normal(size, np.float32))
        takes = partial(correct, latent, t, latent)
        added, call, share = time_pair(takes, partial(engine, feeds), rng=rng, runs=runs)
        row = {"engine": name, "correction": correction, "call ms": call.median_s * 1e3}
        rows.append({**row, "added ms": added.median_s * 1e3, "share": share})
    return rows


def made_up(C: int) -> ErrorStats:
    """Statistics of C channels at two timesteps."""
    draw = np.random.default_rng(2)
    law = Local(0.01 * draw.standard_normal((2, C, 2 * C, K, K), np.float32), np.zeros((2, C)), np.ones((2, C)))
    cov = np.broadcast_to([[1.0, 0.1], [0.1, 0.04]], (2, C, 2, 2))
    return ErrorStats(np.array([501, 1]), np.zeros((2, C, 2)), cov, np.full(2, 9.0), local=law, path=law)


if __name__ == "__main__":
    main()
