"""Every family from files on the disk, as a user names them."""

import shutil

import pytest
from safetensors.torch import load_file

from quaver.exporter.checkpoints import first_stage
from quaver.exporter.checkpoints.layout import find_checkpoint, read_settings
from quaver.exporter.checkpoints.original import load_original, schedule_of
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.exporter.trace import ModelSettings, latent_shape, trace
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import find_family
from quaver.runtime.progress import quiet
from tests.exporter.checkpoints.conftest import (
    DATA,
    FILM,
    TINY,
    prefixed,
    relative,
    unet_weights,
    write,
)

torch = pytest.importorskip("torch")


def test_a_class_conditional_checkpoint_has_its_table_and_its_codebook(imagenet):
    folder, table = imagenet
    model = load_original(find_checkpoint(folder), "ldm")
    assert list(model.parts) == ["class_encoder", "image_decoder"] and model.latent == (2, 8, 8)
    labels = torch.tensor([4, 0])
    assert torch.equal(model.parts["class_encoder"](labels), table[labels][:, None])
    assert model.card["classes"] == 4 and model.card["sampler"]["steps"] == 250
    assert model.rows["encoder_hidden_states"].shape == (2, 1, 12)
    assert model.parts["image_decoder"](torch.randn(1, 2, 8, 8)).shape == (1, 3, 16, 16)


def test_a_latent_goes_to_the_nearest_vector_of_the_codebook():
    codebook = torch.randn(7, 2)
    latents = torch.randn(3, 2, 4, 4)
    distance = (latents[:, None] - codebook[None, :, :, None, None]).square().sum(2)
    expected = codebook[distance.argmin(1)].movedim(-1, 1)
    assert torch.equal(first_stage.nearest(latents, codebook), expected)


def test_a_tango_folder_gives_all_that_draws_sound(tango_folder):
    model, io = load_original(find_checkpoint(tango_folder), "tango"), load_file(tango_folder / "io.safetensors")
    assert list(model.parts) == ["text_encoder", "vae_decoder", "vocoder"]
    states = model.parts["text_encoder"](io["input_ids"], io["attention_mask"].long())
    assert relative(states, io["encoder_hidden_states"]) < 1e-4
    mel = model.parts["vae_decoder"](io["latent"])
    assert relative(mel, io["mel"]) < 1e-4
    assert relative(model.parts["vocoder"](mel), io["waveform"][:, 0]) < 1e-4
    assert model.scheduler["prediction_type"] == "v_prediction" and model.latent == (8, 256, 16)


def test_tangos_unet_is_the_one_diffusers_loads(tango_folder):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DConditionModel.from_config(TINY).eval()
    main = read_tensors(tango_folder / "pytorch_model_main.bin")
    theirs.load_state_dict({k.removeprefix("unet."): v for k, v in main.items() if k.startswith("unet.")})
    unet = load_original(find_checkpoint(tango_folder), "tango").unet
    x, states, mask = torch.randn(2, 8, 4, 4), torch.randn(2, 5, 48), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    given = (x, torch.tensor([3, 9]), states)
    found = unet(*given, encoder_attention_mask=mask).sample
    assert relative(found, theirs(*given, encoder_attention_mask=mask).sample.detach()) < 1e-6
    states[1, 2:] = 100.0
    assert relative(unet(*given, encoder_attention_mask=mask).sample, found) < 1e-6


def test_half_of_tangos_first_stage_is_refused(tango_folder, tmp_path):
    shutil.copytree(tango_folder, tmp_path / "t")
    (tmp_path / "t" / "pytorch_model_vae.bin").unlink()
    with pytest.raises(RecipeError, match=r"pytorch_model_vae\.bin does not exist"):
        load_original(find_checkpoint(tmp_path / "t"), "tango")


def test_an_audioldm_checkpoint_is_one_file(tmp_path):
    said = read_settings(DATA / "tango" / "vae_config.json")
    stage = prefixed("first_stage_model.", read_tensors(DATA / "tango" / "pytorch_model_vae.bin"))
    film = FILM | {"in_channels": 8, "out_channels": 8}
    weights = stage | prefixed(UNET, unet_weights(film)) | {"scale_factor": torch.tensor(said["scale_factor"])}
    sizes = {"latent_t_size": 16, "latent_f_size": 16, "vocoder_config": said["vocoder_config"]}
    model = load_original(find_checkpoint(write(tmp_path / "a", weights, film, said, **sizes)), "audioldm")
    io = load_file(DATA / "tango" / "io.safetensors")
    assert relative(model.parts["vae_decoder"](io["latent"]), io["mel"]) < 1e-4
    assert model.latent == (8, 16, 16) and list(model.parts) == ["vae_decoder", "vocoder"]
    assert model.rows["class_labels"].shape == (2, 6)


def test_make_an_audio_finds_its_other_checkpoints_beside_it(tmp_path):
    folder = tmp_path / "maa"
    shutil.copytree(DATA / "make-an-audio", folder)
    assert list(load_original(find_checkpoint(folder), "make-an-audio").parts) == ["vae_decoder"]
    (folder / "bigvgan").mkdir()
    torch.save({"generator": {"conv_pre.weight": torch.ones(1)}}, folder / "bigvgan" / "best_netG.pt")
    (folder / "bigvgan" / "args.yml").write_text("upsample_rates: [4, 4]\nupsample_kernel_sizes: [8, 8]\n")
    with pytest.raises(RecipeError, match=r"best_netG\.pt holds 0 residual blocks, .* describes 2 x 3"):
        load_original(find_checkpoint(folder), "make-an-audio")


def test_another_familys_checkpoint_names_the_likely_one(tango_folder):
    with pytest.raises(RecipeError, match=r"looks like tango, expected audioldm .*set model\.family = 'tango'"):
        trace(
            Bundle(tango_folder / "b"), ModelSettings(source=str(tango_folder)), stamp=Stamp("trace"), progress=quiet()
        )


def test_weights_without_a_configuration_say_what_to_put_there(imagenet, tmp_path):
    shutil.copyfile(imagenet[0] / "model.ckpt", tmp_path / "cin.ckpt")
    with pytest.raises(RecipeError, match=r"put the model's \.yaml there as cin\.yaml"):
        load_original(find_checkpoint(tmp_path / "cin.ckpt"), "ldm")


def test_the_schedule_is_the_configurations(tmp_path):
    published = next(iter(find_family("ldm").models.values()))
    said = schedule_of({"linear_start": 0.001, "linear_end": "2e-2", "timesteps": 500}, published)
    assert (said["beta_start"], said["beta_end"], said["num_train_timesteps"]) == (0.001, 0.02, 500)
    assert said["beta_schedule"] == "scaled_linear" and said["prediction_type"] == "epsilon"
    assert schedule_of({"parameterization": "v"}, published)["prediction_type"] == "v_prediction"
    with pytest.raises(RecipeError, match="beta_schedule is 'cosine'"):
        schedule_of({"beta_schedule": "cosine"}, published)


def test_latents_that_the_levels_cannot_halve_name_those_they_can():
    config = {"in_channels": 4, "block_out_channels": (1, 2, 3)}
    with pytest.raises(RecipeError, match=r"multiples of 4: 76 or 80 for 78"):
        latent_shape(config, ModelSettings(), own=(4, 8, 78))
    assert latent_shape(config, ModelSettings(frames=16), own=(4, 8, 12)) == (4, 16, 12)
