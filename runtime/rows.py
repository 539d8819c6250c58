"""Conditioning rows of samples in the place of prompts, for a model that comes without a text encoder.

    prompt "row 17" -> row 17 of every conditioning input [N, ...]      "" -> the unconditional row, if there is one

so that whatever runs over prompts runs over rows. Such a bundle has no decoder either: what it draws are latents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import QuaverError
from quaver.runtime.family import Family, Parts
from quaver.runtime.guide import Rows

KIND = "rows"
UNCOND = "uncond_"  # what stands before the name of an input in a file of samples


def row_name(number: int) -> str:
    """What row `number` is called where prompts are asked for."""
    return f"row {number}"


def row_number(name: str, count: int) -> int:
    """The row of a name.

    Raises: QuaverError when it is not one of the `count` there are.
    """
    found = re.fullmatch(r"row (\d+)", name.strip())
    if not found or int(found[1]) >= count:
        raise QuaverError(
            f"this model is conditioned by rows of samples, {name!r} is none: --row 0 to --row {count - 1}"
        )
    return int(found[1])


def load_rows(bundle: Bundle) -> tuple[Rows, Rows]:
    """Conditioning [N, ...] and the unconditional row [1, ...], each by the name of the input.

    Raises: ArtifactError when the file is missing or damaged.
    """
    tensors, _ = load_tensors(bundle.rows, KIND)
    uncond = {name.removeprefix(UNCOND): value for name, value in tensors.items() if name.startswith(UNCOND)}
    return {name: value for name, value in tensors.items() if not name.startswith(UNCOND)}, uncond


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """Conditioning [B, ...] of the rows named by `prompts` [B]; [""] is the unconditional row."""
    if list(prompts) == [""]:
        return parts.uncond
    numbers = [row_number(prompt, parts.card["rows"]) for prompt in prompts]
    return {name: np.asarray(rows)[numbers] for name, rows in parts.rows.items()}


def end_at_latents(parts: Parts, latents: Any) -> dict[str, Any]:
    """Nothing: there is no decoder."""
    return {}


def fed_by_rows(family: Family) -> Family:
    """A family whose prompts are rows and whose samples end at latents."""
    fed = replace(family, media="latents", components=(), embed=embed, decode=end_at_latents)
    return replace(fed, asks="number", example=row_name(0))
