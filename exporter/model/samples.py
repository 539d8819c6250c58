"""A file of samples: what feeds the inputs of a denoiser that are neither the noisy sample nor the time.

    <input>          [N, ...]   one row a sample, under the name of the input
    uncond_<input>   [1, ...]   what the input is fed without a condition, for guidance
    x_t or the sample input's own name, t or the time input's own name          [N, C, H, W] and [N], both or none

With x_t and t the rows are records of calibration as they stand; without, they condition trajectories. A file is .npz
(read without unpickling anything) or .safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.runtime.errors import RecipeError, first_line, unknown
from quaver.runtime.guide import Rows
from quaver.runtime.rows import UNCOND

WITHOUT = 100  # rows of a model that nothing conditions


@dataclass(frozen=True)
class Samples:
    """Conditioning [N, ...] and [1, ...] by input; x [N, C, H, W] and time [N] as the network is fed them, or None."""

    cond: Rows
    uncond: Rows
    count: int
    x: np.ndarray | None = None
    time: np.ndarray | None = None


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises: RecipeError when it is missing, damaged, pickled or of another kind, or holds what is no finite number.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise RecipeError(f"model.samples {path} is neither .npz nor .safetensors: save it with numpy.savez")
    if not path.is_file():
        raise RecipeError(f"model.samples {path} does not exist: name a file, relative to where quaver runs")
    try:
        arrays = _load(path)
    except Exception as error:  # zipfile, numpy and safetensors have a class each
        raise RecipeError(
            f"model.samples {path} cannot be read ({first_line(error)}): save plain arrays with numpy.savez"
        ) from error
    if odd := [name for name, a in arrays.items() if a.dtype.kind not in "fiub"]:
        raise RecipeError(
            f"model.samples {path}: {odd[0]!r} is {arrays[odd[0]].dtype}, expected numbers: save it again"
        )
    if bad := [name for name, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]:
        raise RecipeError(f"model.samples {path}: {bad[0]!r} is not finite: save it again")
    return arrays


def sort_samples(arrays: Mapping[str, np.ndarray], cond: Mapping[str, str], *, sample: str, time: str) -> Samples:
    """The arrays by what they are for; `cond` gives the dtype of every other input of the network by its name.

    Raises: RecipeError for an input that nothing feeds, an array that feeds nothing, or rows that do not fit together.
    """
    roles = {"x_t": "x", sample: "x", "t": "time", time: "time"}
    rows = {name: a for name, a in arrays.items() if name not in roles and not name.startswith(UNCOND)}
    pair = {roles[name]: a for name, a in arrays.items() if name in roles}
    uncond = {name.removeprefix(UNCOND): a for name, a in arrays.items() if name.startswith(UNCOND)}
    for name in cond:
        if name not in rows:
            raise RecipeError(f"nothing feeds the input {name!r}: put rows [N, ...] of that name into model.samples")
    for name in (*rows, *uncond):
        if name not in cond:
            raise RecipeError(f"model.samples: {unknown('input', name, cond)}")
    if len(pair) == 1:
        raise RecipeError(
            f"model.samples holds one of {sample} and {time}: give both (records), or none (trajectories)"
        )
    counts = {name: len(a) if a.ndim else 0 for name, a in {**rows, **pair}.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise RecipeError(f"model.samples has rows {counts}: give every input as many, at least one")
    if "time" in pair and pair["time"].size != len(pair["time"]):
        raise RecipeError(f"model.samples has {time} {list(pair['time'].shape)}, expected one number a sample")
    for name, a in uncond.items():
        if a.shape != (1, *rows[name].shape[1:]):
            raise RecipeError(f"uncond_{name} is {list(a.shape)}, expected {[1, *rows[name].shape[1:]]}")
    if uncond and (alone := [name for name in rows if name not in uncond]):
        raise RecipeError(f"model.samples has no uncond_{alone[0]} beside others: give one for every input, or none")
    typed = {name: np.asarray(a, cond[name]) for name, a in rows.items()}
    without = {name: np.asarray(a, cond[name]) for name, a in uncond.items()}
    return Samples(typed, without, next(iter(counts.values()), WITHOUT), pair.get("x"), pair.get("time"))


def _load(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    from safetensors.numpy import load_file

    return dict(load_file(path))
