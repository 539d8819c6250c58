"""Classes in the place of captions, for models that draw classes or draw from noise alone.

    "class 207"    of `classes` of them, drawn without repetition until all have been
    "no class"     of a model without: its samples differ by their seeds

The classes held back for validation are drawn after those for calibration: others, as long as there are others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from quaver.runtime.families.ldm import NO_CLASS


def class_rows(classes: int, calib: int, validate: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows of prompts.jsonl, `calib` and `validate` of them, of `classes` (0: a model without)."""
    drawn = class_prompts(classes, calib + validate, rng)
    for split, texts in (("calib", drawn[:calib]), ("validate", drawn[calib:])):
        for number, text in enumerate(texts):
            row = {"id": f"{split}-{number:04d}", "text": text, "origin": "classes"}
            yield {**row, "coverage": [], "split": split}


def class_prompts(classes: int, count: int, rng: np.random.Generator) -> list[str]:
    """`count` prompts: every class once in random order, then again; "no class" throughout where there are none."""
    if not classes:
        return [NO_CLASS] * count
    turns = [rng.permutation(classes) for _ in range(-(-count // classes))]
    return [f"class {number}" for number in np.concatenate(turns)[:count]] if turns else []
