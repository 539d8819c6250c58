"""The families of sound from their authors' checkpoints: known answers in ONNX, then `generate` without torch.

The checkpoints lie in the cache of the hub, which cannot be reached.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.runtime.artifact import load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.schedule import load_schedule
from tests.exporter.checkpoints.chains import TWO, answers, chain, ends, heard
from tests.exporter.checkpoints.conftest import (
    BIGVGAN,
    DATA,
    LIGHT,
    STAGE,
    bigvgan_weights,
    prefixed,
    random_like,
    relative,
    stage_weights,
    unet_weights,
    write,
    write_tokenizer,
)
from tests.exporter.hub_cache import as_snapshot

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
FILM = {key: value for key, value in LIGHT.items() if key != "context_dim"}
FILM |= {"extra_film_condition_dim": 6, "extra_film_use_concat": True}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
def test_an_audioldm_checkpoint_turns_prompts_into_sound(tmp_path, hub_home):
    said, stage = sound_stage(2)
    weights = prefixed(UNET, unet_weights(FILM)) | prefixed("first_stage_model.", stage)
    weights |= prefixed("cond_stage_model.model.", clap_weights(6)) | {"scale_factor": torch.tensor(0.9)}
    sizes = {"latent_t_size": 8, "latent_f_size": 8, "vocoder_config": said["vocoder_config"]}
    folder = write(tmp_path / "audioldm", weights, FILM, said, **sizes)
    write_tokenizer(folder)
    bundle, _ = chain(
        tmp_path, as_snapshot(folder, "owner/audioldm-s-full", hub_home), "audioldm", sampling="guidance = 2.5"
    )
    text_encoder = Bundle(bundle).component("text_encoder")
    assert ends(text_encoder) == (["input_ids", "attention_mask"], ["text_embeds"])
    sounds = heard(bundle, tmp_path / "out", *TWO)
    assert [len(sound) for sound in sounds] == [2048, 2048] and not np.array_equal(*sounds)


@pytest.mark.slow
def test_a_make_an_audio_checkpoint_turns_prompts_into_sound_by_graphs_that_answer_as_the_original_did(
    tmp_path, hub_home
):
    folder = shutil.copytree(DATA / "make-an-audio", tmp_path / "maa")
    caption = prefixed("cond_stage_model.caption_encoder.", caption_weights(48))
    torch.save({"state_dict": read_tensors(DATA / "make-an-audio" / "model.ckpt") | caption}, folder / "model.ckpt")
    write_tokenizer(folder, pad="[PAD]")
    (folder / "bigvgan").mkdir()
    torch.save({"generator": bigvgan_weights(80)}, folder / "bigvgan" / "best_netG.pt")
    (folder / "bigvgan" / "args.yml").write_text(json.dumps(BIGVGAN))
    bundle, _ = chain(tmp_path, as_snapshot(folder, "owner/make-an-audio", hub_home), "make-an-audio")
    made, io = Bundle(bundle), load_file(folder / "io.safetensors")
    given = {"sample": io["x"], "timestep": io["t"], "encoder_hidden_states": io["context"], "latents": io["latent"]}
    assert relative(answers(made.float_unet, given), io["eps"]) < 1e-3
    assert relative(answers(made.component("vae_decoder"), given), io["decoded"]) < 1e-3
    assert ends(made.component("text_encoder")) == (["input_ids", "attention_mask"], ["encoder_hidden_states"])
    assert ends(made.component("vocoder")) == (["mel"], ["waveform"])
    assert len(load_schedule(made.scheduler).alpha_bar) == 1000
    records, _ = load_tensors(bundle / "samples" / "records.safetensors", "samples")
    assert records["x_t"].shape == (6, 4, 10, 12) and records["cond_encoder_hidden_states"].shape == (6, 77, 48)
    sounds = heard(bundle, tmp_path / "out", *TWO)
    assert [len(sound) for sound in sounds] == [576, 576] and not np.array_equal(*sounds)
