"""Weights of 4 bits on onnxruntime's CPU kernels: rounded to nearest, and learned by AdaRound, BRECQ and QDrop.

    python -m benchmarks.rounding [RECIPE] [--out engines/rounding] [--set reconstruct.iterations=300 ...]

Every way of rounding gets a bundle below --out, made from the recipe's own float graph, records and ranges; one that is
there and current is not made again, and one that was killed goes on at its block. First and last layers have 8 bits
(preset d2-4w8a), activations 8. "widest" rounds to nearest on scales that clip no weight, which is what export does by
itself; the others share scales of least weight error.

SNR is of the U-Net's output against the float U-Net's on the same x_t, at every step of float trajectories of prompts
and seeds that no stage has seen; "latents" is that of the finished latents, each engine on its own trajectory. Gains
are over the better of the two that round to nearest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.variants import branch
from quaver.exporter.stages import run_recipe
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.compare import call_feeds
from quaver.runtime.measure.quality import mean_interval, snr_db
from quaver.runtime.measure.trajectories import Pairs, held_out, take
from quaver.runtime.sample import visited
from quaver.runtime.session import FLOAT, Session, open_bundle, sampling_of

SEED = 6_000_000
SHARED = ("prompts", "trace", "capture", "ranges")
WANTED_DB = 2.0
TARGET = "ort-cpu"
WAYS = {"widest": "none", "nearest": "nearest", "AdaRound": "adaround", "BRECQ": "brecq", "QDrop": "qdrop"}
NEAREST, LEARNED = ("widest", "nearest"), ("AdaRound", "BRECQ", "QDrop")
# few iterations at a high rate: minutes on two cores where the papers take hours on a GPU
SETTINGS = (
    'export.preset="d2-4w8a"',
    f'export.targets=["{TARGET}"]',
    "reconstruct.iterations=300",
    "reconstruct.batch=8",
    "reconstruct.records=64",
    "reconstruct.rate=0.03",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the SNR of every way of rounding."""
    parser = argparse.ArgumentParser(prog="benchmarks.rounding")
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("engines/demo-w8a8.toml"))
    parser.add_argument("--out", type=Path, default=Path("engines/rounding"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="section.key=value")
    parser.add_argument("--trajectories", type=int, default=16)
    given = parser.parse_args(argv)
    run_recipe(given.recipe, until="ranges", overrides=given.overrides)
    seconds = {}
    for way, method in WAYS.items():
        started = time.monotonic()
        branch(given.recipe, given.out / method, SHARED)
        overrides = [*SETTINGS, *given.overrides, f'reconstruct.method="{method}"']
        run_recipe(given.recipe, until="export", overrides=overrides, out=given.out / method)
        seconds[way] = time.monotonic() - started
    pairs = held_out(Bundle(given.recipe.with_suffix("")), count=given.trajectories, seed=SEED)
    found = judge({way: Bundle(given.out / method) for way, method in WAYS.items()}, pairs)
    base = max(NEAREST, key=lambda way: found[way]["output"].mean())
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "rounding": way,
            "output SNR dB": mean_interval(snr["output"], rng=rng),
            "gain dB": mean_interval(snr["output"] - found[base]["output"], rng=rng),
            "latents SNR dB": mean_interval(snr["latents"], rng=rng),
            "s": seconds[way],
        }
        for way, snr in found.items()
    ]
    gain = max(row["gain dB"].value for row in rows if row["rounding"] in LEARNED)
    publish(
        "rounding",
        rows,
        figures={row["rounding"]: {k: v for k, v in row.items() if k != "rounding"} for row in rows},
        reached={f"the best learned rounding gains at least {WANTED_DB:g} dB of output SNR": gain >= WANTED_DB},
    )


def judge(bundles: Mapping[str, Bundle], pairs: Pairs) -> dict[str, dict[str, Any]]:
    """SNR of outputs and of latents [N] in dB, by way of rounding."""
    any_bundle = next(iter(bundles.values()))
    with open_bundle(any_bundle, engine_file=FLOAT) as reference:
        sampling = sampling_of(reference)
        states, at = take(reference, pairs, sampling, decode=False).states, visited(sampling, reference.schedule)
        wanted = outputs(reference, pairs, states, at)
    found = {}
    for way, bundle in bundles.items():
        with open_bundle(bundle, engine_file=TARGET) as session:
            latents = take(session, pairs, sampling, decode=False).latents
            found[way] = {
                "output": snr_db(outputs(session, pairs, states, at), wanted),
                "latents": snr_db(latents, states[-1]),
            }
    return found


def outputs(session: Session, pairs: Pairs, states: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The U-Net's outputs [N, S - 1, C, T, F] on what every step of float trajectories [S, N, C, T, F] left, at [S]."""
    calls = [
        session.engine(call_feeds(session, pairs.prompts, x_t, np.full(len(x_t), t)))
        for x_t, t in zip(states[:-1], at[1:], strict=True)
    ]
    return np.stack([np.asarray(call) for call in calls], axis=1)


if __name__ == "__main__":
    main()
