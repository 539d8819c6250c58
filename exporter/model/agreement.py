"""A graph against the file it was made of: on a batch of several rows, and the file on each row alone.

    || f_new(x)_i - f_old(x_i) || <= PARITY || f_old(x_i) ||          HALF where the file computes in float16

Rows are of samples, or noise, at timesteps far apart. A file that takes one batch size gets the row as often.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quaver.exporter.model.ends import End, Ends
from quaver.exporter.model.samples import Samples
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.family import Family
from quaver.runtime.lazy import need
from quaver.runtime.schedule import Schedule

PARITY, HALF = 1e-4, 3e-2  # of a file in float32, in float16
ROWS = 3  # compared


@dataclass(frozen=True)
class Denoiser:
    """A file, what its ends mean, the samples that feed it, and its latents [C, H, W]."""

    path: Path
    ends: Ends
    samples: Samples
    latent: tuple[int, ...]
    family: Family
    schedule: Schedule
    half: bool = False  # whether the file computes in float16


def compare(denoiser: Denoiser, made: Path) -> None:
    """Hold the graph at `made` against the file it was made of.

    Raises: EngineError with the observed difference, or onnxruntime's words.
    """
    feeds = probes(denoiser)
    expected = _alone(denoiser, feeds)
    for count in (ROWS, 1):
        answer = _run(made, denoiser.ends.output, {name: rows[:count] for name, rows in feeds.items()})
        if answer.shape != (count, *denoiser.latent):
            raise RecipeError(
                f"{denoiser.path} answers {list(answer.shape)} to {list(feeds[denoiser.ends.sample].shape)}, expected "
                "as much as it was asked: a network that also predicts variances is not read"
            )
        worst = farthest(answer, expected[:count])
        if not worst <= (allowed := HALF if denoiser.half else PARITY):
            raise EngineError(
                f"{denoiser.path}: rows of a batch of {count} differ from the file's own answers by {worst:.1e} "
                f"relative, allowed {allowed:.0e}: export it with a free batch (dynamic_axes or dynamic_shapes)"
            )


def probes(denoiser: Denoiser) -> dict[str, np.ndarray]:
    """ROWS rows of inputs as the network is fed them."""
    samples, draw = denoiser.samples, np.random.default_rng(0)
    t = np.linspace(len(denoiser.schedule.alpha_bar) - 1, 1, ROWS).astype(np.int64)
    x = draw.standard_normal((ROWS, *denoiser.latent), np.float32)
    rows = {name: np.resize(values, (ROWS, *values.shape[1:])) for name, values in samples.cond.items()}
    return {name: np.asarray(value) for name, value in denoiser.family.feeds(x, t, rows).items()}


def farthest(answers: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """The largest || answer - expected || / || expected || of the pairs; nan when an answer has one."""
    norm = np.linalg.norm
    return float(np.max([norm(a - e) / max(float(norm(e)), 1e-12) for a, e in zip(answers, expected, strict=True)]))


def _alone(denoiser: Denoiser, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What the file answers to each row, repeated to its batch where that is fixed."""
    ends, answers = denoiser.ends, []
    session = _session(denoiser.path)
    for row in range(ROWS):
        fed = {name: _as_asked(values[row], ends.inputs[name]) for name, values in feeds.items()}
        answers.append(_answer(session, ends.output, fed, denoiser.path)[0])
    return answers


def _as_asked(row: np.ndarray, end: End) -> np.ndarray:
    """One row as an input of the file takes it."""
    typed = np.asarray(row, end.dtype)
    return np.repeat(typed[None], end.dims[0] or 1, axis=0) if end.dims else typed.reshape(())


def _run(path: Path, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    return _answer(_session(path), output, feeds, path)


def _session(path: Path) -> Any:
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        line = " ".join(str(error).split())[:300]
        raise EngineError(f"onnxruntime does not open {path.name} ({line}): export it again") from error


def _answer(session: Any, output: str, feeds: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    try:
        return np.asarray(session.run([output], dict(feeds))[0])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        line = " ".join(str(error).split())[:300]
        raise EngineError(f"{path.name} does not run on the samples ({line}): do they fit its inputs?") from error
