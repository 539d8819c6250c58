import json

import pytest

from quaver.exporter.checkpoints.layout import find_checkpoint, read_settings, section
from quaver.exporter.checkpoints.signs import check_family, likely_family
from quaver.runtime.errors import RecipeError

torch = pytest.importorskip("torch")
pytest.importorskip("yaml")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "config"),
    {
        "same name": (("m.ckpt", "m.yaml", "config.yaml"), "m.yaml"),
        "usual name": (("m.ckpt", "config.yaml", "other.yaml"), "config.yaml"),
        "only one": (("m.ckpt", "txt2audio_args.yaml"), "txt2audio_args.yaml"),
        "none to choose": (("m.ckpt", "a.yaml", "b.yaml"), None),
    }.values(),
)
def test_a_configuration_is_found_beside_the_weights(tmp_path, names, config):
    found = find_checkpoint(touch(tmp_path, *names))
    assert found.weights == tmp_path / "m.ckpt"
    assert found.config == (tmp_path / config if config else None)


def test_an_edited_vocoder_beside_a_checkpoint_is_a_file_of_it(tmp_path):
    found = find_checkpoint(touch(tmp_path, "m.ckpt", "m.yaml", "bigvgan/g.pt", "tokenizer/tokenizer.json"))
    assert found.files == [tmp_path / name for name in ("m.ckpt", "m.yaml", "bigvgan", "tokenizer")]


def test_half_of_tango_names_the_file_that_is_missing(tmp_path):
    with pytest.raises(RecipeError, match=r"not its weights: put pytorch_model_main\.bin beside it"):
        find_checkpoint(touch(tmp_path, "main_config.json", "pytorch_model_vae.bin"))


def test_the_layouts_of_tango_and_of_diffusers_are_told_apart(tmp_path):
    tango = touch(tmp_path / "t", "main_config.json", "pytorch_model_main.bin", "pytorch_model_vae.bin")
    assert find_checkpoint(tango).weights.name == "pytorch_model_main.bin"
    assert find_checkpoint(touch(tmp_path / "d", "unet/config.json", "model.ckpt")) is None
    assert find_checkpoint("owner/name") is None


@pytest.mark.parametrize(
    ("names", "said"),
    {
        "no weights": (("config.yaml",), "holds the configuration config.yaml and no weights"),
        "unfinished": (("config.yaml", "m.ckpt.part"), "m.ckpt.part, a download that is not finished"),
        "two": (("a.ckpt", "b.ckpt"), "holds a.ckpt, b.ckpt: name one of them"),
    }.values(),
)
def test_part_of_a_checkpoint_is_refused(tmp_path, names, said):
    with pytest.raises(RecipeError, match=said):
        find_checkpoint(touch(tmp_path, *names))


def test_a_configuration_makes_no_objects(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: !!python/object/apply:os.getcwd []")
    with pytest.raises(RecipeError, match=r"c\.yaml is no configuration"):
        read_settings(path)
    path.write_text("- 1")
    with pytest.raises(RecipeError, match="holds list, expected settings by name"):
        read_settings(path)
    path.with_suffix(".json").write_text(json.dumps({"model": {"params": 3}}))
    with pytest.raises(RecipeError, match=r"has no params: \(of model.params\)"):
        section(read_settings(path.with_suffix(".json")), "model", "params", where=path)


SIGNS = {
    "audioldm": {"model.diffusion_model.film_emb.weight": (4, 2)},
    "tango": {"unet.conv_in.weight": (4, 2), "text_encoder.shared.weight": (4, 2)},
    "make-an-audio": {"first_stage_model.decoder.conv_out.weight": (1, 4, 3, 3)},
    "ldm": {"first_stage_model.decoder.conv_out.weight": (3, 4, 3, 3)},
    "stable diffusion": {"cond_stage_model.transformer.text_model.x": (1,)},
    "a HiFi-GAN vocoder": {"conv_pre.weight_v": (4, 2, 7)},
    "a BigVGAN vocoder": {"conv_pre.weight_v": (4, 2, 7), "activation_post.act.alpha": (4,)},
    "a first stage": {"decoder.conv_in.weight": (4, 2, 3, 3)},
}


@pytest.mark.parametrize(("family", "keys"), SIGNS.items(), ids=SIGNS)
def test_a_checkpoint_carries_the_sign_of_its_family(family, keys):
    common = {"model.diffusion_model.input_blocks.0.0.weight": (4, 2)} if "model" in str(keys) else {}
    tensors = {key: torch.empty(size) for key, size in {**common, **keys}.items()}
    assert likely_family(tensors) == family
    if " " in family:
        return
    check_family(tensors, family, "m.ckpt")
    with pytest.raises(RecipeError, match=rf"looks like {family}, expected other .*set model.family = '{family}'"):
        check_family(tensors, "other", "m.ckpt")


def test_what_carries_no_sign_is_shown():
    with pytest.raises(RecipeError, match=r"no tango checkpoint and none known here \(it has a.weight"):
        check_family({"a.weight": torch.empty(1)}, "tango", "m.ckpt")
