"""Table 1 of PTQ4ADM on the embedded model: what every width costs as a set of sounds, in bytes and in time.

    python -m benchmarks.table_audio [--recipe8 engines/demo-w8a8.toml] [--recipe4 engines/demo-w4a8.toml] [--clips 500]

    FP | 8W16A | 8W8A, 8W8A corrected | 4W8A, 4W8A corrected

Clip i has the same caption and noise in every row, so rows are compared pair by pair; captions are of combinations that
the model was never trained on.

set distance   Frechet distance of the embedded probe's features to those of real clips of the same captions, which went
               through the same autoencoder and vocoder; not FD or FAD, whose networks are others
against FP     that distance over the float model's own
KL             of the probe's classes, float clip against this one, in AudioGen's form; mean over attributes
agreement      share of family, register and texture that the probe hears as the caption has them, in percent;
               difference to FP in points
latency        one guided call (batch 2), float and row in turns

Clips lie below --keep under what they depend on: killed, it goes on. The bundles are brought up to date first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.model import REFERENCE, Reference, hear, load_reference
from benchmarks.orders import Measured, frechet, mean, resamples
from benchmarks.variants import branch
from quaver.exporter.stages import run_recipe
from quaver.runtime.artifact import Stamp, digest_file, digest_json, load_tensors, read_stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.generate import generate_from
from quaver.runtime.measure.compare import call_feeds
from quaver.runtime.measure.cost import file_bytes
from quaver.runtime.measure.divergence import paired_kl, softmax
from quaver.runtime.measure.latency import time_pair
from quaver.runtime.measure.quality import Interval, mean_interval, relative_error
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

TARGET, KIND = "ort-cpu", "clips"
SEED = 5_500_000  # of the first clip
SHARED = ("prompts", "trace", "capture", "ranges")
BUDGET = {"8W8A": (1.05, 2.0), "4W8A": (1.15, 5.0)}  # set distance against FP at most, points of agreement lost at most


@dataclass(frozen=True)
class Line:
    """One row of the table: an engine of a bundle, and what corrects it."""

    name: str
    bundle: Bundle
    engine: str
    correct: str


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.table_audio")
    parser.add_argument("--recipe8", type=Path, default=Path("engines/demo-w8a8.toml"))
    parser.add_argument("--recipe4", type=Path, default=Path("engines/demo-w4a8.toml"))
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--correct", nargs="+", default=["d2-deterministic", "auto"])
    parser.add_argument("--runs", type=int, default=21, help="pairs of calls behind a latency")
    parser.add_argument("--keep", type=Path, default=Path("build/table_audio"))
    given = parser.parse_args(argv)
    reference = load_reference(REFERENCE)
    count = min(given.clips, len(reference.texts))
    lines = engines(given.recipe8, given.recipe4, given.keep, given.correct)
    clips = {line.name: clips_of(line, reference, count, given.keep) for line in lines}
    rows = table_of(lines, clips, reference, count, given.runs)
    publish(
        "table_audio",
        rows,
        figures={row["bits"]: row for row in rows},
        reached={**claims(rows), "at least 500 clips a row": count >= 500},
    )


def engines(recipe8: Path, recipe4: Path, keep: Path, corrections: Sequence[str]) -> list[Line]:
    """The rows, their bundles current up to their statistics."""
    for recipe in (recipe8, recipe4):
        run_recipe(recipe, until="stats")
    sixteen, eight, four = keep / "w8a16", *(Bundle(recipe.with_suffix("")) for recipe in (recipe8, recipe4))
    branch(recipe8, sixteen, SHARED)
    settings = ('export.preset="8w16a"', f'export.targets=["{TARGET}"]')
    run_recipe(recipe8, until="export", overrides=settings, out=sixteen)
    integer = [
        Line(f"{width}{'' if correct == 'none' else f' {correct}'}", bundle, TARGET, correct)
        for width, bundle in (("8W8A", eight), ("4W8A", four))
        for correct in ("none", *corrections)
    ]
    return [Line("FP", eight, FLOAT, "none"), Line("8W16A", Bundle(sixteen), TARGET, "none"), *integer]


def clips_of(line: Line, reference: Reference, count: int, keep: Path) -> dict[str, np.ndarray]:
    """What `hear` finds of `count` clips of a row, kept in a folder."""
    with open_bundle(line.bundle, engine_file=line.engine) as session:
        sampling, seeds = sampling_of(session), [SEED + i for i in range(count)]
        stats = {} if line.correct == "none" else {"stats": digest_file(line.bundle.error_stats(line.engine))}
        said = [asdict(sampling), line.correct, list(reference.texts[:count]), SEED]
        stamp = Stamp(KIND, settings=digest_json(said), inputs={"engine": session.engine.digest, **stats})
        path = keep / f"{digest_json(asdict(stamp))[-12:]}.safetensors"
        if read_stamp(path) == stamp:
            return load_tensors(path, KIND)[0]
        drawn = generate_from(session, reference.texts[:count], seeds, sampling, correct=line.correct, batch=10)
        found = hear(drawn, line.bundle.probe, reference.attributes, count=count, label=f"clips {line.name}")
    save_tensors(path, found, stamp)
    return found


def divergence(judged: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> np.ndarray:
    """KL(reference | judged) [N] of the probe's classes, mean over attributes."""
    names = [name for name in reference if name.startswith("logits.")]
    return np.mean([paired_kl(softmax(reference[name]), softmax(judged[name])) for name in names], axis=0)


def table_of(
    lines: Sequence[Line], clips: Mapping[str, Mapping[str, np.ndarray]], reference: Reference, count: int, runs: int
) -> list[dict[str, Any]]:
    """The table, one row a line."""
    picks = resamples(count, draws=200, rng=np.random.default_rng(0))
    labels, real = reference.labels[:count], reference.features[:count]
    parts = [np.arange(count)]
    distance = {name: frechet(found["features"], real, picks, parts) for name, found in clips.items()}
    hits = {name: (found["classes"] == labels).mean(axis=1) for name, found in clips.items()}
    full, rng = file_bytes(lines[0].bundle.float_unet), np.random.default_rng(0)
    times = {line.name: latency(line, runs) for line in lines if line.correct == "none" and line.engine != FLOAT}
    rows = []
    for line in lines:
        found, own = clips[line.name], line.engine == FLOAT
        size = full if own else file_bytes(line.bundle.qdq(line.engine))
        rows.append(
            {
                "bits": line.name,
                "MB": size / 1e6,
                "reduction %": 100 * (1 - size / full),
                "set distance": distance[line.name].interval,
                "against FP": "" if own else ratio(distance[line.name], distance["FP"]),
                "KL": "" if own else mean_interval(divergence(found, clips["FP"]), rng=rng),
                "agreement %": mean_interval(100 * hits[line.name], rng=rng),
                "points to FP": "" if own else mean(100 * (hits[line.name] - hits["FP"]), picks, parts).interval,
                "latent error": ""
                if own
                else mean_interval(relative_error(found["latents"], clips["FP"]["latents"]), rng=rng),
                "speed-up": times.get(line.name.split()[0], ""),
            }
        )
    return rows


def ratio(of: Measured, to: Measured) -> Interval:
    """One measure over another, clip by clip, the bias of resampling taken off both."""
    found = [m.resampled - m.resampled.mean() + m.value for m in (of, to)]
    low, high = np.quantile(found[0] / found[1], [0.025, 0.975])
    return Interval(of.value / to.value, float(low), float(high))


def latency(line: Line, runs: int) -> Interval:
    """How many times as fast as float one guided call is, batch 2."""
    with (
        open_bundle(line.bundle, engine_file=FLOAT) as float_session,
        open_bundle(line.bundle, engine_file=line.engine) as session,
    ):
        x = np.random.default_rng(0).standard_normal((2, *session.latent_shape), np.float32)
        feeds = call_feeds(session, ("a soft low cello note", ""), x, np.array([500, 500]))
        calls = (lambda: float_session.engine(feeds), lambda: session.engine(feeds))
        return time_pair(*calls, rng=np.random.default_rng(0), runs=runs)[2]


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether each width, with its best correction, stays within its budget of distance and agreement."""
    found = {}
    for width, (most, points) in BUDGET.items():
        of = [row for row in rows if row["bits"].split()[0] == width]
        best = min(of, key=lambda row: float(row["against FP"].value))
        found[f"{width}: set distance at most {100 * (most - 1):.0f}% above FP's ({best['bits']})"] = bool(
            best["against FP"].value <= most
        )
        found[f"{width}: text agreement within {points:g} points of FP ({best['bits']})"] = bool(
            best["points to FP"].value >= -points
        )
    return found


if __name__ == "__main__":
    main()
