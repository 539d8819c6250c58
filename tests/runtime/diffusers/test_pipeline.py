"""A bundle as an AudioLDMPipeline: the same seed is the same sound as generating makes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.audio import read_wav
from quaver.runtime.denoise import initial_noise
from quaver.runtime.diffusers import corrected, pipeline
from quaver.runtime.errors import ArtifactError, EngineError
from quaver.runtime.generate import generate
from quaver.runtime.rows import KIND
from quaver.runtime.sample import SamplingSettings

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
pytest.importorskip("transformers")
EXAMPLE = Path(__file__).parents[3] / "examples" / "diffusers_pipeline.py"
PROMPTS, SEEDS = ["a soft low cello note", "drum"], [7, 3]
TWENTY = SamplingSettings(steps=20, guidance=2.0)


def generated(bundle, correct="none", **kwargs):
    return next(
        generate(bundle, PROMPTS, SEEDS, steps=20, guidance=2.0, correct=correct, threads=1, **kwargs)
    ).waveforms


def sounds(pipe, **kwargs):
    x_T = torch.from_numpy(initial_noise(SEEDS, pipe.unet.latent_shape))
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPTS, **{"latents": x_T, "num_inference_steps": 20, "guidance_scale": 2.0, **kwargs}).audios


@pytest.fixture
def opened(fitted):
    pipe = pipeline(fitted(TWENTY), threads=1)
    yield pipe
    pipe.unet.close()


@pytest.mark.parametrize("correct", ["none", "auto"])
def test_the_same_seed_is_the_same_sound_as_generating(opened, correct):
    expected = generated(opened.unet.session.bundle, correct)
    assert type(opened) is diffusers.AudioLDMPipeline
    opened.scheduler = corrected(opened.scheduler, opened.unet, correct=correct, steps=20)
    np.testing.assert_allclose(sounds(opened), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - generated(opened.unet.session.bundle)).max() > 1e-3 or correct == "none"


def test_the_pipelines_own_scheduler_draws_the_same_sound(opened):
    expected = generated(opened.unet.session.bundle)
    np.testing.assert_allclose(sounds(opened), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("sampler", ["dpmsolver++", "euler"])
def test_the_bundles_own_sampler_is_the_pipelines(tiny_bundle, sampler):
    card = json.loads(tiny_bundle.card.read_text())
    tiny_bundle.card.write_text(json.dumps({**card, "sampler": {"sampler": sampler}}))
    pipe = pipeline(tiny_bundle, engine="float", threads=1)
    expected = generated(tiny_bundle, engine_file="float")
    np.testing.assert_allclose(sounds(pipe), expected, atol=1e-4 * np.abs(expected).max())


def test_the_example_of_ten_lines_writes_the_sound_of_generating(fitted, tmp_path):
    bundle = fitted(TWENTY)
    main = runpy.run_path(str(EXAMPLE))["main"]
    for correct in ("none", "auto"):
        main(str(bundle.root), PROMPTS[0], str(tmp_path / "out.wav"), correct)
        samples, rate = read_wav(tmp_path / "out.wav")
        (drawn,) = generate(bundle, PROMPTS[:1], [1], steps=20, guidance=2.0, correct=correct)
        assert rate == 16_000
        np.testing.assert_allclose(samples, drawn.waveforms[0], atol=1.01 / 32767)


def test_pipelines_move_cut_prompts_and_run_unguided(opened, caplog):
    assert opened.to("cpu").to(torch.float16).device.type == "cpu"
    assert set(opened.components) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "vocoder"}
    long = opened(["a " * 7 + "cello"], num_inference_steps=2, guidance_scale=1.0, generator=torch.manual_seed(0))
    short = opened(["a " * 7], num_inference_steps=2, guidance_scale=1.0, generator=torch.manual_seed(0))
    np.testing.assert_array_equal(long.audios, short.audios)
    twice = opened("cello", num_inference_steps=2, num_waveforms_per_prompt=2, generator=torch.manual_seed(0))
    assert twice.audios.shape == (2, 256)


def test_another_length_than_the_engines_is_refused(opened):
    with pytest.raises(EngineError, match=r"asks for latents \[2, 8, 4\], this engine is of \[2, 4, 4\].*audio_length"):
        sounds(opened, audio_length_in_s=512 / 16_000, latents=None)


def test_a_bundle_that_ends_at_latents_is_no_pipeline(tiny_bundle):
    card = json.loads(tiny_bundle.card.read_text())
    tiny_bundle.card.write_text(json.dumps({**card, "rows": 2}))
    tiny_bundle.rows.parent.mkdir()
    rows = {"class_labels": np.ones((2, 6), np.float32), "uncond_class_labels": np.zeros((1, 6), np.float32)}
    save_tensors(tiny_bundle.rows, rows, Stamp(KIND))
    with pytest.raises(ArtifactError, match=r"has not what an AudioLDMPipeline is made of.*EngineUNet\.from_bundle"):
        pipeline(tiny_bundle)
