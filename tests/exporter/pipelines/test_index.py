"""Whose pipeline a folder is, and what is refused of one."""

import json

import pytest
from safetensors.torch import load_file, save_file

from quaver.exporter.model.source import load_unet
from quaver.exporter.pipelines.audioldm2 import load_gpt2
from quaver.exporter.pipelines.index import FAMILIES, LOADERS, load_pipeline, saved_family
from quaver.exporter.pipelines.networks import load_decoder, load_network
from quaver.exporter.pipelines.stable_diffusion import check_conditions
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import FAMILIES as RUNTIME
from quaver.runtime.plug import plug
from tests.exporter.pipelines import saved

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def index(folder, kind):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def test_every_pipeline_has_a_family_and_what_loads_it():
    assert set(FAMILIES.values()) == set(LOADERS) and set(LOADERS) <= set(RUNTIME)
    assert all(callable(plug(name, LOADERS, what="family")) for name in LOADERS)
    assert all(hasattr(diffusers, kind) for kind in FAMILIES)


def test_the_class_of_its_index_says_whose_a_folder_is(tmp_path):
    assert saved_family(tmp_path) == ""
    assert saved_family(index(tmp_path, "StableDiffusionXLPipeline")) == "sdxl"
    with pytest.raises(RecipeError, match=r"is of the family sdxl, not audioldm: set model\.family = 'sdxl'"):
        load_pipeline(tmp_path, "audioldm")
    with pytest.raises(RecipeError, match=r"is a FluxPipeline, which is not supported; these are: AudioLDMPipeline, "):
        saved_family(index(tmp_path, "FluxPipeline"))


def test_a_network_that_is_not_whole_is_refused_by_module(tmp_path):
    saved.build(lambda: saved.kl(3)).save_pretrained(tmp_path / "vae")
    tensors = load_file(tmp_path / "vae" / WEIGHTS)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(RecipeError, match=r"is no whole AutoencoderKL, 1 keys are missing: decoder.conv_in 1 \(bias\)"):
        load_decoder(tmp_path)
    with pytest.raises(RecipeError, match=r"the part vocoder of a pipeline is not there"):
        load_network(tmp_path, "vocoder", "SpeechT5HifiGan")
    (tmp_path / "vae" / WEIGHTS).unlink()
    with pytest.raises(RecipeError, match=r"does not load as AutoencoderKL .*copy it again"):
        load_decoder(tmp_path)


def test_a_unet_without_weights_is_refused_and_one_in_shards_or_of_earlier_names_is_read(tmp_path):
    unet = saved.build(lambda: saved.noise_unet(3))
    unet.save_pretrained(tmp_path / "unet")
    tensors = load_file(tmp_path / "unet" / WEIGHTS)
    (tmp_path / "unet" / WEIGHTS).unlink()
    with pytest.raises(
        RecipeError, match=r"has a configuration and no weights \(diffusion_pytorch_model.safetensors\)"
    ):
        load_unet(tmp_path)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    earlier = {}
    for key, tensor in tensors.items():
        found = next((name for name in names if name in key), "")
        earlier[key.replace(found, names[found]) if found else key] = tensor
    assert set(earlier) != set(tensors)
    shards = {"0.safetensors": list(earlier)[::2], "1.safetensors": list(earlier)[1::2]}
    for name, keys in shards.items():
        save_file({key: earlier[key] for key in keys}, tmp_path / "unet" / name)
    where = {key: name for name, keys in shards.items() for key in keys}
    (tmp_path / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
    found = load_unet(tmp_path).state_dict()
    assert set(found) == set(tensors) and all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_unet_that_is_conditioned_otherwise_is_refused(tmp_path):
    unet = diffusers.UNet2DConditionModel(**saved.PLAIN, cross_attention_dim=8, class_embed_type="timestep")
    with pytest.raises(RecipeError, match=r"unet has class_embed_type = 'timestep', expected None: export it to ONNX"):
        check_conditions(unet, tmp_path, None)


def test_only_the_networks_that_audioldm2_is_made_of_are_loaded(tmp_path):
    kinds = {"text_encoder_2": ["transformers", "VitsModel"], "language_model": ["transformers", "pipeline"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioLDM2Pipeline", **kinds}))
    with pytest.raises(RecipeError, match=r"a VitsModel as text_encoder_2, expected T5EncoderModel"):
        load_pipeline(tmp_path, "audioldm2")
    with pytest.raises(RecipeError, match=r"a pipeline as language_model, expected GPT2LMHeadModel or GPT2Model"):
        load_gpt2(tmp_path)
