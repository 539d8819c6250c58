"""Checkpoints with known outputs, and checkpoints written here in the layouts of the published ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from quaver.exporter.checkpoints import first_stage, ldm, tango
from quaver.exporter.checkpoints.places import place_of
from quaver.exporter.checkpoints.signs import UNET

torch = pytest.importorskip("torch")
DATA = Path(__file__).parents[2] / "data" / "checkpoints"
STAGE = {
    "embed_dim": 2,
    "ddconfig": {"z_channels": 2, "resolution": 8, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
}
CLASSES = {
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "context_dim": 12,
}
LIGHT = CLASSES | {"attention_resolutions": []}  # its middle alone attends, and is traced sooner
FILM = {
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 32,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "extra_film_condition_dim": 6,
    "extra_film_use_concat": True,
}
TINY = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 48,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "upcast_attention": True,
}
BIGVGAN = {
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [5, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [1, 3]],
    "snake_logscale": True,
}


def relative(found, expected):
    """|found - expected| / |expected|."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def random_like(module, places=None, seed=0):
    """Weights of a module on the meta device by the keys of a checkpoint: of variance 1 / fan-in, norms about 1."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=draw)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        weights[place_of(name, places)] = value * scale + ("norm" in name and name.endswith("weight"))
    return weights


def unet_weights(params):
    """An LDM U-Net of random weights, by the keys below model.diffusion_model."""
    shape = ldm.read_shape(params)
    return random_like(ldm.make_unet(shape), dict(ldm.places(shape)))


def prefixed(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


def write(folder, tensors, unet, stage, **params):
    """A checkpoint of latent diffusion with its configuration beside it."""
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": tensors}, folder / "model.ckpt")
    said = {"unet_config": {"params": unet}, "first_stage_config": {"params": stage}, **params}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"params": said}}))
    return folder


def stage_weights(params):
    shape = first_stage.read_shape(params)
    stage = torch.nn.Module()
    stage.post_quant_conv = torch.nn.Conv2d(shape.embed_dim, shape.z_channels, 1, device="meta")
    stage.decoder = first_stage.make_decoder(shape)
    return random_like(stage, dict(first_stage.places(shape)))


def write_tokenizer(folder, pad="<pad>"):
    """A tokenizer of eight words beside a checkpoint, which neither cuts nor pads and ends every prompt with </s>."""
    tokenizers = pytest.importorskip("tokenizers")
    words = [pad, "</s>", "<unk>", "a", "low", "note", "dog", "barks"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (folder / "tokenizer").mkdir()
    made.save(str(folder / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    draw = torch.Generator().manual_seed(0)
    table, codebook = 10 * torch.randn(5, 12, generator=draw), torch.randn(64, 2, generator=draw)
    stage = stage_weights(STAGE) | {"quantize.embedding.weight": codebook, "encoder.conv_in.weight": torch.ones(1)}
    weights = prefixed(UNET, unet_weights(LIGHT)) | prefixed("first_stage_model.", stage)
    weights["cond_stage_model.embedding.weight"] = table
    folder = tmp_path_factory.mktemp("imagenet")
    write(folder, weights, LIGHT, STAGE, image_size=8, linear_start=0.0015, linear_end=0.0195, timesteps=1000)
    return folder, table


@pytest.fixture(scope="module")
def tango_folder(tmp_path_factory):
    """The folder of the known outputs, with a U-Net of random weights in its main file."""
    folder = tmp_path_factory.mktemp("tango") / "tango"
    shutil.copytree(DATA / "tango", folder)
    text = load_file(folder / "text_encoder.safetensors")
    unet = random_like(tango.make_unet(TINY))
    torch.save(prefixed("unet.", unet) | prefixed("text_encoder.", text), folder / "pytorch_model_main.bin")
    (folder / "configs" / "diffusion_model_config.json").write_text(json.dumps(TINY))
    write_tokenizer(folder)
    return folder


def bigvgan_weights(bins):
    """A BigVGAN of 8 channels over mel bins, by the keys of its checkpoint, normalized weights among them."""
    draw = np.random.default_rng(0)
    sizes = {"conv_pre": (8, bins, 7), "ups.0.0": (8, 4, 5), "ups.1.0": (4, 2, 4), "conv_post": (1, 2, 7)}
    snakes = {"activation_post": 2}
    for stage, width in enumerate((4, 2)):
        for kernel, n in ((3, 2 * stage), (5, 2 * stage + 1)):
            sizes |= {f"resblocks.{n}.convs{c}.{i}": (width, width, kernel) for c in (1, 2) for i in (0, 1)}
            snakes |= {f"resblocks.{n}.activations.{i}": width for i in range(4)}
    made = {}
    for name, size in sizes.items():
        made[f"{name}.weight_v"] = draw.standard_normal(size)
        made[f"{name}.weight_g"] = draw.uniform(0.5, 1.5, (size[0], 1, 1))
        made[f"{name}.bias"] = draw.standard_normal(size[1] if name.startswith("ups") else size[0]) / 4
    for name, width in snakes.items():
        made |= {f"{name}.act.alpha": draw.normal(0, 0.5, width), f"{name}.act.beta": draw.normal(0, 0.5, width)}
        made |= {f"{name}.upsample.filter": np.zeros((1, 1, 12)), f"{name}.downsample.lowpass.filter": np.zeros(12)}
    return {key: torch.tensor(value, dtype=torch.float32) for key, value in made.items()}
