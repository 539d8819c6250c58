"""Laws that keep an engine on the float model's path: a world of two channels where the answer is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quaver.calib.error_path as error_path
from quaver.calib.error_path import Part, fit_path
from quaver.calib.trajectories import Shard
from quaver.runtime.artifact import Stamp
from quaver.runtime.correct import auto, correct_none
from quaver.runtime.denoise import initial_noise, step_noise
from quaver.runtime.error_law import ErrorStats, Local
from quaver.runtime.progress import quiet
from quaver.runtime.sample import Denoise, sample
from quaver.runtime.samplers import Plan, plan
from quaver.runtime.schedule import Schedule, read_schedule

SHAPE, K, STEPS = (2, 10, 8), 3, 6
SHARDS = [Shard(("",) * 16, 100), Shard(("",) * 16, 116), Shard(("",) * 8, 132)]
NEW = range(900, 924)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return read_schedule(
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "steps_offset": 1}
    )


def world(schedule: Schedule, error: float) -> Denoise:
    """The eps of Gaussian data whose channels are mixed, Var[x_0] = M, and an engine that is wrong by `error`.

    eps = sqrt(1 - a) (a M + (1 - a))^-1 x
    """
    M = np.array([[1.0, 0.6], [0.6, 0.8]])

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        a = schedule.alpha_bar[int(t)]
        eps = np.einsum("ij,bjhw->bihw", np.sqrt(1 - a) * np.linalg.inv(a * M + (1 - a) * np.eye(2)), x)
        wrong = 0.7 * np.roll(x, 1, axis=1) + 0.3 * eps + 0.3 * np.sin(9 * x)
        return np.asarray(eps + error * wrong, np.float32)

    return denoise


def parts(engine: Denoise, reference: Denoise) -> Iterator[Part]:
    start = 0
    for shard in SHARDS:
        yield Part(slice(start, start + len(shard.texts)), engine, reference)
        start += len(shard.texts)


def fitted(
    moves: Plan,
    schedule: Schedule,
    state: Path,
    error: float = 0.1,
    engine: Denoise | None = None,
    reference: Denoise | None = None,
) -> tuple[Local, np.ndarray]:
    both = list(parts(engine or world(schedule, error), reference or world(schedule, 0.0)))
    return fit_path(both, SHARDS, moves, SHAPE, K, state=state, stamp=Stamp("shard"), progress=quiet())


def ends(moves: Plan, denoise: Denoise, correct: Any = correct_none) -> np.ndarray:
    """What trajectories that had no part in a fit end on."""
    return np.asarray(sample(denoise, initial_noise(NEW, SHAPE), moves, correct=correct, noise=step_noise(NEW)))


def corrected(moves: Plan, law: Local) -> Any:
    S = len(moves.moves)
    pairs = {"mean": np.zeros((S, 1, 2)), "cov": np.zeros((S, 1, 2, 2)), "count": np.full(S, 9.0)}
    return auto(ErrorStats(timesteps=moves.timesteps, **pairs, path=law))


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0), ("euler-ancestral", 0.0)]
)
def test_new_trajectories_end_nearer_to_the_float_models(schedule, tmp_path, sampler, eta) -> None:
    moves = plan(sampler, schedule, steps=STEPS, eta=eta)
    law, share = fitted(moves, schedule, tmp_path / "state.safetensors")
    wanted, free = ends(moves, world(schedule, 0.0)), ends(moves, world(schedule, 0.1))
    kept = ends(moves, world(schedule, 0.1), corrected(moves, law))
    assert np.linalg.norm(kept - wanted) < 0.5 * np.linalg.norm(free - wanted)
    assert law.weight.shape == (STEPS, 2, 4, 3, 3) and share.shape == (STEPS, 2)


@pytest.mark.parametrize("sampler", ["dpmsolver++", "sde-dpmsolver++"])
def test_a_sampler_that_looks_back_keeps_to_the_float_models_own_trajectories(schedule, tmp_path, sampler) -> None:
    """What is aimed at is what the float model draws alone: every state of it, step by step."""
    moves, seen = plan(sampler, schedule, steps=STEPS, eta=0.0), {}

    def watched(x: np.ndarray, t: float) -> np.ndarray:
        seen.setdefault(t, []).append(x)
        return world(schedule, 0.0)(x, t)

    fitted(moves, schedule, tmp_path / "state.safetensors", reference=watched)
    seeds, alone = range(100, 140), []
    x_T = initial_noise(seeds, SHAPE)
    look = lambda step: alone.append(step.x_t)  # noqa: E731
    sample(world(schedule, 0.0), x_T, moves, noise=step_noise(seeds), on_step=look)
    for t, x in zip(moves.timesteps.tolist(), alone, strict=True):
        np.testing.assert_allclose(np.concatenate(seen[t]), x, atol=1e-6)


def test_an_error_that_nothing_explains_is_left_alone(schedule, tmp_path) -> None:
    """Never worse than no correction by more than a thousandth, on trajectories that the fit has not seen."""
    draw = np.random.default_rng(0)

    def noisy(x: np.ndarray, t: float) -> np.ndarray:
        return np.asarray(world(schedule, 0.0)(x, t) + 0.1 * draw.standard_normal(x.shape), np.float32)

    moves = plan("ddim", schedule, steps=1, eta=0.0)
    law, _ = fitted(moves, schedule, tmp_path / "state.safetensors", engine=noisy)
    x, (move,) = initial_noise(NEW, SHAPE), moves.moves
    q, e = noisy(x, move.t), world(schedule, 0.0)(x, move.t)
    fixed = corrected(moves, law)(q, move.t, x).eps
    assert np.mean((fixed - e) ** 2) < 1.001 * np.mean((q - e) ** 2)


def test_the_float_model_against_itself_has_nothing_to_take_off(schedule, tmp_path) -> None:
    law, share = fitted(
        plan("ddim", schedule, steps=STEPS, eta=0.0), schedule, tmp_path / "state.safetensors", error=0.0
    )
    assert not law.weight.any() and not law.bias.any() and not share.any()


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_a_fit_that_is_interrupted_goes_on_to_the_same_numbers(schedule, tmp_path, monkeypatch, sampler) -> None:
    moves = plan(sampler, schedule, steps=STEPS, eta=0.0)
    whole, _ = fitted(moves, schedule, tmp_path / "whole.safetensors")
    fit_step, calls = error_path.fit_step, []

    def interrupted(*args: Any, **rest: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit_step(*args, **rest)

    monkeypatch.setattr(error_path, "fit_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(moves, schedule, tmp_path / "state.safetensors")
    again, _ = fitted(moves, schedule, tmp_path / "state.safetensors")
    assert len(calls) == 4 + STEPS - 3
    np.testing.assert_array_equal(again.weight, whole.weight)
    assert os.listdir(tmp_path) and not list(tmp_path.glob("*.tmp*"))


@pytest.mark.parametrize(("which", "error"), [("engine", 0.1), ("reference", 0.0)])
def test_a_sample_that_is_not_finite_leaves_no_pair_and_stops_no_other(schedule, tmp_path, which, error) -> None:
    moves = plan("ddim", schedule, steps=STEPS, eta=0.0)

    def broken(x: np.ndarray, t: float) -> np.ndarray:
        q = world(schedule, error)(x, t)
        q[0] = np.nan
        return q

    law, _ = fitted(moves, schedule, tmp_path / "state.safetensors", **{which: broken})
    assert np.isfinite(law.weight).all()
    kept = ends(moves, world(schedule, 0.1), corrected(moves, law))
    wanted, free = ends(moves, world(schedule, 0.0)), ends(moves, world(schedule, 0.1))
    assert np.linalg.norm(kept - wanted) < 0.5 * np.linalg.norm(free - wanted)


def test_a_sample_that_fails_once_goes_on_from_the_float_models_path(schedule, tmp_path) -> None:
    """Also with what a multistep sampler remembers of it."""
    moves, seen = plan("dpmsolver++", schedule, steps=STEPS), []

    def once(x: np.ndarray, t: float) -> np.ndarray:
        seen.append(bool(np.isfinite(x).all()))
        q = world(schedule, 0.1)(x, t)
        q[0] = np.nan if t == moves.timesteps[0] else q[0]
        return q

    fitted(moves, schedule, tmp_path / "state.safetensors", engine=once)
    assert len(seen) == STEPS * len(SHARDS) and all(seen)


def test_a_step_that_eps_hardly_moves_is_not_corrected(schedule, tmp_path) -> None:
    moves = plan("ddim", schedule, steps=2, eta=0.0)
    first, second = moves.moves
    still = replace(moves, moves=(replace(first, a_prev=first.a, room=1 - first.a), second))
    assert abs(still.moves[0].k) < 1e-12
    law, _ = fitted(still, schedule, tmp_path / "state.safetensors")
    assert not law.weight[0].any() and law.weight[1].any()
