"""Figure 4 of PTQ4ADM on the embedded model: which intermediates to calibrate on, of which prompts.

    python -m benchmarks.figure4 [RECIPE] [--out engines/figure4] [--seeds 3] [--clips 500] [--only plain]

    cell = {uniform, normal, ours} x {plain, enhanced prompts} x {W8A8, W4A8}

plain is 100 captions of the model's own; enhanced the same and as many written for coverage (Algorithm 1). The number
of records (512), the observer of ranges and rounding (to nearest) are the same everywhere. A calibration seed draws
other captions, other noise and other records. The clips of a cell are shared out among its seeds, and clip i has the
same caption and noise in every cell, so that cells are compared pair by pair. Bundles and clips lie below --out; what
is there is not made again. `--only` makes the cells of one kind of prompts and prints nothing: two processes for two
cores.

Frechet    of the probe's features to those of real clips of the same captions
SNR        of the latents against the float denoiser's from the same noise, dB
hit rate   share of family, register and texture that the probe hears as the caption has them

Intervals are over clips; `benchmarks.orders` says when an order counts. The picture is figure4.svg below --out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.figure4_picture import draw_figure4
from benchmarks.figures import publish, table
from benchmarks.model import REFERENCE, Reference, hear, load_reference
from benchmarks.orders import frechet, mean, order, resamples
from benchmarks.variants import branch
from quaver.exporter.stages import run_recipe
from quaver.runtime.artifact import Stamp, atomic, load_tensors, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.generate import generate
from quaver.runtime.measure.quality import Interval, snr_db
from quaver.runtime.session import FLOAT

TARGET = "ort-cpu"
SEED = 7_000_000  # of the first clip
CAPTURE_SEED = 1_000_000
RECORDS, COUNT, ADDED = 512, 100, 100
PROMPTS = {"plain": ("prompts.budget=0", "prompts.i_max=0"), "enhanced": (f"prompts.budget={ADDED}",)}
SELECT = {"uniform": "uniform", "normal": "normal", "ours": "activation"}
WIDTHS = {"W8A8": "8w8a", "W4A8": "4w8a"}
KIND = "clips"


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.figure4")
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("engines/demo-w8a8.toml"))
    parser.add_argument("--out", type=Path, default=Path("engines/figure4"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--only", choices=list(PROMPTS))
    given = parser.parse_args(argv)
    reference = load_reference(REFERENCE)
    count = min(given.clips, len(reference.texts))
    parts = np.array_split(np.arange(count), given.seeds)
    if not given.only:
        run_recipe(given.recipe, until="trace")
        keep(Bundle(given.recipe.with_suffix("")), FLOAT, reference, range(count), clips_file(given.out, "float"))
    kinds = [given.only] if given.only else list(PROMPTS)
    for prompts in kinds:
        branch(given.recipe, given.out / prompts, ["trace"])
    for seed, prompts in product(range(given.seeds), kinds):
        calibrate(given.recipe, given.out, seed, prompts, reference, parts[seed])
    if not given.only:
        report(given.out, reference, parts)


def calibrate(recipe: Path, out: Path, seed: int, prompts: str, reference: Reference, clips: Iterable[int]) -> None:
    """The clips of all cells of one calibration seed and kind of prompts."""
    for select, width in product(SELECT, WIDTHS):
        path = clips_file(out, cell(width, prompts, select), seed)
        if path.exists():
            continue
        folder = out / prompts
        settings = (
            *PROMPTS[prompts],
            f"prompts.count={COUNT}",
            f"prompts.seed={seed}",
            f"capture.seed={CAPTURE_SEED + 10_000 * seed}",
            f"capture.records={RECORDS}",
            f'capture.select="{SELECT[select]}"',
            f'export.preset="{WIDTHS[width]}"',
            f'export.targets=["{TARGET}"]',
        )
        run_recipe(recipe, until="export", overrides=settings, out=folder)
        keep(Bundle(folder), TARGET, reference, clips, path)


def keep(bundle: Bundle, engine: str, reference: Reference, clips: Iterable[int], path: Path) -> None:
    """Write what `hear` finds of one engine's clips, unless it is there."""
    if path.exists():
        return
    index = list(clips)
    texts = [reference.texts[i] for i in index]
    drawn = generate(bundle, texts, [SEED + i for i in index], engine_file=engine, batch=8)
    heard = hear(drawn, bundle.probe, reference.attributes, count=len(index), label=path.stem)
    save_tensors(path, {**heard, "index": np.array(index)}, Stamp(KIND))


def report(out: Path, reference: Reference, parts: Sequence[np.ndarray]) -> None:
    """Print cells and orders, and draw them."""
    names = [cell(*key) for key in product(WIDTHS, PROMPTS, SELECT)]
    clips = {name: gathered([clips_file(out, name, seed) for seed in range(len(parts))]) for name in names}
    clips["float"] = gathered([clips_file(out, "float")])
    count = len(clips["float"]["index"])
    picks = resamples(count, draws=200, rng=np.random.default_rng(0))
    labels, real = reference.labels[:count], reference.features[:count]
    distance = {name: frechet(found["features"], real, picks, parts) for name, found in clips.items()}
    noise = {name: mean(-snr_db(clips[name]["latents"], clips["float"]["latents"]), picks, parts) for name in names}
    hits = {name: mean((found["classes"] == labels).mean(axis=1), picks, parts) for name, found in clips.items()}
    rows = [
        {
            "cell": name,
            "Frechet": distance[name].interval,
            "of seeds": " ".join(f"{value:.0f}" for value in distance[name].seeds),
            "SNR dB": minus(noise[name].interval) if name in noise else "",
            "SNR of seeds": " ".join(f"{-value:.1f}" for value in noise[name].seeds) if name in noise else "",
            "hit rate": hits[name].interval,
        }
        for name in ["float", *names]
    ]
    orders = [
        {"measure": measure, "paper says": f"{a} before {b}", "difference": found.difference, "here": found.verdict}
        for measure, cells in (("Frechet", distance), ("-SNR dB", noise))
        for a, b in claims()
        for found in [order(cells, a, b)]
    ]
    with atomic(out / "figure4.svg") as temporary:
        temporary.write_text(draw_figure4(distance, noise), encoding="utf-8")
    print(table(orders), end="\n\n")
    verdicts = Counter(row["here"] for row in orders)
    publish(
        "figure4",
        rows,
        figures={"cells": {row["cell"]: row for row in rows}, "orders": orders, "verdicts": verdicts},
        reached={
            "at least 3 calibration seeds a cell": len(parts) >= 3,
            "at least 500 clips a cell": count >= 500,
        },
    )


def claims() -> Iterator[tuple[str, str]]:
    """Pairs of cells, the better one first as PTQ4ADM has it: ours before the others, enhanced before plain."""
    for width, prompts, other in product(WIDTHS, PROMPTS, ("uniform", "normal")):
        yield cell(width, prompts, "ours"), cell(width, prompts, other)
    for width, select in product(WIDTHS, SELECT):
        yield cell(width, "enhanced", select), cell(width, "plain", select)


def cell(width: str, prompts: str, select: str) -> str:
    """The name of a cell."""
    return f"{width} {prompts} {select}"


def clips_file(out: Path, name: str, seed: int | None = None) -> Path:
    """Where the clips of a cell and a calibration seed are."""
    return out / f"{name.replace(' ', '-')}{'' if seed is None else f'-{seed}'}.safetensors"


def gathered(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """The clips of several files, in the order of their captions."""
    parts = [load_tensors(path, KIND)[0] for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def minus(found: Interval) -> Interval:
    """The interval of what has the other sign."""
    return Interval(-found.value, -found.high, -found.low)


if __name__ == "__main__":
    main()
