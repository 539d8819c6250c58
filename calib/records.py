"""Calibration records: what capture draws and ranges, reconstruction and sensitivity feed to the network.

A record is (x_t, t, conditioning) of one prompt's trajectory. Its two guidance branches belong together: the
conditioning row is stored per record, the unconditional one once; the network is fed both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.runtime.artifact import Stamp, load_tensors, save_tensors
from quaver.runtime.errors import ArtifactError
from quaver.runtime.guide import Rows

KIND = "samples"
ARRAYS = ("x_t", "t", "prompt", "layer", "seed")
Feeds = Callable[[np.ndarray, np.ndarray, Rows], dict[str, np.ndarray]]  # of a family


@dataclass(frozen=True)
class Records:
    """K records, captured at one guidance scale.

    x_t [K, C, T, F] float32, t [K] int64, cond [K, ...] by name, uncond [1, ...] by name, seed [K]; prompt [K] indexes
    `prompts` (ids), layer [K] indexes `layers` (names), -1 for a record that no layer asked for.
    """

    x_t: np.ndarray
    t: np.ndarray
    cond: Rows
    uncond: Rows
    prompt: np.ndarray
    layer: np.ndarray
    seed: np.ndarray
    guidance: float
    prompts: tuple[str, ...]
    layers: tuple[str, ...]


def save_records(path: Path, records: Records, stamp: Stamp) -> Path:
    """Write records."""
    tensors = {name: getattr(records, name) for name in ARRAYS}
    tensors |= {f"cond_{name}": value for name, value in records.cond.items()}
    tensors |= {f"uncond_{name}": value for name, value in records.uncond.items()}
    meta = {"guidance": records.guidance, "prompts": records.prompts, "layers": records.layers}
    return save_tensors(path, tensors, stamp, meta=meta)


def load_records(path: Path) -> Records:
    """Read records.

    Raises: ArtifactError when the file is missing, damaged or of another kind.
    """
    tensors, meta = load_tensors(path, KIND)
    try:
        return Records(
            **{name: tensors[name] for name in ARRAYS},
            cond=prefixed(tensors, "cond_"),
            uncond=prefixed(tensors, "uncond_"),
            guidance=float(meta["guidance"]),
            prompts=tuple(meta["prompts"]),
            layers=tuple(meta["layers"]),
        )
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: 'quaver capture RECIPE' writes it anew") from error


def prefixed(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def branches(records: Records, part: np.ndarray, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs of the denoiser for records `part` [B]: the unconditional branch, if it was used, then the conditional."""
    x, t, rows = records.x_t[part], records.t[part], {name: value[part] for name, value in records.cond.items()}
    if records.guidance == 1.0 or not rows:
        return feeds(x, t, rows)
    both = {name: np.concatenate([np.broadcast_to(records.uncond[name], v.shape), v]) for name, v in rows.items()}
    return feeds(np.concatenate([x, x]), np.concatenate([t, t]), both)


def batches(index: np.ndarray, size: int) -> list[np.ndarray]:
    """`index` in parts of at most `size`."""
    return [index[start : start + size] for start in range(0, len(index), size)]
