"""From prompt to sound on a tiny bundle: what a sample depends on, and what is said when something is wrong."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, digest_file
from quaver.runtime.correct import Corrected, correct_none
from quaver.runtime.denoise import CORRECTION
from quaver.runtime.engine import open_engine
from quaver.runtime.error_law import ErrorStats, save_stats
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError, RecipeError
from quaver.runtime.generate import (
    binding,
    denoiser,
    generate,
    generate_from,
    initial_noise,
    preview,
    step_noise,
)
from quaver.runtime.measure.trajectories import Pairs, take_stamp
from quaver.runtime.sample import SamplingSettings, sample_ddim
from quaver.runtime.samplers import PLANS
from quaver.runtime.session import open_bundle, sampling_of

PROMPTS = ["a soft low cello note", "a bright drum", "a low note", "cello", "drum"]
SEEDS = [3, 1, 4, 1, 5]


def run(bundle, prompts=PROMPTS, seeds=SEEDS, **kwargs):
    """All samples as (latents, waveforms)."""
    drawn = list(generate(bundle, prompts, seeds, **kwargs))
    return np.concatenate([b.latents for b in drawn]), np.concatenate([b.waveforms for b in drawn])


def fit(bundle, settings, count=16):
    """Error statistics of the tiny bundle's quantized engine, fitted as the stage does, in miniature."""
    pairs = []
    with open_bundle(bundle) as session, open_engine(bundle.float_unet) as float_engine:
        seeds, cond = list(range(100, 100 + count)), session.family.embed(session.parts, PROMPTS[:1] * count)
        args = (session.family, cond, session.uncond, session.schedule, settings.guidance)
        exact, quantized = denoiser(float_engine, *args), denoiser(session.engine, *args)

        def both(x, t):
            eps = exact(x, t)
            q = quantized(x, t)
            pairs.append((t, q, q - eps))
            return eps

        sample_ddim(
            both,
            initial_noise(seeds, session.latent_shape),
            session.schedule,
            steps=settings.steps,
            eta=settings.eta,
            noise=step_noise(seeds),
        )
        rows = [np.stack([q.ravel(), D.ravel()]).astype(np.float64) for _, q, D in pairs]
        return ErrorStats(
            np.array([t for t, _, _ in pairs]),
            np.stack([r.mean(1) for r in rows])[:, None],
            np.stack([np.cov(r) for r in rows])[:, None],
            np.array([float(r.shape[1]) for r in rows]),
            binding(session, settings, reference=float_engine.digest),
        )


def test_a_sample_depends_on_its_prompt_and_seed_and_not_on_its_company(made_bundle):
    latents, waveforms = run(made_bundle, batch=2, eta=1.0)
    assert latents.shape == (5, 2, 4, 4)
    assert waveforms.shape == (5, 256)
    together, _ = run(made_bundle, batch=5, eta=1.0)
    np.testing.assert_allclose(together, latents, atol=1e-6)
    backwards, _ = run(made_bundle, PROMPTS[::-1], SEEDS[::-1], batch=3, eta=1.0)
    np.testing.assert_allclose(backwards[::-1], latents, atol=1e-6)
    assert np.abs(latents[1] - latents[3]).max() > 0.01  # same seed, other prompt


def test_noise_is_per_seed_stream_and_step():
    a, b = initial_noise([7, 8], (2, 3)), initial_noise([8, 7], (2, 3))
    np.testing.assert_array_equal(a, b[::-1])
    assert a.dtype == np.float32
    noise, other = step_noise([7, 8]), step_noise([7, 8], stream=2)
    np.testing.assert_array_equal(noise(4, (2, 2, 3)), noise(4, (2, 2, 3)))
    drawn = [a, noise(0, (2, 2, 3)), noise(1, (2, 2, 3)), other(0, (2, 2, 3)), other(1, (2, 2, 3))]
    assert len({array.tobytes() for array in drawn}) == 5
    with pytest.raises(QuaverError, match="one seed per sample"):
        noise(0, (3, 2, 3))


def test_a_correction_is_given_the_seeds_stream_that_is_not_the_samplers(made_bundle, monkeypatch):
    """Statement 3: separate from the sampler's, and the seed's own."""
    given, shape = [], (2, 2, 4, 4)
    monkeypatch.setattr(
        "quaver.runtime.generate.make_correct", lambda name, stats, noise: given.append(noise(0, shape)) or correct_none
    )
    run(made_bundle, PROMPTS[:2], SEEDS[:2], eta=1.0)
    np.testing.assert_array_equal(given[0], step_noise(SEEDS[:2], CORRECTION)(0, shape))
    assert np.abs(given[0] - step_noise(SEEDS[:2])(0, shape)).min() > 0


def test_every_step_is_shown(made_bundle):
    seen = []
    list(generate(made_bundle, PROMPTS[:2], SEEDS[:2], batch=1, steps=4, decode=False, on_step=seen.append))
    assert [step.index for step in seen] == [0, 1, 2, 3] * 2
    assert seen[0].t == 751


def test_the_float_engine_and_a_path_can_be_asked_for(made_bundle):
    exact, _ = run(made_bundle, engine_file="float")
    same, _ = run(made_bundle, engine_file=made_bundle.float_unet)
    quantized, _ = run(made_bundle)
    np.testing.assert_array_equal(exact, same)
    assert 0 < np.abs(exact - quantized).max() < 0.5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_fitted_corrections_run_by_name_and_change_the_sample(tiny_bundle, eta):
    settings = SamplingSettings(steps=5, eta=eta, guidance=2.0)
    save_stats(tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, settings), Stamp("stats"))
    plain, _ = run(tiny_bundle, eta=eta)
    for name in ("d2-deterministic", "d2-consistent", "d2-stochastic"):
        first, _ = run(tiny_bundle, eta=eta, correct=name, batch=2)
        again, _ = run(tiny_bundle, eta=eta, correct=name, batch=5)
        np.testing.assert_allclose(first, again, atol=1e-6)
        assert np.isfinite(first).all()
        assert np.abs(first - plain).max() > 0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"guidance": 4.0}, "ddim-5-g4 .*RECIPE --guidance 4'"),
        ({"steps": 6}, "ddim-6-g2 .*RECIPE --steps 6', .*--interpolate-stats"),
        ({"eta": 1.0}, "ddim-5-eta1-g2 .*RECIPE --eta 1'"),
        ({"sampler": "ddpm", "steps": 6}, "ddpm-6-g2 .*RECIPE --sampler ddpm --steps 6'"),
    ],
)
def test_statistics_of_other_settings_are_refused(tiny_bundle, other, says):
    settings = SamplingSettings(steps=5, guidance=2.0)
    save_stats(tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, settings), Stamp("stats"))
    with pytest.raises(ArtifactError, match=rf"statistics are of ddim-5-g2, and {says}") as error:
        run(tiny_bundle, correct="d2-deterministic", **other)
    assert ("--interpolate-stats" in str(error.value)) == (other == {"steps": 6})  # where it would help


def test_of_several_statistics_those_of_the_sampling_are_used(tiny_bundle):
    """Each file by its name alone draws what it draws beside the others; where none fits, all are named."""
    ways = [SamplingSettings(steps=5, guidance=2.0), SamplingSettings(steps=6, eta=1.0, guidance=2.0)]
    asked = {"correct": "d2-deterministic", "steps": 6, "eta": 1.0}
    own, other = tiny_bundle.error_stats("ort-cpu"), tiny_bundle.error_stats("ort-cpu", ways[1])
    assert other.name == "error_stats.ort-cpu.ddim-6-eta1-g2.safetensors"
    save_stats(own, fit(tiny_bundle, ways[1]), Stamp("stats"))
    expected, _ = run(tiny_bundle, **asked)
    for path, way in zip((own, other), ways, strict=True):
        save_stats(path, fit(tiny_bundle, way), Stamp("stats"))
    np.testing.assert_array_equal(run(tiny_bundle, **asked)[0], expected)
    run(tiny_bundle, correct="d2-deterministic")
    recipe = tiny_bundle.root.with_name("tiny.toml")
    recipe.write_text("")
    with pytest.raises(
        ArtifactError,
        match=rf"of ddim-5-g2, ddim-6-eta1-g2, and ddim-6-g2 .* 'quaver stats {recipe} --steps 6'",
    ):
        run(tiny_bundle, correct="d2-deterministic", steps=6)
    own.unlink()
    np.testing.assert_array_equal(run(tiny_bundle, **asked)[0], expected)


def test_a_take_depends_on_the_statistics_that_are_used(tiny_bundle):
    ways = [SamplingSettings(steps=5, guidance=2.0), SamplingSettings(steps=6, guidance=2.0)]
    paths = [tiny_bundle.error_stats("ort-cpu"), tiny_bundle.error_stats("ort-cpu", ways[1])]
    for path, way in zip(paths, ways, strict=True):
        save_stats(path, fit(tiny_bundle, way), Stamp("stats"))
    with open_bundle(tiny_bundle) as session:
        for path, way in zip(paths, ways, strict=True):
            stamp = take_stamp(session, Pairs(("a",), (1,)), way, correct="mean", batch=1)
            assert stamp.inputs["error_stats"] == digest_file(path)


def test_the_command_that_fits_says_the_target_where_the_recipe_fits_another(tiny_bundle):
    shutil.copyfile(tiny_bundle.qdq("ort-cpu"), tiny_bundle.qdq("other"))
    with pytest.raises(ArtifactError, match=r"'quaver stats RECIPE --guidance 4 --set stats\.target=other'"):
        run(tiny_bundle, correct="mean", engine_file="other", guidance=4.0)


def test_statistics_between_the_fitted_timesteps_serve_when_asked_for(tiny_bundle):
    save_stats(
        tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, SamplingSettings(steps=5, guidance=2.0)), Stamp("stats")
    )
    asked = {"steps": 4, "correct": "d2-deterministic"}
    with pytest.raises(ArtifactError, match="of ddim-5-g2, and ddim-4-g2 is asked for"):
        run(tiny_bundle, **asked)
    served, _ = run(tiny_bundle, **asked, interpolate=True)
    plain, _ = run(tiny_bundle, steps=4)
    assert 0 < np.abs(served - plain).max() < 0.5


def test_statistics_of_an_engine_that_changed_are_refused(tiny_bundle):
    save_stats(
        tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, SamplingSettings(steps=5, guidance=2.0)), Stamp("stats")
    )
    shutil.copyfile(tiny_bundle.float_unet, tiny_bundle.qdq("ort-cpu"))
    with pytest.raises(ArtifactError, match=r"engine sha256:.*quaver stats RECIPE"):
        run(tiny_bundle, correct="d2-deterministic")


def test_a_correction_without_statistics_says_how_to_get_them(made_bundle):
    with pytest.raises(ArtifactError, match="quaver stats RECIPE"):
        run(made_bundle, correct="d2-deterministic")
    with pytest.raises(ArtifactError, match="name a target"):
        run(made_bundle, correct="d2-deterministic", engine_file="float")


def test_an_unknown_correction_names_the_nearest(tiny_bundle):
    save_stats(
        tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, SamplingSettings(steps=5, guidance=2.0)), Stamp("stats")
    )
    with pytest.raises(RecipeError, match="did you mean 'd2-stochastic'"):
        run(tiny_bundle, correct="d2-stochastik")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": 0}, "sampling.steps is 0, expected 1 or more"),
        ({"steps": 1001}, "steps is 1001, expected 1 to 1000: this model was trained with 1000 timesteps"),
        ({"steps": 1000}, "1000 steps start at timestep 1000, beyond the last one, 999: use fewer steps"),
        ({"steps": 1000, "sampler": "dpmsolver++"}, "steps is 1000, expected 1 to 999"),
        ({"eta": 1.5}, "sampling.eta is 1.5, expected 0 to 1"),
        ({"eta": -0.1}, "sampling.eta is -0.1, expected 0 to 1"),
        ({"eta": float("nan")}, "sampling.eta is nan, expected 0 to 1"),
        ({"eta": 0.5, "sampler": "euler"}, "sampling.eta is 0.5, expected 0: euler has noise of its own, or none"),
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean 'euler'? (there are ddim, ddpm, euler, "),
        ({"guidance": float("inf")}, "sampling.guidance is inf, expected a finite number, 0 or more"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_line(made_bundle, asked, says):
    with pytest.raises(QuaverError, match=f"{re.escape(says)}[^\\n]*$"):
        run(made_bundle, **asked)


@pytest.mark.parametrize(
    ("prompts", "seeds", "says"),
    [
        ([], [], "no prompt given"),
        (["  "], [0], "prompt 1 is empty"),
        (["a", "b" * 30_000], [0, 1], "prompt 2 has 30000 characters, expected at most 20000"),
        (["a"], [0, 1], "one seed per sample"),
        (["a"], [-1], "expected 0 to 4294967295"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_opened(prompts, seeds, says, tmp_path):
    with pytest.raises(QuaverError, match=says):
        generate(tmp_path / "no bundle", prompts, seeds)


def test_a_prompt_longer_than_the_text_encoder_is_cut_with_a_warning(made_bundle, caplog):
    with caplog.at_level(logging.WARNING, logger="quaver"):
        long, _ = run(made_bundle, ["a " * 7 + "cello"], [0])
        short, _ = run(made_bundle, ["a " * 7], [0])
    assert "'a a a a a a a cello' is cut after token 8; what follows is not heard: 'cello'" in caplog.text
    np.testing.assert_array_equal(long, short)


def break_unet(bundle):
    """An engine that divides by zero."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle.qdq("ort-cpu"))
    next(t for t in model.graph.initializer if t.name == "w2").CopyFrom(
        onnx.numpy_helper.from_array(np.full((2, 2, 3, 3), np.inf, np.float32), "w2")
    )
    onnx.save(model, bundle.qdq("ort-cpu"))


def test_an_engine_that_returns_no_numbers_is_named_with_step_and_sample(tiny_bundle):
    break_unet(tiny_bundle)
    with pytest.raises(
        EngineError, match=r"^step 1 of 5: .* timestep 801 is not finite for seed 3, prompt 'a soft low cello note'"
    ):
        run(tiny_bundle)


def test_what_a_correction_of_ones_own_breaks_in_the_last_step_is_not_blamed_on_the_decoder(made_bundle, monkeypatch):
    monkeypatch.setattr("quaver.runtime.generate.make_correct", lambda *_: lambda q, t, x: Corrected(q * np.nan))
    with pytest.raises(EngineError, match=r"not finite: the latents of seed 3, .* \(1 of 1 samples\): .*correction"):
        run(made_bundle, PROMPTS[:1], SEEDS[:1], steps=1)


def test_the_first_batch_is_there_before_the_second_is_drawn(made_bundle):
    steps = []
    batches = generate(made_bundle, PROMPTS, SEEDS, batch=2, steps=4, on_step=steps.append)
    assert steps == []
    first = next(batches)
    assert (first.seeds, first.waveforms.shape, len(steps)) == ((3, 1), (2, 256), 4)
    assert [batch.seeds for batch in batches] == [(4, 1), (5,)]
    assert len(steps) == 12


def test_an_engine_that_fails_in_the_second_batch_leaves_the_first(made_bundle, spoil_engine):
    whole, _ = run(made_bundle, batch=2)
    spoil_engine(call=7)  # five steps a batch: the second of the second
    batches = generate(made_bundle, PROMPTS, SEEDS, batch=2)
    np.testing.assert_array_equal(next(batches).latents, whole[:2])
    with pytest.raises(EngineError, match=r"^step 2 of 5: .* timestep 601 is not finite for seed 1, prompt 'cello'"):
        next(batches)


def test_a_step_shows_what_the_sample_would_be_by_then(made_bundle):
    with open_bundle(made_bundle) as session:
        settings, steps = sampling_of(session, sampler="euler", steps=4), []
        drawn = next(generate_from(session, PROMPTS[:2], SEEDS[:2], settings, on_step=steps.append))
        shown = [preview(session, step)["waveform"] for step in steps]
        a = session.schedule.alpha_bar[int(steps[1].t)]
    np.testing.assert_allclose(steps[1].x_0, (steps[1].x_t - np.sqrt(1 - a) * steps[1].eps) / np.sqrt(a), atol=1e-5)
    np.testing.assert_array_equal(shown[3], drawn.waveforms)  # euler ends where there is no noise
    assert all(np.abs(waveforms - drawn.waveforms).max() > 0.01 for waveforms in shown[:3])


@pytest.mark.parametrize("sampler", PLANS)
def test_every_sampler_draws_by_name_and_leaves_the_recipes_eta_to_its_own(tiny_bundle, sampler):
    tiny_bundle.recipe.write_text("[sampling]\neta = 0.5\n")
    latents, _ = run(tiny_bundle, PROMPTS[:1], SEEDS[:1], sampler=sampler)
    with open_bundle(tiny_bundle) as session:
        assert sampling_of(session, sampler=sampler).eta == (0.5 if sampler == "ddim" else 0.0)
    plain, _ = run(tiny_bundle, PROMPTS[:1], SEEDS[:1])
    assert (np.abs(latents - plain).max() > 0.01) == (sampler != "ddim")


def test_an_open_session_generates_again_and_again_alike(made_bundle):
    with open_bundle(Path(made_bundle.root), threads=1) as session:
        settings = sampling_of(session)
        first, second = (next(generate_from(session, PROMPTS[:2], [1, 2], settings)) for _ in range(2))
    assert first.prompts == tuple(PROMPTS[:2])
    assert first.seeds == (1, 2)
    assert first.clipped == 0
    assert first.mels.shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(first.waveforms, second.waveforms)
