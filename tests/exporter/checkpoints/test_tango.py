"""Tango from its authors' folder to sound: known answers in ONNX, then `generate` without torch."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.family import find_family, read_card
from tests.exporter.checkpoints.chains import TWO, answers, chain, heard
from tests.exporter.checkpoints.conftest import relative
from tests.exporter.hub_cache import as_snapshot

pytest.importorskip("torch"), pytest.importorskip("transformers")


@pytest.mark.slow
def test_a_tango_folder_turns_prompts_into_sound_by_graphs_that_answer_as_the_original_did(
    tango_folder, tmp_path, hub_home
):
    source = as_snapshot(tango_folder, "declare-lab/tango", hub_home)
    bundle, _ = chain(tmp_path, source, "tango", model="latent = [8, 16, 16]", sampling='sampler = "ddpm"')
    made, io = Bundle(bundle), load_file(tango_folder / "io.safetensors")
    given = {**io, "attention_mask": io["attention_mask"].astype(np.int64), "latents": io["latent"]}
    assert relative(answers(made.component("text_encoder"), given), io["encoder_hidden_states"]) < 1e-3
    assert relative(answers(made.component("vae_decoder"), given), io["mel"]) < 1e-3
    assert relative(answers(made.component("vocoder"), given), io["waveform"][:, 0]) < 1e-3
    card = read_card(made)
    assert card["prediction"] == "v_prediction" and card["sampler"]["sampler"] == "ddpm"
    assert set(find_family("tango").components) == set(card["components"])
    with open_engine(made.float_unet, threads=1) as engine:
        assert engine.inputs == ("sample", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    states, mask = (records[f"cond_encoder_{name}"] for name in ("hidden_states", "attention_mask"))
    assert states.shape == (6, 64, 48) and mask.shape == (6, 64) and (mask.sum(axis=1) < 64).all()
    assert records["uncond_encoder_attention_mask"].sum() == 1  # </s> alone
    sounds = heard(bundle, tmp_path / "out", *TWO, "--correct", "auto")
    assert [len(sound) for sound in sounds] == [10272, 10272] and not np.array_equal(*sounds)
