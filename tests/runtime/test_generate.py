"""From prompt to sound on a tiny bundle: what a sample depends on, and what is said when something is wrong."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp
from quaver.runtime.audio import read_wav
from quaver.runtime.engine import open_engine
from quaver.runtime.error_law import ErrorStats, save_stats
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError, RecipeError
from quaver.runtime.generate import (
    binding,
    denoiser,
    generate,
    generate_from,
    generate_to_files,
    initial_noise,
    step_noise,
)
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings, sample_ddim
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
    [({"guidance": 4.0}, "guidance 2.0, now 4.0"), ({"steps": 6}, "steps 5, now 6"), ({"eta": 1.0}, "eta")],
)
def test_statistics_of_other_settings_are_refused(tiny_bundle, other, says):
    settings = SamplingSettings(steps=5, guidance=2.0)
    save_stats(tiny_bundle.error_stats("ort-cpu"), fit(tiny_bundle, settings), Stamp("stats"))
    with pytest.raises(ArtifactError, match=rf"{says}.*quaver stats RECIPE"):
        run(tiny_bundle, correct="d2-deterministic", **other)


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
    ("prompts", "seeds", "says"),
    [
        ([], [], "no prompt given"),
        (["  "], [0], "prompt 1 is empty"),
        (["a", "b" * 10_000], [0, 1], "prompt 2 has 10000 characters, expected at most 2000"),
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
    assert "longer than 8 tokens" in caplog.text
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
    with pytest.raises(EngineError, match=r"timestep 801 is not finite for seed 3, prompt 'a soft low cello note'"):
        run(tiny_bundle)


def test_one_clip_goes_into_its_file_and_several_into_a_folder(made_bundle, tmp_path):
    paths = generate_to_files(made_bundle, PROMPTS[:1], [1], tmp_path / "new" / "cello.wav", progress=quiet())
    assert paths == [tmp_path / "new" / "cello.wav"]
    samples, rate = read_wav(paths[0])
    assert (rate, samples.shape) == (16_000, (256,))
    _, waveforms = run(made_bundle, PROMPTS[:1], [1])
    np.testing.assert_allclose(samples, waveforms[0], atol=1 / 32767)
    many = generate_to_files(made_bundle, PROMPTS, SEEDS, tmp_path / "clips", batch=2, progress=quiet())
    assert [p.name for p in many] == [f"{i:03d}-seed{s}.wav" for i, s in enumerate(SEEDS, 1)]
    assert all(p.exists() for p in many)


def test_several_clips_into_one_file_are_refused(made_bundle, tmp_path):
    with pytest.raises(QuaverError, match="name a folder"):
        generate_to_files(made_bundle, PROMPTS, SEEDS, tmp_path / "one.wav", progress=quiet())


def test_other_formats_are_refused_with_the_name_to_use(made_bundle, tmp_path):
    with pytest.raises(QuaverError, match=r"name it cello\.wav"):
        generate_to_files(made_bundle, PROMPTS[:1], [0], tmp_path / "cello.mp3", progress=quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(made_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        generate_to_files(made_bundle, PROMPTS[:1], [0], tmp_path / "file" / "x.wav", progress=quiet())


def test_an_open_session_generates_again_and_again_alike(made_bundle):
    with open_bundle(Path(made_bundle.root), threads=1) as session:
        settings = sampling_of(session)
        first, second = (next(generate_from(session, PROMPTS[:2], [1, 2], settings)) for _ in range(2))
    assert first.prompts == tuple(PROMPTS[:2])
    assert first.seeds == (1, 2)
    assert first.clipped == 0
    assert first.mels.shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(first.waveforms, second.waveforms)
