"""Samples as files of a bundle: conditioning rows, prompts that name them, and records where x_t and t came along.

The last fifth of the rows, at least one, is held back for validation; a single row serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.prompts import KIND as PROMPTS
from quaver.calib.records import KIND as SAMPLES
from quaver.calib.records import Records, save_records
from quaver.calib.select import NO_LAYER
from quaver.exporter.model.samples import Samples
from quaver.runtime.artifact import Stamp, save_lines, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.families.onnx import sigmas
from quaver.runtime.rows import KIND, UNCOND, row_name
from quaver.runtime.schedule import Schedule

HELD_BACK = 5  # one row in so many


def save_rows(bundle: Bundle, samples: Samples, records: Records | None, stamp: Stamp) -> list[Path]:
    """Write samples/rows.safetensors, prompts.jsonl and, where there are `records`, samples/given.safetensors."""
    tensors = {**samples.cond, **{f"{UNCOND}{name}": rows for name, rows in samples.uncond.items()}}
    written = [save_tensors(bundle.rows, tensors, replace(stamp, kind=KIND))]
    save_lines(bundle.prompts, row_prompts(samples.count), replace(stamp, kind=PROMPTS))
    if records is None:
        bundle.given.unlink(missing_ok=True)
        return written
    return [*written, save_records(bundle.given, records, replace(stamp, kind=SAMPLES))]


def row_prompts(count: int) -> Iterator[dict[str, Any]]:
    """A row of prompts.jsonl for every row of samples."""
    held = -(-count // HELD_BACK) if count > 1 else 0
    for number in range(count):
        split = "calib" if number < count - held else "validate"
        yield _prompt(number, split)
    if not held:
        yield _prompt(0, "validate")


def as_records(samples: Samples, inputs: Mapping[str, Any], schedule: Schedule) -> Records | None:
    """Samples with x [N, C, H, W] and time [N] as records: x_t and t of the schedule, whatever the network is fed.

    None for samples without. Raises: RecipeError for a time that the schedule does not have.
    """
    if samples.x is None or samples.time is None:
        return None
    t = to_timesteps(samples.time.reshape(len(samples.x)), schedule, sigma=inputs["sigma"])
    shrink = np.sqrt(schedule.alpha_bar)[t].reshape(-1, 1, 1, 1) if inputs["scaling"] == "ve" else 1.0
    count = len(t)
    return Records(
        x_t=np.asarray(samples.x * shrink, np.float32),
        t=t,
        cond=samples.cond,
        uncond=samples.uncond,
        prompt=np.arange(count),
        layer=np.full(count, NO_LAYER),
        seed=np.zeros(count, np.int64),
        guidance=1.0,
        prompts=tuple(row_name(number) for number in range(count)),
        layers=(),
    )


def to_timesteps(time: np.ndarray, schedule: Schedule, *, sigma: bool) -> np.ndarray:
    """Timesteps [N] int64 of times as the network is fed them: rounded, or where sigma_t is nearest in logarithm.

    Raises: RecipeError for one outside the schedule.
    """
    last = len(schedule.alpha_bar) - 1
    if sigma:
        if (time <= 0).any():
            raise RecipeError(f"model.samples has sigma {time.min():g}, expected above 0")
        return np.abs(np.log(sigmas(schedule))[None] - np.log(time)[:, None]).argmin(axis=1).astype(np.int64)
    t = np.rint(time).astype(np.int64)
    if t.min() < 0 or t.max() > last:
        raise RecipeError(f"model.samples has timesteps {t.min()} to {t.max()}, the schedule has 0 to {last}")
    return t


def _prompt(number: int, split: str) -> dict[str, Any]:
    name = row_name(number)
    return {"id": name.replace(" ", "-"), "text": name, "origin": "samples", "coverage": [], "split": split}
