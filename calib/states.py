"""Every x_t of many trajectories, on disk until it is known which are wanted.

The file has no name, so that it is gone with the process, however that ends. x_t of prompt n at step s stands at index
s N + n: a batch of one step is written in one piece.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from quaver.runtime.artifact import write_error


@dataclass(frozen=True)
class States:
    """x_t of `shape` [N, S, C, T, F] float32 in `file`; `folder` is what an error names."""

    file: IO[bytes]
    folder: Path
    shape: tuple[int, ...]

    def put(self, first: int, step: int, x_t: np.ndarray) -> None:
        """Write x_t [B, C, T, F] of the prompts from `first` on. Raises: ArtifactError when the disk is full."""
        try:
            self._seek(first, step)
            self.file.write(np.ascontiguousarray(x_t, np.float32).data)
        except OSError as error:
            raise write_error(self.folder, error) from error

    def get(self, prompt: np.ndarray, step: np.ndarray) -> np.ndarray:
        """x_t [K, C, T, F] of prompts [K] at steps [K]."""
        x_t = np.empty((len(prompt), *self.shape[2:]), np.float32)
        for k, (n, s) in enumerate(zip(prompt.tolist(), step.tolist(), strict=True)):
            self._seek(n, s)
            x_t[k] = np.frombuffer(self.file.read(self._size), np.float32).reshape(self.shape[2:])
        return x_t

    @property
    def _size(self) -> int:
        return 4 * math.prod(self.shape[2:])

    def _seek(self, prompt: int, step: int) -> None:
        self.file.seek((step * self.shape[0] + prompt) * self._size)


@contextmanager
def open_states(folder: Path, shape: tuple[int, ...], *, limit: int) -> Iterator[States | None]:
    """Room in `folder` for x_t of `shape` [N, S, C, T, F]; None when that takes more than `limit` bytes.

    Raises: ArtifactError when the folder cannot be written.
    """
    if 4 * math.prod(shape) > limit:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below, beyond the errors of opening it)
    except OSError as error:
        raise write_error(folder, error) from error
    with file:
        yield States(file, folder, shape)
