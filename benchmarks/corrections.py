"""What the corrections do to the error of the finished latent, on trajectories that no fit has seen, at eta 0 and 1.

    python -m benchmarks.corrections [BUNDLE ..] [--target ort-cpu] [--trajectories 256] [--etas 0 1] [--steps 20 ..]

Float and quantized engine draw the same prompts (held out from calibration and fits), seeds and noise. Error statistics
belong to one eta and number of steps, so for others than the bundle's they are fitted anew, with the recipe's own
settings, beside links to its files. A ratio below 1 is an error smaller than without correction; its interval keeps the
pairing. Of D2 the best mode counts (`D2`), against none and the two simpler corrections (`SIMPLER`). Statistics and
latents lie in --keep under what they depend on: killed, it goes on; bundles of one model share the float engine's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.runtime.artifact import Stamp, digest_file, digest_json, load_tensors, read_stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml, to_config
from quaver.runtime.measure import quality
from quaver.runtime.measure.trajectories import Pairs, held_out, take, take_stamp
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, Session, open_bundle, sampling_of

SEED = 3_000_000
PART = 32  # trajectories that are kept as soon as they are drawn
SIMPLER = ("none", "mean", "ptqd")
D2 = ("d2-deterministic", "d2-consistent", "d2-stochastic", "d2-local", "auto")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the latent error of every correction at every eta."""
    parser = argparse.ArgumentParser(prog="benchmarks.corrections")
    parser.add_argument("bundles", nargs="*", type=Path, default=[Path("engines/demo-w8a8")])
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument("--etas", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[], help="the bundle's own when left out")
    parser.add_argument("--correct", nargs="+", default=[*SIMPLER, *D2], help="none is always drawn: ratios are to it")
    parser.add_argument("--fit", type=int, help="trajectories of statistics fitted here; the recipe's when left out")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--keep", type=Path, default=Path("build/corrections"))
    given = parser.parse_args(argv)
    rows = []
    for bundle in map(Bundle, given.bundles):
        pairs = held_out(bundle, count=given.trajectories, seed=SEED)
        for steps in given.steps or [None]:
            for eta in given.etas:
                place, sampling = fitted(bundle, given.target, eta, steps, given.fit, given.keep)
                names = list(dict.fromkeys(["none", *given.correct]))
                drawn = draw(place, given.target, pairs, sampling, names, batch=given.batch, keep=given.keep)
                rows += compare(bundle.root.name, sampling, drawn)
    publish(
        "corrections",
        rows,
        figures={f"{cell(row)} {row['correction']}": row for row in rows},
        reached={k: v for where in dict.fromkeys(map(cell, rows)) for k, v in claims(rows, where).items()},
    )


def cell(row: dict[str, Any]) -> str:
    """Which engine and sampling a row is about."""
    return f"{row['bundle']}, {row['steps']} steps eta {row['eta']:g}"


def claims(rows: Sequence[dict[str, Any]], where: str) -> dict[str, bool]:
    """Of one sampling: whether D2's best mode beats all simpler corrections (said only where all were drawn), and
    auto does no harm."""
    ratio = {row["correction"]: row["ratio to none"] for row in rows if cell(row) == where}
    best = min((ratio[name] for name in D2 if name in ratio), key=lambda r: float(r.value), default=None)
    found = {}
    if best is not None and all(name in ratio for name in SIMPLER):
        simpler = min(float(ratio[name].value) for name in SIMPLER)
        found[f"{where}: D2 beats {', '.join(SIMPLER)}"] = bool(best.high < 1 and best.value < simpler)
    if "auto" in ratio:
        found[f"{where}: auto does no harm"] = bool(ratio["auto"].low <= 1)
    return found


def fitted(
    bundle: Bundle,
    target: str,
    eta: float,
    steps: int | None,
    fit: int | None,
    keep: Path,
    *,
    guidance: float | None = None,
) -> tuple[Bundle, SamplingSettings]:
    """The bundle with statistics of `eta`, `steps` and `guidance`: itself, or links to its files beside others."""
    with open_bundle(bundle, engine_file=FLOAT) as session:
        own = sampling_of(session)
    sampling = replace(own, eta=eta, steps=steps or own.steps, guidance=own.guidance if guidance is None else guidance)
    if own == sampling and fit is None:
        return bundle, own
    table = read_toml(bundle.recipe).get("stats", {}) | ({"trajectories": fit} if fit else {})
    settings = replace(to_config(StatsSettings, table, where="stats"), target=target)
    belongs = {path.name: digest_file(path) for path in (bundle.qdq(target), bundle.float_unet, bundle.prompts)}
    stamp = Stamp("error_stats", settings=digest_json([asdict(settings), asdict(sampling)]), inputs=belongs)
    place = Bundle(keep / f"{bundle.root.name}-{digest_json(asdict(stamp))[-12:]}")
    place.root.mkdir(parents=True, exist_ok=True)
    for path in bundle.root.iterdir():
        mine = path in (bundle.error_stats(target), bundle.lock, bundle.shards("stats").parent)
        link = place.root / path.name
        if not mine and not link.exists():
            link.unlink(missing_ok=True)  # of a bundle that lay elsewhere
            link.symlink_to(path.resolve())
    if read_stamp(place.error_stats(target)) != stamp:
        collect_error_stats(place, settings, sampling, stamp=stamp, progress=Progress(sys.stderr))
    return place, sampling


def draw(
    bundle: Bundle,
    target: str,
    pairs: Pairs,
    sampling: SamplingSettings,
    corrections: Sequence[str],
    *,
    batch: int,
    keep: Path,
) -> dict[str, np.ndarray]:
    """The finished latents [N, C, T, F] of the float engine, and of the target's with each correction."""
    with open_bundle(bundle, engine_file=FLOAT) as reference, open_bundle(bundle, engine_file=target) as judged:
        noiseless = sampling.sampler == "ddim" and sampling.eta == 0  # then both modes of D-D2 are one, drawn once
        same = {"d2-consistent": "d2-deterministic"} if noiseless else {}
        plan = [(FLOAT, reference, "none"), *((name, judged, same.get(name, name)) for name in corrections)]
        return {name: drawn(session, pairs, sampling, correct, batch, keep) for name, session, correct in plan}


def drawn(
    session: Session, pairs: Pairs, sampling: SamplingSettings, correct: str, batch: int, keep: Path
) -> np.ndarray:
    """The finished latents [N, C, T, F] of one engine and correction, in parts, each read where it was drawn before."""
    label = f"{sampling.steps} steps eta {sampling.eta:g} {session.target or FLOAT} {correct}"
    with Progress(sys.stderr).bar(len(pairs.seeds), f"{session.bundle.root.name} {label}") as bar:
        found = []
        for start in range(0, len(pairs.seeds), PART):
            part = Pairs(pairs.prompts[start : start + PART], pairs.seeds[start : start + PART])
            stamp = replace(take_stamp(session, part, sampling, correct=correct, batch=batch), kind="latents")
            path = keep / f"{digest_json(asdict(stamp))[-12:]}.safetensors"
            if read_stamp(path) != stamp:
                latents = take(session, part, sampling, correct=correct, batch=batch, decode=False).latents
                save_tensors(path, {"latents": latents}, stamp)
            found.append(load_tensors(path, "latents")[0]["latents"])
            bar.step(len(part.seeds))
    return np.concatenate(found)


def compare(name: str, sampling: SamplingSettings, drawn: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per correction: latent error, SNR, and ratio to no correction, with intervals."""
    rng, reference = np.random.default_rng(0), drawn[FLOAT]
    latents = {correct: found for correct, found in drawn.items() if correct != FLOAT}
    errors = {correct: quality.relative_error(found, reference) for correct, found in latents.items()}
    return [
        {
            "bundle": name,
            "steps": sampling.steps,
            "eta": sampling.eta,
            "correction": correct,
            "latent error": quality.mean_interval(found, rng=rng),
            "SNR dB": quality.mean_interval(quality.snr_db(latents[correct], reference), rng=rng),
            "ratio to none": quality.ratio_interval(found, errors["none"], rng=rng),
            "latent std": float(latents[correct].std()),
            "float std": float(reference.std()),
            "samples": len(found),
        }
        for correct, found in errors.items()
    ]


if __name__ == "__main__":
    main()
