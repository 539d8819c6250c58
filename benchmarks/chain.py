"""How long the chain takes from nothing: every stage of a recipe, in order, into an empty folder.

    python -m benchmarks.chain [RECIPE] [--set section.key=value ...]

Each stage is what `quaver run RECIPE --until STAGE` does; the checks of the stages before it and the libraries it is
the first to import count as its own. A second run of the whole chain shows what it costs when everything is current.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import publish
from quaver.exporter.stages import STAGES, run_recipe
from quaver.runtime.measure.latency import peak_rss_bytes

LIMIT_S = 480.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the seconds and bytes of every stage."""
    parser = argparse.ArgumentParser(prog="benchmarks.chain")
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("engines/demo-w8a8.toml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="section.key=value")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / given.recipe.stem
        for stage in [stage.name for stage in STAGES]:
            started = time.monotonic()
            written = run_recipe(given.recipe, until=stage, overrides=given.overrides, out=out)
            seconds = time.monotonic() - started
            size = sum(path.stat().st_size for path in written)
            rows.append({"stage": stage, "s": seconds, "MB": size / 1e6, "peak MB so far": peak_rss_bytes() / 1e6})
        started = time.monotonic()
        run_recipe(given.recipe, overrides=given.overrides, out=out)
        current = time.monotonic() - started
    total = sum(row["s"] for row in rows)
    publish(
        "chain",
        [*rows, {"stage": "all", "s": total, "MB": "", "peak MB so far": ""}],
        figures={"seconds": {row["stage"]: row["s"] for row in rows}, "total_s": total, "when current_s": current},
        reached={f"the chain alone takes at most {LIMIT_S / 60:.0f} min": total <= LIMIT_S},
    )


if __name__ == "__main__":
    main()
