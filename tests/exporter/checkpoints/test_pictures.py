"""The family ldm from its authors' checkpoints to pictures: known answers in ONNX, then `generate` without torch."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from quaver.runtime.artifact import load_lines, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.schedule import load_schedule
from tests.exporter.checkpoints.chains import answers, chain, drawn, generate, size
from tests.exporter.checkpoints.conftest import DATA, relative
from tests.exporter.hub_cache import as_snapshot

torch = pytest.importorskip("torch")
ALONE = ("--batch", "1")  # sums of other shapes may round otherwise


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
def test_noise_alone_becomes_pictures_by_graphs_that_answer_as_the_original_did(tmp_path):
    folder = shutil.copytree(DATA / "ldm8-churches", tmp_path / "churches")
    bundle, report = chain(tmp_path, folder, "ldm", prompts='source = "classes"', sampling="eta = 1.0\nguidance = 1.0")
    made, io = Bundle(bundle), load_file(folder / "io.safetensors")
    assert relative(answers(made.float_unet, {"sample": io["x"], "timestep": io["t"]}), io["eps"]) < 1e-3
    assert relative(answers(made.component("image_decoder"), {"latents": io["latent"]}), io["decoded"]) < 1e-3
    assert len(load_schedule(made.scheduler).alpha_bar) == 1000
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    assert records["x_t"].shape == (6, 4, 16, 16) and not [name for name in records if "cond" in name]
    assert report["trajectories"] == 4
    files = drawn(bundle, tmp_path / "out", "--seed", "0-2")
    assert [size(png) for png in files.values()] == [(128, 128, 8, 2)] * 3 and len(set(files.values())) == 3
    refused = generate(bundle, "--prompt", "a bed")
    assert refused.returncode == 1 and "draws from noise alone and cannot heed 'a bed'" in refused.stderr
