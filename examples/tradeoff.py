"""Accuracy against latency of your own bundles: what each engine and correction gives up, and what it gains.

    python examples/tradeoff.py engines/demo-w8a8 engines/demo-w4a8 [--clips 16] [--correct none auto]

Held-out prompts, the same seeds and noise for all. A star marks what nothing else beats in both: take one of those.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.quality import relative_error
from quaver.runtime.measure.trajectories import held_out, take
from quaver.runtime.session import FLOAT, open_bundle, sampling_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--engine", default="ort-cpu")
    parser.add_argument("--correct", nargs="+", default=["none", "auto"])
    parser.add_argument("--clips", type=int, default=16)
    given = parser.parse_args()
    rows = [row for bundle in given.bundles for row in points(bundle, given.engine, given.correct, given.clips)]
    print(f"  {'engine':40}{'s per clip':>12}{'latent error':>14}")
    for name, seconds, error in sorted(rows, key=lambda row: row[1]):
        beaten = any(s <= seconds and e <= error and (s, e) != (seconds, error) for _, s, e in rows)
        print(f"{' ' if beaten else '*':2}{name:40}{seconds:12.3f}{100 * error:13.1f}%")


def points(bundle: str, engine: str, corrections: list[str], clips: int) -> list[tuple[str, float, float]]:
    """Name, seconds per clip from noise to latents, mean error of the latents."""
    pairs, rows, reference = held_out(Bundle(Path(bundle)), count=clips, seed=1), [], None
    for target, names in ((FLOAT, ["none"]), (engine, corrections)):
        with open_bundle(bundle, engine_file=target) as session:
            for name in names:
                take(session, pairs, sampling_of(session, steps=1), batch=clips, decode=False)  # warm-up
                start = time.perf_counter()
                latents = take(session, pairs, sampling_of(session), correct=name, batch=clips, decode=False).latents
                seconds = (time.perf_counter() - start) / clips
                reference = latents if reference is None else reference
                label = f"{Path(bundle).name} {target}{'' if target == FLOAT else f', {name}'}"
                rows.append((label, seconds, float(relative_error(latents, reference).mean())))
    return rows


if __name__ == "__main__":
    main()
