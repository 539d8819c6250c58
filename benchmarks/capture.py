"""What capturing costs: a capture run against the same sampling run without taps, and its memory over prompts.

    python -m benchmarks.capture [BUNDLE] [--pairs 15] [--trajectories 16] [--steps 10] [--skip-memory]

Time: the same prompts and seeds are sampled by the float denoiser, and captured (every layer's input summarised in the
graph, moments and every x_t written to disk), in turns in this process; a ratio is of one turn. Opening the graphs is
not in it.
Memory: the stage itself, with 10 and with 1,000 prompts of 2 steps and the same number of records, each in a process of
its own; what grows is the peak of resident memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.figures import publish
from quaver.calib.capture import CaptureSettings, capture, every_state
from quaver.calib.prompts import load_prompts
from quaver.calib.taps import open_tapped, tap_summaries
from quaver.calib.trajectories import FIELDS, Trajectories, first_readers, observe, read_layers, split_prompts
from quaver.runtime.artifact import Stamp, save_lines, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.denoise import denoiser, initial_noise, step_noise
from quaver.runtime.measure.latency import peak_rss_bytes, seconds
from quaver.runtime.measure.quality import Interval, bootstrap
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SAMPLERS, SamplingSettings
from quaver.runtime.session import FLOAT, open_bundle, sampling_of

RATIO, SLACK_MB = 1.15, 16.0  # the second: what an allocator may keep, and ids and texts of the prompts
FEW, MANY, RECORDS, STEPS = 10, 1000, 16, 2


def main(argv: Sequence[str] | None = None) -> None:
    """Print ratio and growth."""
    parser = argparse.ArgumentParser(prog="benchmarks.capture")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)  # what the processes of their own are asked
    given = parser.parse_args(argv)
    if given.peak_of:
        print(peak_mb(Bundle(given.bundle), given.peak_of))
        return
    plain, tapped, ratio = time_pairs(Bundle(given.bundle), given.trajectories, given.steps, pairs=given.pairs)
    rows = [{"run": "sampling", "s": plain, "peak MB": ""}, {"run": "capture", "s": tapped, "peak MB": ""}]
    figures: dict[str, object] = {"ratio": ratio, "sampling_s": plain, "capture_s": tapped}
    reached = {f"a capture run takes at most {RATIO}x the sampling run": ratio.value <= RATIO}
    if not given.skip_memory:
        few, many = (alone(given.bundle, count) for count in (FEW, MANY))
        rows += [{"run": f"capture, {n} prompts", "s": "", "peak MB": mb} for n, mb in ((FEW, few), (MANY, many))]
        figures |= {"peak_mb": {str(FEW): few, str(MANY): many}, "growth_mb": many - few}
        reached[f"memory grows by at most {SLACK_MB:.0f} MB from {FEW} to {MANY} prompts"] = many - few <= SLACK_MB
    publish("capture", [*rows, {"run": "ratio", "s": ratio}], figures=figures, reached=reached)


def time_pairs(bundle: Bundle, count: int, steps: int, *, pairs: int) -> tuple[float, float, Interval]:
    """Median seconds of sampling and of capturing `count` trajectories, and the ratio: the median over pairs."""
    texts = [row["text"] for row in load_prompts(bundle, "calib")]
    texts = [texts[i % len(texts)] for i in range(count)]
    readers, settings = first_readers(read_layers(bundle)), CaptureSettings()
    with (
        open_bundle(bundle, engine_file=FLOAT) as session,
        open_tapped(bundle.float_unet, partial(tap_summaries, edges=list(readers))) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        sampling = sampling_of(session, steps=steps)
        shards = split_prompts(texts, settings.seed, settings.batch, keep=partial(every_state, steps))
        conds = [session.family.embed(session.parts, list(shard.texts)) for shard in shards]
        parts = [
            (shard, cond, range(shard.seed, shard.seed + len(shard.texts)))
            for shard, cond in zip(shards, conds, strict=True)
        ]

        def sample() -> None:
            for _, cond, seeds in parts:
                SAMPLERS[sampling.sampler](
                    denoiser(session.engine, session.family, cond, session.uncond, session.schedule, sampling.guidance),
                    initial_noise(seeds, session.latent_shape),
                    session.schedule,
                    steps=steps,
                    eta=sampling.eta,
                    noise=step_noise(seeds),
                )

        def tap() -> None:
            for shard, cond, seeds in parts:
                seen, x_t = observe(Trajectories(session, run, cond, seeds, sampling), readers, shard.keep)
                tensors = {name: getattr(seen, name) for name in FIELDS} | {"x_t": x_t}
                save_tensors(Path(folder) / f"{shard.seed}.safetensors", tensors, Stamp("shard"))

        times = np.array([[seconds(sample), seconds(tap)] for _ in range(pairs + 1)])[1:].T  # the first warms up
    ratio = bootstrap(lambda a, b: np.median(b / a), times[0], times[1], rng=np.random.default_rng(0))
    return float(np.median(times[0])), float(np.median(times[1])), ratio


def alone(bundle: Path, prompts: int) -> float:
    """`peak_mb` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.capture", str(bundle), "--peak-of", str(prompts)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mb(bundle: Bundle, prompts: int) -> float:
    """Peak resident memory [MB] of this process once it has captured `prompts` prompts of a traced bundle."""
    texts = [row["text"] for row in load_prompts(bundle, "calib")]
    rows = [{"id": f"p{i}", "text": texts[i % len(texts)], "split": "calib"} for i in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Bundle(Path(folder))
        for path in bundle.root.iterdir():
            if path not in (
                bundle.prompts,
                bundle.moments,
                bundle.samples.parent,
                bundle.media("any").parent,
                bundle.lock,
            ):
                (copy.root / path.name).symlink_to(path.resolve())
        save_lines(copy.prompts, rows, Stamp("prompts"))
        sampling = SamplingSettings(steps=STEPS, guidance=1.0)
        capture(copy, CaptureSettings(records=RECORDS), sampling, stamp=Stamp("capture"), progress=quiet())
    return peak_rss_bytes() / 1e6


if __name__ == "__main__":
    main()
