"""The cells of the tables of images: which engine and correction draws, how, and the images it drew.

PTQ4DM is an engine with its timesteps of calibration, t ~ N(0.4 T, 0.4 T), rounded to nearest on scales of least error;
Q-Diffusion one with even timesteps, split shortcuts and BRECQ's learned rounding. All else corrects the latter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.corrections import fitted
from benchmarks.digits.images import CLASSES
from benchmarks.variants import branch
from quaver.exporter.stages import run_recipe
from quaver.runtime.artifact import (
    Stamp,
    digest_file,
    digest_json,
    load_json,
    load_tensors,
    read_stamp,
    save_tensors,
)
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import Correct, Corrected, Noise, d2_deterministic
from quaver.runtime.error_law import ErrorStats
from quaver.runtime.generate import generate_from
from quaver.runtime.progress import Bar, Progress
from quaver.runtime.rows import row_name
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, Session, open_bundle

TARGET, KIND = "ort-cpu", "images"
SEED = 8_000_000  # of the first image
PART, BATCH = 1000, 250
RECIPES = {"W8A8": Path("engines/digits-w8a8.toml"), "W4A8": Path("engines/digits-w4a8.toml")}
FP, PTQ4DM, Q_DIFFUSION, CONSISTENT = "FP", "PTQ4DM", "Q-Diffusion", "D-D2 consistent"
NORMAL = ('capture.select="normal"', 'reconstruct.method="nearest"', 'export.concat="shared"')  # PTQ4DM's
CORRECTIONS = {
    "PTQD": "ptqd",
    "S-D2": "d2-stochastic",
    "DMC": "benchmarks.digits.cells:mean_alone",
    "D-D2": "d2-deterministic",
    CONSISTENT: "d2-consistent",
    "auto": "auto",
}
NOISY = ("DMC", CONSISTENT)  # without noise to take variance off, these are D-D2


@dataclass(frozen=True)
class Table:
    """A table of D2-DPM: the sampling of its cells, and the methods in it beside the float model."""

    steps: int
    guidance: float
    etas: tuple[float, ...]
    widths: tuple[str, ...]
    methods: tuple[str, ...]


ALL = (PTQ4DM, Q_DIFFUSION, "PTQD", "S-D2", "D-D2", CONSISTENT, "auto")
TABLES = {
    1: Table(20, 3.0, (0.0, 1.0), ("W8A8", "W4A8"), ALL),
    2: Table(250, 1.5, (0.0, 1.0), ("W4A8",), ALL[1:]),
    5: Table(250, 1.5, (1.0,), ("W4A8",), (Q_DIFFUSION, "PTQD", "S-D2", "DMC", "D-D2", CONSISTENT)),
}


@dataclass(frozen=True)
class Cell:
    """What draws the images of one row of a table; the float model has no width."""

    method: str
    width: str
    steps: int
    guidance: float
    eta: float

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.steps} steps eta {self.eta:g} {self.width} {self.method}".replace("  ", " ")

    @property
    def engine(self) -> tuple[str, str]:
        """Width and method of the engine that it needs; the float model lies beside the first."""
        return self.width or next(iter(RECIPES)), PTQ4DM if self.method == PTQ4DM else Q_DIFFUSION

    @property
    def reference(self) -> Cell:
        """The cell of the float model, sampled alike."""
        return Cell(FP, "", self.steps, self.guidance, self.eta)


def cells(table: Table) -> Iterator[Cell]:
    """The cells of a table, the float model's first in every sampling."""
    for eta in table.etas:
        yield Cell(FP, "", table.steps, table.guidance, eta)
        for width, method in product(table.widths, table.methods):
            if eta or method not in NOISY:
                yield Cell(method, width, table.steps, table.guidance, eta)


def mean_alone(stats: ErrorStats, noise: Noise | None = None) -> Correct:
    """D2-DPM's deterministic mean correction without its correction of the variance (Table 5, DMC)."""
    whole = d2_deterministic(stats, noise)
    return lambda q, t, x: Corrected(whole(q, t, x).eps)


def make_engine(width: str, method: str, keep: Path) -> Bundle:
    """The bundle of a width whose engine a method runs or corrects, up to date."""
    recipe = RECIPES[width]
    if method != PTQ4DM:
        run_recipe(recipe, until="stats")
        return Bundle(recipe.with_suffix(""))
    out = keep / f"ptq4dm-{width.lower()}"
    run_recipe(recipe, until="trace")
    branch(recipe, out, ("trace",))
    run_recipe(recipe, until="export", overrides=NORMAL, out=out)
    return Bundle(out)


def draw(cell: Cell, bundle: Bundle, count: int, keep: Path) -> np.ndarray:
    """The images [count, 1, 8, 8] of a cell, those of earlier runs read; statistics are fitted where there are none."""
    sampling = SamplingSettings(steps=cell.steps, eta=cell.eta, guidance=cell.guidance)
    correct, engine = CORRECTIONS.get(cell.method, "none"), FLOAT if cell.method == FP else TARGET
    if correct != "none":
        bundle, sampling = fitted(bundle, TARGET, cell.eta, cell.steps, None, keep, guidance=cell.guidance)
    with open_bundle(bundle, engine_file=engine, threads=1) as session:
        starts = range(0, count, PART)
        with Progress(sys.stderr).bar(cell.steps * -(-count // BATCH), cell.name) as bar:
            parts = [part(session, sampling, correct, range(i, min(i + PART, count)), keep, bar) for i in starts]
    return np.concatenate(parts)


def part(session: Session, sampling: SamplingSettings, correct: str, index: range, keep: Path, bar: Bar) -> np.ndarray:
    """Images `index`, drawn or read where they were drawn before."""
    said = [asdict(sampling), correct, [index.start, index.stop], SEED]
    inputs = {"engine": session.engine.digest, "rows": digest_file(session.bundle.rows)}
    if correct != "none":
        inputs["error_stats"] = digest_file(session.bundle.error_stats(TARGET))
    stamp = Stamp(KIND, settings=digest_json(said), inputs=inputs)
    path = keep / f"{digest_json(asdict(stamp))[-12:]}.safetensors"
    if read_stamp(path) == stamp:
        bar.step(sampling.steps * -(-len(index) // BATCH))
        return load_tensors(path, KIND)[0]["images"]
    texts, seeds = [row_name(i % CLASSES) for i in index], [SEED + i for i in index]
    batches = generate_from(
        session, texts, seeds, sampling, correct=correct, batch=BATCH, decode=False, on_step=lambda _: bar.step()
    )
    images = np.concatenate([batch.latents for batch in batches])
    save_tensors(path, {"images": images}, stamp)
    return images


def bit_operations(bundle: Bundle) -> tuple[float, float]:
    """Multiply-accumulates of a call times the bits of weights and inputs, as float and as coded, in G.

    Every layer counts, attention's products do not; a layer that stays float has 32 bits on either side.
    """
    found = load_json(bundle.sites(TARGET), "export")
    bits: dict[str, dict[str, int]] = {}
    for site in found["sites"]:
        if site["role"] in ("weight", "input"):
            bits.setdefault(site["layer"], {})[site["role"]] = int(site["format"].lstrip("uint"))
    whole = sum(layer["macs"] * 32 * 32 for layer in found["layers"])
    coded = sum(
        layer["macs"] * sides.get("weight", 32) * sides.get("input", 32)
        for layer in found["layers"]
        for sides in [bits.get(layer["name"], {})]
    )
    return whole / 1e9, coded / 1e9
