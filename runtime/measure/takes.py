"""The takes of a report: each is drawn once and kept in a folder under what it depends on, until the report is there.

A run that was killed goes on with those it has, and engines of one float model share its takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quaver.runtime.measure.departure import seed_spread
from quaver.runtime.measure.trajectories import (
    Pairs,
    Take,
    load_take,
    save_take,
    second_seeds,
    take,
    take_path,
    take_stamp,
)
from quaver.runtime.progress import Progress
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, Session


@dataclass(frozen=True)
class Drawing:
    """How takes are drawn, and the folder that keeps them."""

    sampling: SamplingSettings
    batch: int  # samples drawn at once
    folder: Path
    progress: Progress


def draw_take(
    how: Drawing, session: Session, pairs: Pairs, name: str, *, correct: str = "none", decode: bool = True
) -> tuple[Take, Path]:
    """The take of every pair, shown under a name, and where it is kept; read back where it was drawn before."""
    stamp = take_stamp(session, pairs, how.sampling, correct=correct, batch=how.batch, decode=decode)
    path = take_path(how.folder, stamp)
    if (before := load_take(path, stamp)) is not None:
        return before, path
    label = f"validate {session.bundle.root.resolve().name} {name}"
    with how.progress.bar(how.sampling.steps * -(-len(pairs.seeds) // how.batch), label) as bar:
        found = take(session, pairs, how.sampling, correct=correct, batch=how.batch, decode=decode, on_step=bar.step)
    return found, save_take(path, found, stamp)


def draw_takes(
    how: Drawing, reference: Session, judged: Session, pairs: Pairs, corrections: Iterable[str]
) -> tuple[dict[str, Take], dict[str, Path]]:
    """The float take, then one per correction, and where each is kept."""
    drawn = {FLOAT: draw_take(how, reference, pairs, FLOAT)}
    drawn |= {name: draw_take(how, judged, pairs, name, correct=name) for name in corrections}
    return {name: found for name, (found, _) in drawn.items()}, {name: path for name, (_, path) in drawn.items()}


def draw_spread(how: Drawing, reference: Session, pairs: Pairs, drawn: Take) -> tuple[np.ndarray, list[Path]]:
    """How far float samples of one prompt lie apart [S], and what is kept of the seeds it took beside those `drawn`."""
    more = second_seeds(pairs)
    if not more.seeds:
        return seed_spread(drawn.states, pairs.prompts), []
    other, path = draw_take(how, reference, more, "other seeds", decode=False)
    states = np.concatenate([drawn.states, other.states], axis=1)
    return seed_spread(states, pairs.prompts + more.prompts), [path]
