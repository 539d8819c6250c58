"""Every family from its authors' checkpoint to samples: the chain, then `generate` from the bundle without torch.

But for one, the checkpoints lie in the cache of the hub, which cannot be reached.
"""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.stages import run_recipe
from quaver.runtime.artifact import load_lines, load_tensors
from quaver.runtime.audio import read_wav
from quaver.runtime.progress import quiet
from tests.exporter.checkpoints.conftest import (
    BIGVGAN,
    CLASSES,
    STAGE,
    bigvgan_weights,
    prefixed,
    random_like,
    stage_weights,
    unet_weights,
    write,
    write_tokenizer,
)
from tests.exporter.hub_cache import as_snapshot

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
NOISE = {key: value for key, value in CLASSES.items() if key not in ("use_spatial_transformer", "context_dim")}
RECIPE = """
[model]
family = "{family}"
source = "{source}"
{model}
[prompts]
{prompts}
count = 4
held_out = 4
budget = 0
[sampling]
{sampling}
steps = 3
[capture]
records = 6
[export]
targets = ["ort-cpu"]
[stats]
trajectories = 4
[validate]
trajectories = 4
clips = 1
latency_runs = 1
latency_warmup = 1
generations = 0
min_speedup = 0.0
"""
ALONE = ("--batch", "1")  # sums of other shapes may round otherwise
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "diffusers", "transformers", "scipy", "yaml", "huggingface_hub"))
from quaver.exporter.cli import main
sys.exit(main(["generate", *sys.argv[1:], "--quiet", "--threads", "1"]))
"""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def chain(place, source, family, *, model="", prompts="", sampling=""):
    """The bundle of a checkpoint, and its report."""
    recipe = place / "made.toml"
    said = RECIPE.format(family=family, source=source, model=model, prompts=prompts, sampling=sampling)
    recipe.write_text(said, encoding="utf-8")
    run_recipe(recipe, progress=quiet())
    bundle = place / "made"
    return bundle, json.loads((bundle / "report.json").read_text())


def generate(bundle, *arguments):
    """Run `quaver generate` where only the base install can be imported."""
    command = [sys.executable, "-c", WITHOUT, str(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def drawn(bundle, place, *arguments):
    """The bytes of the files that `quaver generate` writes into a folder."""
    done = generate(bundle, *arguments, "--out", str(place))
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def heard(bundle, place, *arguments):
    """The sounds [N] that `quaver generate` writes into a folder, none of them silent."""
    drawn(bundle, place, *arguments)
    found = [read_wav(path) for path in sorted(place.iterdir())]
    assert {rate for _, rate in found} == {16_000} and all(sound.std() > 0 for sound, _ in found)
    return [sound for sound, _ in found]


def size(png):
    """Width, height, bits and kind of a PNG file; kind 2 is red, green and blue."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">IIBB", png[16:26])


@pytest.mark.slow
def test_classes_become_pictures(imagenet, tmp_path, hub_home):
    asked, source = 'source = "classes"\nclasses = 4', as_snapshot(imagenet[0], "owner/cin256", hub_home)
    bundle, report = chain(tmp_path, source, "ldm", prompts=asked, sampling="eta = 1.0\nguidance = 1.5")
    rows = load_lines(bundle / "prompts.jsonl", "prompts")
    for split in ("calib", "validate"):
        assert {row["text"] for row in rows if row["split"] == split} == {f"class {n}" for n in range(4)}
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    table = imagenet[1].numpy()
    assert np.array_equal(records["uncond_encoder_hidden_states"], table[-1][None, None])
    assert all(
        any(np.array_equal(row[0], token) for token in table[:4]) for row in records["cond_encoder_hidden_states"]
    )
    assert {clip["file"].partition(".")[2] for clip in report["clips"][0]["takes"]} >= {"00-float.png", "01-none.png"}
    files = drawn(bundle, tmp_path / "out", "--prompt", "3", "--prompt", "class 3", "--prompt", "no class", *ALONE)
    named, again, without = files.values()
    assert size(named) == (16, 16, 8, 2) and named == again != without
    assert list(drawn(bundle, tmp_path / "rows", "--row", "3", *ALONE).values()) == [named]


@pytest.mark.slow
def test_noise_alone_becomes_pictures(tmp_path):
    stage = stage_weights(STAGE) | {"quantize.embedding.weight": torch.randn(64, 2)}
    weights = prefixed(UNET, unet_weights(NOISE)) | prefixed("first_stage_model.", stage)
    folder = write(tmp_path / "lsun", weights, NOISE, STAGE, image_size=8)
    bundle, report = chain(tmp_path, folder, "ldm", prompts='source = "classes"', sampling="eta = 1.0\nguidance = 1.0")
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    assert records["x_t"].shape == (6, 2, 8, 8) and not [name for name in records if "cond" in name]
    assert report["trajectories"] == 4
    files = drawn(bundle, tmp_path / "out", "--seed", "0-2")
    assert [size(png) for png in files.values()] == [(16, 16, 8, 2)] * 3 and len(set(files.values())) == 3
    refused = generate(bundle, "--prompt", "a bed")
    assert refused.returncode == 1 and "draws from noise alone and cannot heed 'a bed'" in refused.stderr


def sound_stage(channels):
    """Settings and weights of a first stage with its vocoder: latents [B, C, 8, 8], mel [B, 1, 16, 16], 2048 long."""
    ddconfig = STAGE["ddconfig"] | {"z_channels": channels, "out_ch": 1}
    voice = {
        "upsample_rates": [16, 8],
        "upsample_kernel_sizes": [32, 16],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
    }
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=16, upsample_initial_channel=16, **voice)
    with torch.device("meta"):
        network = transformers.SpeechT5HifiGan(config)
    said = {"embed_dim": channels, "ddconfig": ddconfig, "scale_factor": 0.9, "vocoder_config": voice}
    vocoder = random_like(network, {f"upsampler.{i}": f"ups.{i}" for i in range(2)})
    return said, stage_weights(said) | prefixed("vocoder.", vocoder)


def tower(kind, **more):
    """BERT or RoBERTa of one layer, 64 wide, over 80 positions."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config, network = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "clap": (transformers.ClapTextConfig, transformers.ClapTextModelWithProjection),
    }[kind]
    return network(config(**sizes, intermediate_size=32, max_position_embeddings=80, **more)).state_dict()


def clap_weights(size):
    """CLAP's text branch with a projection to `size`, by the keys of AudioLDM's checkpoint."""
    names = {"text_model.": "text_branch.", "text_projection.linear1": "text_projection.0"}
    names |= {"text_projection.linear2": "text_projection.2"}
    weights = {}
    for key, value in tower("clap", projection_dim=size).items():
        old = next(name for name in names if key.startswith(name))
        weights[key.replace(old, names[old])] = value
    del weights["text_branch.embeddings.token_type_ids"]
    return weights


def caption_weights(size):
    """Make-An-Audio's text encoder with states of `size`, by the keys of its checkpoint."""
    head = {"linear1.weight": torch.randn(size, 64) / 8, "linear2.weight": torch.randn(size, size)}
    head |= {"layer_norm.weight": torch.ones(size), "layer_norm.bias": torch.zeros(size)}
    return prefixed("base.", tower("bert")) | prefixed("projection.", head)


@pytest.mark.slow
def test_a_tango_folder_turns_prompts_into_sound(tango_folder, tmp_path, hub_home):
    folder = tmp_path / "tango"
    shutil.copytree(tango_folder, folder)
    said, weights = sound_stage(8)
    torch.save(weights, folder / "pytorch_model_vae.bin")
    (folder / "vae_config.json").write_text(json.dumps(said))
    source = as_snapshot(folder, "declare-lab/tango", hub_home)
    bundle, _ = chain(tmp_path, source, "tango", model="latent = [8, 8, 8]", sampling='sampler = "ddpm"')
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    states, mask = (records[f"cond_encoder_{name}"] for name in ("hidden_states", "attention_mask"))
    assert states.shape == (6, 64, 48) and mask.shape == (6, 64) and (mask.sum(axis=1) < 64).all()
    assert records["uncond_encoder_attention_mask"].sum() == 1  # </s> alone
    sounds = heard(bundle, tmp_path / "out", "--prompt", "a low note", "--prompt", "a dog barks", "--correct", "auto")
    assert [len(sound) for sound in sounds] == [2048, 2048] and not np.array_equal(*sounds)


@pytest.mark.slow
def test_an_audioldm_checkpoint_turns_prompts_into_sound(tmp_path, hub_home):
    said, stage = sound_stage(2)
    film = {**NOISE, "use_spatial_transformer": True, "extra_film_condition_dim": 6, "extra_film_use_concat": True}
    weights = prefixed(UNET, unet_weights(film)) | prefixed("first_stage_model.", stage)
    weights |= prefixed("cond_stage_model.model.", clap_weights(6)) | {"scale_factor": torch.tensor(0.9)}
    sizes = {"latent_t_size": 8, "latent_f_size": 8, "vocoder_config": said["vocoder_config"]}
    folder = write(tmp_path / "audioldm", weights, film, said, **sizes)
    write_tokenizer(folder)
    bundle, _ = chain(
        tmp_path, as_snapshot(folder, "owner/audioldm-s-full", hub_home), "audioldm", sampling="guidance = 2.5"
    )
    sounds = heard(bundle, tmp_path / "out", "--prompt", "a low note", "--prompt", "a dog barks")
    assert [len(sound) for sound in sounds] == [2048, 2048] and not np.array_equal(*sounds)


@pytest.mark.slow
def test_a_make_an_audio_checkpoint_turns_prompts_into_sound(tmp_path, hub_home):
    said, stage = sound_stage(2)
    weights = prefixed(UNET, unet_weights(CLASSES)) | prefixed("first_stage_model.", stage)
    weights |= prefixed("cond_stage_model.caption_encoder.", caption_weights(12))
    folder = write(tmp_path / "maa", weights, CLASSES, said, mel_dim=10, mel_length=8)
    write_tokenizer(folder, pad="[PAD]")
    (folder / "bigvgan").mkdir()
    torch.save({"generator": bigvgan_weights(20)}, folder / "bigvgan" / "best_netG.pt")
    (folder / "bigvgan" / "args.yml").write_text(json.dumps(BIGVGAN))
    bundle, _ = chain(tmp_path, as_snapshot(folder, "owner/make-an-audio", hub_home), "make-an-audio")
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    assert records["x_t"].shape == (6, 2, 10, 8) and records["cond_encoder_hidden_states"].shape == (6, 77, 12)
    sounds = heard(bundle, tmp_path / "out", "--prompt", "a low note", "--prompt", "a dog barks")
    assert [len(sound) for sound in sounds] == [96, 96] and not np.array_equal(*sounds)
