"""A hub id to a file, offline, through the chain at 8W8A; and the float engine against diffusers' own pipeline."""

import json
import sys

import numpy as np
import pytest

from quaver.exporter.stages import run_recipe
from quaver.runtime.denoise import initial_noise
from quaver.runtime.generate import generate
from quaver.runtime.progress import quiet
from tests.exporter.checkpoints.chains import RECIPE, drawn, heard, size
from tests.exporter.hub_cache import COMMIT, as_snapshot
from tests.exporter.pipelines import saved

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
PROMPT, SEED, STEPS, GUIDANCE = "a low note", 3, 3, 3.0
CLASSES = 'source = "classes"'


def hub_chain(make, hub_id, place, home, prompts=""):
    """The bundle of a hub id that the cache alone has, and the pipeline itself."""
    pipe = saved.build(make)
    pipe.save_pretrained(place / "saved")
    as_snapshot(place / "saved", hub_id, home)
    said = RECIPE.format(family="", source=hub_id, model="", prompts=prompts, sampling="eta = 0.0")
    recipe = place / "made.toml"
    recipe.write_text(said.replace('family = ""\n', ""))
    run_recipe(recipe, until="export", progress=quiet())
    pipe.set_progress_bar_config(disable=True)
    card = json.loads((place / "made" / "bundle.json").read_text())
    assert (card["source"], card["revision"]) == (hub_id, COMMIT)
    return place / "made", pipe, card


def ours(bundle, card, *, prompt=PROMPT, **settings):
    """What the float engine draws, and the noise that it began with."""
    settings = {"steps": STEPS, "guidance": GUIDANCE, "eta": 0.0, **settings}
    (batch,) = generate(bundle, [prompt], [SEED], engine_file="float", **settings)
    return batch, torch.from_numpy(np.asarray(initial_noise([SEED], tuple(card["latent_shape"]))))


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def sound_of(pipe, noise, **asked):
    """The latents and sounds of a pipeline of diffusers."""
    seen = []
    answer = pipe(
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        callback=lambda step, t, latents: seen.append(latents.numpy().copy()),
        **asked,
    )
    return seen[-1], answer.audios


def pictures_as_shown(batch):
    """Pictures [B, H, W, 3] in 0 to 1."""
    return np.clip(batch.decoded["image"] / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_audioldm_is_the_pipeline(tmp_path, hub_home):
    bundle, pipe, card = hub_chain(saved.audioldm, "cvssp/audioldm-s-full-v2", tmp_path, hub_home)
    batch, noise = ours(bundle, card)
    latents, sound = sound_of(pipe, noise, prompt=PROMPT)
    assert card["family"] == "audioldm" and card["latent_shape"] == [4, 8, 8]
    assert relative(batch.latents, latents) < 1e-5 and relative(batch.waveforms, sound) < 1e-5
    first, second = heard(bundle, tmp_path / "out", "--prompt", PROMPT, "--prompt", "a dog barks")
    assert len(first) == 2048 and not np.array_equal(first, second)


@pytest.mark.slow
def test_audioldm2_is_the_pipeline(tmp_path, hub_home, monkeypatch):
    bundle, pipe, card = hub_chain(saved.audioldm2, "cvssp/audioldm2", tmp_path, hub_home)
    batch, noise = ours(bundle, card)
    assert card["family"] == "audioldm2" and card["turns"] == 3
    monkeypatch.setattr(sys.modules[type(pipe).__module__], "T5Tokenizer", type(pipe.tokenizer))  # it asks for classes
    with torch.no_grad():
        told, nothing = (pipe.encode_prompt([text], "cpu", 1, False) for text in (PROMPT, ""))
    length = told[0].shape[1]  # of the words of the prompt; "" has fewer, and here no other positions for it
    padded = torch.nn.functional.pad(nothing[0], (0, 0, 0, length - nothing[0].shape[1]))
    mask = torch.nn.functional.pad(nothing[1], (0, length - nothing[1].shape[1]))
    latents, sound = sound_of(
        pipe,
        noise,
        **dict(zip(("prompt_embeds", "attention_mask", "generated_prompt_embeds"), told, strict=True)),
        negative_prompt_embeds=padded,
        negative_attention_mask=mask,
        negative_generated_prompt_embeds=nothing[2],
    )
    assert relative(batch.latents, latents) < 1e-5 and relative(batch.waveforms, sound) < 1e-5
    first, second = heard(bundle, tmp_path / "out", "--prompt", PROMPT, "--prompt", "a dog barks")
    assert len(first) == 2048 and not np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "family", "sampler"),
    [(saved.stable_diffusion, "stable-diffusion", "ddim"), (saved.sdxl, "sdxl", "euler")],
)
def test_stable_diffusion_is_the_pipeline(make, family, sampler, tmp_path, hub_home):
    bundle, pipe, card = hub_chain(make, "owner/draws", tmp_path, hub_home, 'aspects = "pictures"')
    batch, noise = ours(bundle, card, sampler=sampler)
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 16, "width": 16}
    latents = pipe(PROMPT, latents=noise.clone(), output_type="latent", **asked).images.numpy()
    pictures = pipe(PROMPT, latents=noise.clone(), output_type="np", **asked).images
    assert card["family"] == family and relative(batch.latents, latents) < 1e-5
    assert np.abs(pictures_as_shown(batch) - pictures).max() < 1e-4
    first, second = drawn(bundle, tmp_path / "out", "--prompt", PROMPT, "--prompt", "a dog barks").values()
    assert size(first) == (16, 16, 8, 2) and first != second


@pytest.mark.slow
@pytest.mark.parametrize(("make", "side"), [(saved.pixels, 8), (saved.latents, 16)])
def test_pictures_of_noise_are_the_pipeline(make, side, tmp_path, hub_home, monkeypatch):
    bundle, pipe, card = hub_chain(make, "owner/noise", tmp_path, hub_home, CLASSES)
    batch, noise = ours(bundle, card, prompt="no class", guidance=1.0)
    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", lambda *a, **k: noise.clone())
    pictures = pipe(num_inference_steps=STEPS, output_type="np").images
    assert card["family"] == "unconditional" and np.abs(pictures_as_shown(batch) - pictures).max() < 1e-4
    first, second = drawn(bundle, tmp_path / "out", "--seed", "0-1").values()
    assert size(first) == (side, side, 8, 2) and first != second
