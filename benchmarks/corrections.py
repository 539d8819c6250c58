"""What the corrections do to the error of the finished latent, on trajectories that no fit has seen, at eta 0 and 1.

    python -m benchmarks.corrections [BUNDLE] [--target ort-cpu] [--trajectories 256] [--etas 0 1] [--steps 20 ..]

Float and quantized engine draw the same prompts (held out from calibration and fits), seeds and noise. Error statistics
belong to one eta and number of steps, so for others than the bundle's they are fitted anew, with the recipe's own
settings, beside links to its files. A ratio below 1 is an error smaller than without correction; its interval keeps the
pairing. Of D2 the best mode counts (`D2`), against none and the two simpler corrections (`SIMPLER`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml, to_config
from quaver.runtime.measure import quality
from quaver.runtime.measure.trajectories import Pairs, held_out, take
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

SEED = 3_000_000
SIMPLER = ("none", "mean", "ptqd")
D2 = ("d2-deterministic", "d2-consistent", "d2-stochastic", "d2-local", "auto")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the latent error of every correction at every eta."""
    parser = argparse.ArgumentParser(prog="benchmarks.corrections")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument("--etas", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[], help="the bundle's own when left out")
    parser.add_argument("--correct", nargs="+", default=[*SIMPLER, *D2])
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args(argv)
    bundle = Bundle(given.bundle)
    pairs = held_out(bundle, count=given.trajectories, seed=SEED)
    rows = []
    for steps in given.steps or [None]:
        for eta in given.etas:
            with fitted(bundle, given.target, eta, steps) as (place, sampling):
                rows += measure(place, given.target, pairs, sampling, given.correct, batch=given.batch)
    publish(
        "corrections",
        rows,
        figures={f"{cell(row)} {row['correction']}": row for row in rows},
        reached={k: v for where in dict.fromkeys(map(cell, rows)) for k, v in claims(rows, where).items()},
    )


def cell(row: dict[str, Any]) -> str:
    """Which sampling a row is about."""
    return f"{row['steps']} steps eta {row['eta']:g}"


def claims(rows: Sequence[dict[str, Any]], where: str) -> dict[str, bool]:
    """Of one sampling: whether D2's best mode beats the simpler corrections, and auto does no harm."""
    ratio = {row["correction"]: row["ratio to none"] for row in rows if cell(row) == where}
    best = min((ratio[name] for name in D2 if name in ratio), key=lambda r: float(r.value), default=None)
    found = {}
    if best is not None:
        simpler = min(float(ratio[name].value) for name in SIMPLER if name in ratio)
        found[f"{where}: D2 beats {', '.join(SIMPLER)}"] = bool(best.high < 1 and best.value < simpler)
    if "auto" in ratio:
        found[f"{where}: auto does no harm"] = bool(ratio["auto"].low <= 1)
    return found


@contextmanager
def fitted(bundle: Bundle, target: str, eta: float, steps: int | None) -> Iterator[tuple[Bundle, SamplingSettings]]:
    """The bundle with statistics of `eta` and `steps`: itself, or links to its files beside statistics fitted now."""
    with open_bundle(bundle, engine_file=FLOAT) as session:
        own = sampling_of(session)
    sampling = replace(own, eta=eta, steps=steps or own.steps)
    if own == sampling:
        yield bundle, own
        return
    table = read_toml(bundle.recipe).get("stats", {})
    with tempfile.TemporaryDirectory() as folder:
        place = Bundle(Path(folder))
        for path in bundle.root.iterdir():
            if path not in (bundle.error_stats(target), bundle.lock):
                (place.root / path.name).symlink_to(path.resolve())
        settings = replace(to_config(StatsSettings, table, where="stats"), target=target)
        collect_error_stats(place, settings, sampling, stamp=Stamp("stats"), progress=Progress())
        yield place, sampling


def measure(
    bundle: Bundle, target: str, pairs: Pairs, sampling: SamplingSettings, corrections: Sequence[str], *, batch: int
) -> list[dict[str, Any]]:
    """One row per correction: latent error, SNR, and ratio to no correction, with intervals."""
    rng, errors = np.random.default_rng(0), {}
    with open_bundle(bundle, engine_file=FLOAT) as reference, open_bundle(bundle, engine_file=target) as judged:
        plan = [(FLOAT, reference, "none"), *((name, judged, name) for name in corrections)]
        latents = {}
        for name, session, correct in plan:
            calls = sampling.steps * -(-len(pairs.seeds) // batch)
            with Progress(sys.stderr).bar(calls, f"{sampling.steps} steps eta {sampling.eta:g} {name}") as bar:
                found = take(session, pairs, sampling, correct=correct, batch=batch, decode=False, on_step=bar.step)
                latents[name] = found.latents
    for name in corrections:
        errors[name] = quality.relative_error(latents[name], latents[FLOAT])
    return [
        {
            "steps": sampling.steps,
            "eta": sampling.eta,
            "correction": name,
            "latent error": quality.mean_interval(found, rng=rng),
            "SNR dB": quality.mean_interval(quality.snr_db(latents[name], latents[FLOAT]), rng=rng),
            "ratio to none": quality.ratio_interval(found, errors.get("none", found), rng=rng),
            "latent std": float(latents[name].std()),
            "float std": float(latents[FLOAT].std()),
            "samples": len(found),
        }
        for name, found in errors.items()
    ]


if __name__ == "__main__":
    main()
