"""The law that keeps an engine on the float model's path, fitted in closed loop, step after step.

    r' = step(r, e(r))                   the float model's own path
    D* = (step(x, q(x)) - r') / k        what eps must lose at x for its step to end on that path
    x' = step(x, q(x) - m(q, x))         the engine's path, which the next step is fitted on

x and r start from the same noise and are given the same; k is what a unit of eps moves x'. D* is the error of the
engine where it really is, plus what the errors before have left in x. m is the regression of D* on q and x_t, per
channel either that on its own q (D2-DPM's form) or that on a neighbourhood of all channels, and as much of it as held
on the other half of the trajectories (`local_law.hold`). A law of D at the float model's own x_t explains more of each
error and still ends further away: it knows nothing of what the sampler takes back by itself.

The state after each step is a file, so that a killed fit goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quaver.calib.fanout import KIND
from quaver.calib.local_law import Law, fit_laws, nearest, vectors
from quaver.calib.moments import Joint, joint_of, merge_joint, no_joint
from quaver.calib.trajectories import Shard
from quaver.runtime.artifact import Stamp, load_tensors, read_stamp, save_tensors
from quaver.runtime.correct import Corrected, convolve
from quaver.runtime.denoise import initial_noise, step_noise
from quaver.runtime.error_law import Local
from quaver.runtime.progress import Progress
from quaver.runtime.sample import Denoise, advance
from quaver.runtime.samplers import Move, Plan

Advance = Callable[[int, slice, np.ndarray], tuple[np.ndarray, np.ndarray]]  # path 0|1, rows, eps -> x', x_0'
LEAST = 1e-6  # of k: a step that eps hardly moves is not corrected


@dataclass(frozen=True)
class Part:
    """Trajectories that run together: their numbers among all, and both engines as denoisers of their prompts."""

    rows: slice
    engine: Denoise
    reference: Denoise


@dataclass(frozen=True)
class Paths:
    """x, r [N, C, T, F] of the engine and of the float model, and what a multistep sampler remembers of each."""

    x: np.ndarray
    r: np.ndarray
    before: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Answer:
    """What the trajectories of a part say at one step."""

    rows: slice
    q: np.ndarray  # [B, C, T, F] of the engine, at x
    right: np.ndarray  # r', where the float model goes
    remembered: np.ndarray  # and the x_0' behind it
    D: np.ndarray  # D*, float64
    good: np.ndarray  # [B], whose answers are finite


def fit_path(
    parts: Sequence[Part],
    shards: Sequence[Shard],
    plan: Plan,
    shape: Sequence[int],
    k: int,
    *,
    state: Path,
    stamp: Stamp,
    progress: Progress,
) -> tuple[Local, np.ndarray]:
    """The law, and per step and channel [S, C] the share of D*^2 that it took off where it was not fitted.

    `state` is the file that a killed fit goes on from, if its stamp is this.
    """
    seeds = [shard.seed + i for shard in shards for i in range(len(shard.texts))]
    found, paths = _resume(state, stamp)
    if paths is None:
        start = initial_noise(seeds, shape)
        paths = Paths(start * np.float32(plan.start), start * np.float32(plan.start))
    noise, odd = step_noise(seeds), np.array(seeds) % 2 == 1
    with progress.bar(len(plan.moves), "stats, path") as bar:
        bar.step(len(found))
        for index, move in enumerate(plan.moves[len(found) :], start=len(found)):
            z = noise(index, paths.x.shape) if move.sigma > 0.0 else None
            law, paths = fit_step(parts, move, paths, z, odd, k, clip=plan.clip)
            found.append(law)
            _save(state, found, paths, stamp)
            bar.step()
    weight, bias, rest = (np.stack(values) for values in zip(*found, strict=True))
    C = len(bias[0])
    return Local(weight.reshape(len(found), C, 2 * C, k, k).astype(np.float32), bias, rest[:, 1]), rest[:, 0]


def fit_step(
    parts: Sequence[Part],
    move: Move,
    paths: Paths,
    z: np.ndarray | None,
    odd: np.ndarray,
    k: int,
    *,
    clip: float | None,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Paths]:
    """One step: W [C, F], b [C] and (share, rest) [2, C] of its law, and both paths behind it. z [N, C, T, F]: noise.

    A sample of which an engine gives what is not finite leaves no pair, and goes on from the float model's path.
    """
    step = partial(_step, move, paths, z, clip)
    said = [ask(part, move, paths, step) for part in parts]
    law, share, rest = _law(halves_of(said, paths.x, odd, k), paths.x.shape[1], k)
    moved = [follow(answer, law, paths.x[answer.rows], k, step) for answer in said]
    x, r, before, before_r = (np.concatenate(values) for values in zip(*moved, strict=True))
    return (*law, np.stack([share, rest])), Paths(x, r, (before, before_r))


def ask(part: Part, move: Move, paths: Paths, step: Advance) -> Answer:
    """Both engines, each on its own path."""
    q, e = part.engine(paths.x[part.rows], move.t), part.reference(paths.r[part.rows], move.t)
    free, _ = step(0, part.rows, q)
    right, remembered = step(1, part.rows, e)
    D = (free.astype(np.float64) - right) / (move.k if abs(move.k) > LEAST else np.inf)
    good = (np.isfinite(q) & np.isfinite(e)).all(axis=(1, 2, 3))
    return Answer(part.rows, q, right, remembered, D, good)


def halves_of(said: Sequence[Answer], x: np.ndarray, odd: np.ndarray, k: int) -> list[Joint]:
    """The joint moments of (phi, D*) over every place of the samples that are good: even seeds, odd seeds [N]."""
    C = x.shape[1]
    halves = [no_joint((), C + 2 * C * k * k)] * 2
    for answer in said:
        for half, wanted in enumerate((~odd[answer.rows], odd[answer.rows])):
            mine = answer.good & wanted
            q_64, x_64 = (np.asarray(values[mine], np.float64) for values in (answer.q, x[answer.rows]))
            halves[half] = merge_joint(halves[half], joint_of(vectors(q_64, x_64, answer.D[mine], k)))
    return halves


def follow(answer: Answer, law: Law, x: np.ndarray, k: int, step: Advance) -> tuple[np.ndarray, ...]:
    """x', r' and the x_0' behind either, x [B, C, T, F] having moved with the law taken off what the engine said."""
    (W, b), q, C = law, answer.q, x.shape[1]
    expected = convolve(W.reshape(C, 2 * C, k, k), q, x) + b.astype(q.dtype)[:, None, None]
    moved, before = step(0, answer.rows, q - expected)
    good = answer.good[:, None, None, None]
    ours = np.where(good, moved, answer.right), np.where(good, before, answer.remembered)
    return ours[0], answer.right, ours[1], answer.remembered


def _law(halves: Sequence[Joint], C: int, k: int) -> tuple[Law, np.ndarray, np.ndarray]:
    """The law that is taken off, shrunk, with its share and rest [C]; nothing where a half has seen nothing."""
    if min(float(half.count) for half in halves) < 2:
        F = 2 * C * k * k
        return (np.zeros((C, F)), np.zeros(C)), np.zeros(C), np.zeros(C)
    (W, b), held = nearest(*fit_laws((halves[0], halves[1]), C, k))
    share = 1 - np.divide(held.rest, held.raw, out=np.ones(C), where=held.raw > 0)
    return (W * held.shrink[:, None], b * held.shrink), share, held.rest / 2  # two halves


def _step(
    move: Move,
    paths: Paths,
    z: np.ndarray | None,
    clip: float | None,
    which: int,
    rows: slice,
    eps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """x' and x_0' of one of the two paths."""
    x, before = (paths.x, paths.r)[which][rows], paths.before[which][rows] if paths.before else None
    x_prev, x_0, _ = advance(move, x, Corrected(eps), None if z is None else z[rows], clip=clip, before=before)
    return x_prev, x_0


def _save(path: Path, found: Sequence[tuple[np.ndarray, ...]], paths: Paths, stamp: Stamp) -> None:
    tensors = {f"{name}.{i}": value for i, law in enumerate(found) for name, value in zip("Wbs", law, strict=True)}
    tensors |= {"x": paths.x, "r": paths.r}
    if paths.before:
        tensors |= {"before.x": paths.before[0], "before.r": paths.before[1]}
    save_tensors(path, tensors, stamp, meta={"steps": len(found)})


def _resume(path: Path, stamp: Stamp) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], Paths | None]:
    """What an earlier fit had done, if it was this one."""
    if read_stamp(path) != stamp:
        return [], None
    tensors, meta = load_tensors(path, KIND)
    found = [(tensors[f"W.{i}"], tensors[f"b.{i}"], tensors[f"s.{i}"]) for i in range(int(meta["steps"]))]
    return found, Paths(tensors["x"], tensors["r"], _before(tensors))


def _before(tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    return (tensors["before.x"], tensors["before.r"]) if "before.x" in tensors else None
