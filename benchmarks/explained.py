"""What the output explains of its error, per timestep and channel: the engine that runs beside its graph in floats.

    python -m benchmarks.explained [BUNDLE] [--target ort-cpu] [--trajectories 16] [--out build/explained]

    rho^2 = C01^2 / (C00 C11)        the share of the error's variance that a law per channel can take off (D2-DPM)

Both are fitted on the same x_t of the same float trajectories, against the same float engine. Trajectories go in shards
below --out: a run that was killed goes on there. The picture is explained.svg below --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.explained_picture import draw_explained
from benchmarks.figures import publish
from quaver.calib.comparison import Pair
from quaver.calib.error_stats import Collection, StatsSettings, fit_gaussian
from quaver.calib.explained import as_simulated, explained, relative_variance
from quaver.calib.fanout import HERE
from quaver.calib.prompts import load_prompts
from quaver.calib.trajectories import split_prompts
from quaver.runtime.artifact import atomic, digest_file, digest_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.error_law import ErrorStats, error_law
from quaver.runtime.progress import Progress
from quaver.runtime.session import FLOAT, open_bundle, sampling_of


def main(argv: Sequence[str] | None = None) -> None:
    """Print the shares, and draw them."""
    parser = argparse.ArgumentParser(prog="benchmarks.explained")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("build/explained"))
    given = parser.parse_args(argv)
    settings = StatsSettings(
        given.trajectories, neighbourhood=1, target=given.target, simulated=True, batch=given.batch
    )
    stats = collect(Bundle(given.bundle.resolve()), settings, given.out)
    simulated = as_simulated(stats)
    assert simulated is not None  # the settings ask for it
    with atomic(given.out / "explained.svg") as temporary:
        temporary.write_text(draw_explained(stats.timesteps, shares(stats), shares(simulated)), encoding="utf-8")
    rows = compared(stats, simulated)
    gap = np.abs(explained(stats) - explained(simulated))
    publish(
        "explained",
        rows,
        figures={
            "trajectories": given.trajectories,
            "timesteps": stats.timesteps,
            "deployed": shares(stats),
            "simulated": shares(simulated),
            "largest gap of a timestep": float(gap.max()),
            "largest gap of a channel": float(np.abs(shares(stats) - shares(simulated)).max()),
            "C11 deployed / simulated": stats.cov[..., 1, 1].sum(axis=1) / simulated.cov[..., 1, 1].sum(axis=1),
        },
        reached={"at every timestep simulated and deployed rho^2 are within a hundredth": bool(gap.max() < 0.01)},
    )


def collect(bundle: Bundle, settings: StatsSettings, out: Path) -> ErrorStats:
    """The Gaussians of both, from float trajectories of the calibration prompts."""
    with open_bundle(bundle, engine_file=FLOAT) as session:
        sampling = sampling_of(session)
    texts = [row["text"] for row in load_prompts(bundle, "calib")]
    some = [texts[i % len(texts)] for i in range(settings.trajectories)]
    files = (bundle.float_unet, bundle.qdq(settings.target), bundle.prompts)
    key = digest_json([asdict(sampling), *map(digest_file, files)])
    collection = Collection(
        split_prompts(some, settings.seed, settings.batch), out / key[-12:], key, HERE, Progress(sys.stderr)
    )
    pair = Pair(bundle, settings.target, settings.neighbourhood, sampling, simulated=True)
    return fit_gaussian(pair, settings, collection)[0].stats


def shares(stats: ErrorStats) -> np.ndarray:
    """rho^2 [S, C]."""
    return error_law(stats).rho ** 2


def compared(stats: ErrorStats, simulated: ErrorStats) -> list[dict[str, Any]]:
    """A row per timestep: both errors, both shares, and per channel deployed/simulated, in percent."""
    columns = {
        "C11/Var[e]": relative_variance(stats),
        "simulated C11/Var[e]": relative_variance(simulated),
        "rho^2": explained(stats),
        "simulated rho^2": explained(simulated),
    }
    both = 100 * np.stack([shares(stats), shares(simulated)], axis=-1)
    return [
        {"t": int(t)}
        | {name: float(values[s]) for name, values in columns.items()}
        | {f"{c}": f"{deployed:.2f}/{simulated:.2f}" for c, (deployed, simulated) in enumerate(both[s])}
        for s, t in enumerate(stats.timesteps)
    ]


if __name__ == "__main__":
    main()
