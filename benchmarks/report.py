"""The joint report of several engines: how large its page is, and how long it takes.

    python -m benchmarks.report [RECIPE_OR_BUNDLE ...] [--trajectories 64] [--clips 64] [--keep build/report]
                                [--corrections none mean d2-deterministic auto]

By default engines/demo-w8a8.toml, engines/demo-w4a8.toml, and the former with activations of 16 bits; these are brought
up to date first, which is not timed. What an earlier run kept of its takes is removed, so that all of it is timed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import publish
from benchmarks.variants import branch
from quaver.exporter.stages import run_recipe
from quaver.runtime.artifact import load_json
from quaver.runtime.measure.joint import compare
from quaver.runtime.measure.units import megabytes

RECIPES = (Path("engines/demo-w8a8.toml"), Path("engines/demo-w4a8.toml"))
SHARED = ("prompts", "trace", "capture", "ranges")
MOST_BYTES, MOST_SECONDS = 10_000_000, 600


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, write the report, and say what it took."""
    parser = argparse.ArgumentParser(prog="benchmarks.report")
    parser.add_argument("sources", metavar="RECIPE_OR_BUNDLE", nargs="*", type=Path)
    parser.add_argument("--corrections", nargs="+", default=["none", "mean", "d2-deterministic", "auto"])
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--keep", type=Path, default=Path("build/report"))
    given = parser.parse_args(argv)
    sources, place = given.sources or engines(given.keep), given.keep / "compare"
    shutil.rmtree(place, ignore_errors=True)
    settings = {name: getattr(given, name) for name in ("corrections", "trajectories", "clips")}
    started = time.monotonic()
    figures, page = compare(sources, place, overrides=[f"validate.{name}={value}" for name, value in settings.items()])
    seconds, found = time.monotonic() - started, load_json(figures, "validate")
    played = page.read_text(encoding="utf-8").count("<audio")
    rows = [
        {
            "engine": engine["name"],
            "verdict": engine["verdict"]["word"],
            "correction": row["name"],
            "latent error": row["latent_error"]["value"],
            "speed-up": engine["call"]["speedup"]["value"],
        }
        for engine in found["engines"]
        for row in engine["corrections"]
    ]
    size = page.stat().st_size
    shape = f"{len(found['engines'])} engines, {len(given.corrections)} corrections, {len(found['clips'])} clips"
    publish(
        "report",
        rows,
        figures={"page bytes": size, "seconds": seconds, "players": played, "of": shape},
        reached={
            f"the page of {shape} has at most {megabytes(MOST_BYTES)}": size <= MOST_BYTES,
            f"it is there in at most {MOST_SECONDS} s": seconds <= MOST_SECONDS,
            "3 engines, 4 corrections, 64 clips or more": len(rows) >= 12 and len(found["clips"]) >= 64,
        },
    )


def engines(keep: Path) -> list[Path]:
    """The bundles of the default recipes and of the third width, current up to their statistics."""
    wide = keep / "demo-8w16a"
    for recipe in RECIPES:
        run_recipe(recipe, until="stats")
    branch(RECIPES[0], wide, SHARED)
    run_recipe(RECIPES[0], until="stats", overrides=["export.preset=8w16a", 'export.targets=["ort-cpu"]'], out=wide)
    return [*(recipe.with_suffix("") for recipe in RECIPES), wide]


if __name__ == "__main__":
    main()
