"""How well a topic model agrees with the held-out captions labelled by hand: F1 per aspect, and their mean.

    python -m benchmarks.coverage [MODEL]

MODEL is a sentence-transformers model, hub id or folder; without one, the offline lexicon is judged. Thresholds are
calibrated on the other part of the labelled captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import publish
from quaver.calib.prompts.thresholds import measure

LEAST = 0.85


def main(argv: Sequence[str] | None = None) -> None:
    """Print F1 per aspect and macro-F1."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage")
    parser.add_argument("model", nargs="?", default="")
    found = measure(parser.parse_args(argv).model)
    macro = float(np.mean([f1 for f1, _ in found.values()]))
    publish(
        "coverage",
        [{"aspect": name, "F1": f1, "captions": count} for name, (f1, count) in found.items()],
        figures={"macro_f1": macro},
        reached={f"macro-F1 on held-out captions is at least {LEAST}": macro >= LEAST},
    )


if __name__ == "__main__":
    main()
