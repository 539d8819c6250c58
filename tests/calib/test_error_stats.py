"""Error statistics: synthetic joint Gaussians, numpy on every pair, and what they are bound to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import onnx
import pytest

from quaver.calib.comparison import look
from quaver.calib.error_fit import pool
from quaver.calib.error_stats import StatsSettings, collect_error_stats
from quaver.calib.evidence import Seen, from_tensors, to_tensors
from quaver.calib.explained import explained
from quaver.calib.local_law import pairs
from quaver.calib.moments import Joint, covariance, merge_joint, no_joint
from quaver.runtime.artifact import Stamp, digest_file, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import CORRECTIONS
from quaver.runtime.error_law import ErrorStats, error_law, load_stats
from quaver.runtime.error_transfer import rescale
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.generate import generate
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import load_schedule

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
SETTINGS = StatsSettings(trajectories=10, batch=4)


def collect(bundle: Bundle, settings: StatsSettings = SETTINGS, sampling: SamplingSettings = SAMPLING) -> ErrorStats:
    path = collect_error_stats(bundle, settings, sampling, stamp=Stamp("stats"), progress=quiet())
    assert path == bundle.error_stats("ort-cpu")
    return load_stats(path)


def synthetic(shape: tuple[int, ...], rho: float, s_e: float = 1.0, s_D: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """q and e with D = q - e of deviation s_D and correlation rho with q of deviation s_e."""
    rng = np.random.default_rng(0)
    q, z = rng.standard_normal((2, *shape))
    D = s_D * (rho * q + np.sqrt(1 - rho**2) * z) + 0.05
    return s_e * q, s_e * q - D


def pair_moments(q: np.ndarray, e: np.ndarray, seeds: Sequence[int] | None = None) -> tuple[Joint, int]:
    """Joint moments [C] of (q, q - e), and the samples dropped."""
    seen = look(q, q[None], e[None], range(len(q)) if seeds is None else seeds, 3)
    halves = seen.halves
    first, second = (Joint(halves.count[h], halves.mean[h], halves.m2[h]) for h in (0, 1))
    near = pairs(merge_joint(first, second), q.shape[1], 3)
    np.testing.assert_allclose(near.m2, seen.channels.m2, rtol=1e-10, atol=1e-12)  # one place is a place of all
    return seen.channels, int(seen.dropped)


def test_a_synthetic_joint_gaussian_is_recovered() -> None:
    q, e = synthetic((200, 4, 16, 16), rho=0.6)
    joint, dropped = pair_moments(q, e)
    n = joint.count[0]
    assert dropped == 0 and n == 200 * 256
    np.testing.assert_allclose(joint.mean, np.tile([0, 0.05], (4, 1)), atol=5 / np.sqrt(n))
    np.testing.assert_allclose(covariance(joint), np.tile([[1, 0.12], [0.12, 0.04]], (4, 1, 1)), atol=8 / np.sqrt(n))


def test_streaming_over_shuffled_batches_equals_np_cov_to_1e_10() -> None:
    """Statement 8: in shuffled batches, and merged in two other groupings."""
    q, e = (v.astype(np.float32) for v in synthetic((50, 3, 5, 7), rho=0.3))
    order = np.random.default_rng(1).permutation(50)
    parts = [pair_moments(q[part], e[part], part)[0] for part in np.array_split(order, 7)]
    got = reduce(merge_joint, parts, no_joint((3,), 2))
    right = reduce(lambda a, b: merge_joint(b, a), parts[::-1])
    pairwise = merge_joint(reduce(merge_joint, parts[:3]), reduce(merge_joint, parts[3:]))
    for other in (right, pairwise):
        np.testing.assert_allclose(covariance(other), covariance(got), rtol=1e-10)
    for c in range(3):
        flat = q[:, c].ravel().astype(np.float64), e[:, c].ravel().astype(np.float64)
        np.testing.assert_allclose(covariance(got)[c], np.cov(flat[0], flat[0] - flat[1]), rtol=1e-10)


def test_one_group_pools_all_channels() -> None:
    q, e = synthetic((6, 3, 4, 4), rho=0.5)
    got = pair_moments(q, e)[0]
    pooled = pool(Joint(*(getattr(got, name)[None] for name in ("count", "mean", "m2"))))
    np.testing.assert_allclose(covariance(pooled)[0, 0], np.cov(q.ravel(), (q - e).ravel()), rtol=1e-10)


def test_a_sample_that_is_not_finite_is_dropped_and_counted_never_folded_in() -> None:
    q, e = synthetic((6, 3, 4, 4), rho=0.5)
    clean = pair_moments(q[1:5], e[1:5], range(1, 5))[0]
    q[0, 1, 2, 3], q[5, 0, 0, 0] = np.nan, np.inf
    got, dropped = pair_moments(q, e)
    assert dropped == 2
    np.testing.assert_array_equal(got.m2, clean.m2)


def test_explained_is_rho_squared() -> None:
    q, e = synthetic((100, 2, 32, 32), rho=0.6)
    joint, _ = pair_moments(q, e)
    stats = ErrorStats(np.array([1]), joint.mean[None], covariance(joint)[None], joint.count[:1])
    assert explained(stats)[0] == pytest.approx(0.36, abs=0.01)


def test_statistics_equal_numpy_on_every_pair_of_the_trajectories(bundle: Bundle) -> None:
    stats = collect(bundle)
    texts = ["a b c d e f", "b c d e f", "c d e f", "d e f", "e f", "f", "a b c d e f", "b c d e f"]
    schedule, pairs = load_schedule(bundle.scheduler), {}
    for i in range(10):
        seen: list = []
        list(generate(bundle, [texts[i % 8]], [SETTINGS.seed + i], engine_file="float", steps=4, guidance=2.0,
                      on_step=seen.append))  # fmt: skip
        for step in seen:
            # The engine says v' = 0.9 v + 0.01 and eps = sqrt(a) v + sqrt(1 - a) x, for both branches alike.
            a = schedule.alpha_bar[step.t]
            v = (step.eps_raw - np.sqrt(1 - a) * step.x_t) / np.sqrt(a)
            D = np.sqrt(a) * (-0.1 * v + 0.01)
            pairs.setdefault(step.t, []).append(np.stack([step.eps_raw + D, D]))
    for s, t in enumerate(stats.timesteps):
        q, D = np.concatenate(pairs[int(t)], axis=1)
        assert stats.count[s] == 10 * 4 * 5
        for c in range(3):
            np.testing.assert_allclose(stats.cov[s, c], np.cov(q[:, c].ravel(), D[:, c].ravel()), rtol=2e-3, atol=1e-7)
            np.testing.assert_allclose(stats.mean[s, c], [q[:, c].mean(), D[:, c].mean()], rtol=2e-3, atol=1e-6)


def test_what_was_seen_survives_its_file_to_the_bit() -> None:
    q, e = np.random.default_rng(3).standard_normal((2, 3, 6, 2, 4, 5))
    step = look(q[0], q, e, range(6), 3)
    seen = Seen(*(Joint(*(v[:, None] for v in vars(j).values())) for j in (step.halves, step.channels)), np.array([1]))
    back = from_tensors(to_tensors(seen))
    for name in ("halves", "channels"):
        for key, values in vars(getattr(seen, name)).items():
            np.testing.assert_array_equal(getattr(getattr(back, name), key), values)
    F = 2 * 2 * 9 + 2
    assert to_tensors(seen)["halves.m2"].shape == (2, 1, F * (F + 1) // 2)


def test_branches_of_one_pass_serve_a_guidance_that_another_pass_was_fitted_at(bundle: Bundle) -> None:
    """Statement 7: on the same x_t, by the bundle's engines; only x_t of a step knows of the scale, the first does not.

    Conditioning differs from row to row, so the branches of the tiny denoiser do too.
    """
    at_2 = collect(bundle)
    at_5 = collect(bundle, sampling=replace(SAMPLING, guidance=5.0))
    served = rescale(at_2, 5.0)
    assert at_2.branches is not None and at_2.branches.cov.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(served.mean[0], at_5.mean[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(served.cov[0], at_5.cov[0], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(rescale(at_2, 2.0).cov, at_2.cov, rtol=1e-4, atol=1e-8)
    assert np.abs(at_5.cov[0] - at_2.cov[0]).max() > 1e-4


def test_a_run_at_another_guidance_is_served_by_the_gaussian_alone(bundle: Bundle) -> None:
    collect(bundle)
    drawn = {
        correct: next(generate(bundle, ["a b"], [5], steps=4, guidance=3.0, correct=correct)).latents
        for correct in ("none", "mean", "ptqd", "d2-deterministic")
    }
    assert all(np.abs(drawn[name] - drawn["none"]).max() > 0 for name in drawn if name != "none")
    with pytest.raises(ArtifactError, match=r"no law 'path'.*RECIPE --sampler ddim --steps 4 --eta 0 --guidance 3'"):
        next(generate(bundle, ["a b"], [5], steps=4, guidance=3.0, correct="auto"))


def test_without_guidance_there_are_no_branches(bundle: Bundle) -> None:
    assert collect(bundle, sampling=replace(SAMPLING, guidance=1.0)).branches is None


def test_statistics_say_what_they_belong_to(bundle: Bundle) -> None:
    """Statement 19: the binding; statement 11: keys are the scheduler's integers, steps_offset 1."""
    stats = collect(bundle)
    assert stats.binding is not None
    assert stats.binding.engine == digest_file(bundle.qdq("ort-cpu"))
    assert stats.binding.reference == digest_file(bundle.float_unet)
    assert (stats.binding.steps, stats.binding.guidance, stats.binding.latent_shape) == (4, 2.0, (3, 4, 5))
    assert stats.binding.prediction == "v_prediction" and stats.timesteps.tolist() == [751, 501, 251, 1]
    meta = load_tensors(bundle.error_stats("ort-cpu"), "error_stats")[1]
    np.testing.assert_allclose(meta["explained"], explained(stats))


@pytest.mark.parametrize("correct", [name for name in CORRECTIONS if name != "none"])
def test_a_run_with_any_correction_accepts_them(bundle: Bundle, correct: str) -> None:
    collect(bundle)
    drawn = list(generate(bundle, ["a b"], [5], steps=4, guidance=2.0, correct=correct))
    assert np.isfinite(drawn[0].latents).all()


def test_an_error_linear_in_output_and_x_t_is_taken_off_by_the_local_law(bundle: Bundle) -> None:
    """The engine says v' = 0.9 v + 0.01, and eps is a sum of v and x_t."""
    collect(bundle)
    drawn = {
        name: next(generate(bundle, ["a b"], [5], steps=4, guidance=2.0, **how)).latents
        for name, how in {
            "float": {"engine_file": "float"},
            **{correct: {"correct": correct} for correct in ("none", "d2-deterministic", "d2-local", "auto")},
        }.items()
    }
    error = {name: float(np.linalg.norm(latents - drawn["float"])) for name, latents in drawn.items()}
    assert error["d2-local"] < 0.05 * error["none"] and error["auto"] < 0.05 * error["none"]
    assert error["d2-local"] < 0.2 * error["d2-deterministic"]
    held = load_tensors(bundle.error_stats("ort-cpu"), "error_stats")[1]["held_out"]
    assert min(held["local"]) > 0.99


def test_one_trajectory_has_no_other_half_and_gives_no_local_law(bundle: Bundle) -> None:
    stats = collect(bundle, replace(SETTINGS, trajectories=1))
    assert stats.local is None and stats.path is None


def test_the_float_engine_against_itself_has_no_error(bundle: Bundle) -> None:
    """Statement 20: C11 = 0, and a run with its law is the plain one to the bit."""
    bundle.qdq("ort-cpu").write_bytes(bundle.float_unet.read_bytes())
    stats = collect(bundle, replace(SETTINGS, granularity="tensor"))
    assert stats.mean.shape == (4, 1, 2)
    assert not stats.cov[..., 1].any() and not stats.mean[..., 1].any()
    assert not error_law(stats).slope.any()
    plain, fixed = (
        next(generate(bundle, ["a b"], [5], steps=4, guidance=2.0, correct=correct)).latents
        for correct in ("none", "d2-deterministic")
    )
    assert plain.tobytes() == fixed.tobytes()


def test_running_again_writes_the_same_bytes(bundle: Bundle) -> None:
    collect(bundle)
    first = bundle.error_stats("ort-cpu").read_bytes()
    collect(bundle)
    assert bundle.error_stats("ort-cpu").read_bytes() == first


def test_an_engine_that_gives_nothing_finite_is_refused_with_its_timestep(bundle: Bundle) -> None:
    model = onnx.load(bundle.qdq("ort-cpu"))
    gain = next(t for t in model.graph.initializer if t.name == "gain")
    gain.CopyFrom(onnx.numpy_helper.from_array(np.float32("nan"), "gain"))
    onnx.save(model, bundle.qdq("ort-cpu"))
    with pytest.raises(EngineError, match=r"ort-cpu gives nothing finite at timestep 751"):
        collect(bundle)


def test_the_deployed_engine_runs_on_the_provider_that_is_asked_for(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="no execution provider 'quantum'"):
        collect(bundle, replace(SETTINGS, provider="quantum"))
    assert collect(bundle, replace(SETTINGS, provider="cpu")).binding == collect(bundle).binding


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"stats\.trajectories is 0, expected 1 or more"):
        StatsSettings(trajectories=0)
