"""Every family from its authors' checkpoint to samples: the chain, then `generate` from the bundle without torch."""

import json
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
from tests.exporter.checkpoints.conftest import CLASSES, STAGE, prefixed, stage_weights, unet_weights, write

torch = pytest.importorskip("torch")
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
def test_classes_become_pictures(imagenet, tmp_path):
    asked = 'source = "classes"\nclasses = 4'
    bundle, report = chain(tmp_path, imagenet[0], "ldm", prompts=asked, sampling="eta = 1.0\nguidance = 1.5")
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
    stage = stage_weights(STAGE) | {"quantize.embedding.weight": torch.randn(7, 2)}
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


@pytest.mark.slow
def test_a_tango_folder_turns_prompts_into_sound(tango_folder, tmp_path):
    bundle, _ = chain(
        tmp_path,
        tango_folder,
        "tango",
        model="latent = [8, 16, 16]",
        sampling='sampler = "ddpm"',
    )
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    states, mask = (records[f"cond_encoder_{name}"] for name in ("hidden_states", "attention_mask"))
    assert states.shape == (6, 64, 48) and mask.shape == (6, 64) and (mask.sum(axis=1) < 64).all()
    assert records["uncond_encoder_attention_mask"].sum() == 1  # </s> alone
    sounds = heard(bundle, tmp_path / "out", "--prompt", "a low note", "--prompt", "a dog barks", "--correct", "auto")
    assert len(sounds) == 2 and not np.array_equal(*sounds)
