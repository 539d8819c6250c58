"""TANGO's folder: a U-Net of diffusers and T5's encoder in one file, AudioLDM's decoder and vocoder in another.

    main_config.json    unet_model_config_path, relative to the folder; the published U-Net's where it is not there
    pytorch_model_main.bin                        unet.*, text_encoder.*
    vae_config.json, pytorch_model_vae.bin        decoder.*, post_quant_conv.*, vocoder.*
    stft_config.json, pytorch_model_stft.bin      sound to mel, which nothing needs to draw

The U-Net keeps the names of diffusers; its schedule is that of Stable Diffusion 2.1, which the folder only names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.exporter.checkpoints.audioldm import sound_parts
from quaver.exporter.checkpoints.layout import Checkpoint, read_settings
from quaver.exporter.checkpoints.original import example, first_published
from quaver.exporter.checkpoints.places import assign, build
from quaver.exporter.checkpoints.signs import check_family
from quaver.exporter.checkpoints.tensors import read_tensors, under
from quaver.exporter.checkpoints.text_encoder import load_t5
from quaver.exporter.model.source import Model
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

TOKENS = 64  # that the U-Net is traced for; what is padded is masked, so that it changes nothing but the time
SCALE = 0.9227914214134216  # scale_factor of the published first stage
UNET: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 8,
    "sample_size": [32, 2],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
    "upcast_attention": True,
}


def load(checkpoint: Checkpoint) -> Model:
    """The model of a TANGO folder; decoder and vocoder where it has them.

    Raises: RecipeError where a file is missing, or weights and configuration do not fit.
    """
    main, folder, published = checkpoint.weights, checkpoint.weights.parent, first_published("tango")
    tensors = read_tensors(main)
    check_family(tensors, "tango", main)
    config = unet_config(folder)
    text, width = under(tensors, "text_encoder."), config["cross_attention_dim"]
    return Model(
        folder=folder,
        unet=load_unet(config, under(tensors, "unet."), what=f"the U-Net of {main}"),
        parts={"text_encoder": load_t5(text, what=f"the text encoder of {main}"), **first_stage_parts(folder)},
        latent=published.latent,
        scheduler=dict(published.scheduler),
        rows={"encoder_hidden_states": example(TOKENS, width), "encoder_attention_mask": example_mask(TOKENS)},
        card={"sample_rate": published.sample_rate, "sampler": published.sampling},
        tokenizer=published.tokenizer,
        tokens=TOKENS,
    )


def unet_config(folder: Path) -> Mapping[str, Any]:
    """The U-Net's configuration of a folder. Raises: RecipeError when it was made from another pretrained U-Net."""
    path = folder / "main_config.json"
    said = read_settings(path) if path.is_file() else {}
    if said.get("unet_model_name"):
        raise RecipeError(f"{path} has a U-Net made of {said['unet_model_name']}, which is not supported")
    config = folder / str(said.get("unet_model_config_path"))
    return read_settings(config) if config.is_file() else UNET


def load_unet(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, what: str) -> torch.nn.Module:
    """A conditional U-Net of diffusers with the weights `tensors`. Raises: RecipeError where they do not fit."""
    return assign(make_unet(config), tensors, what=what)


def make_unet(config: Mapping[str, Any]) -> torch.nn.Module:
    """The U-Net of a configuration on the meta device."""
    diffusers = need("diffusers", extra="export")
    return build(lambda: diffusers.UNet2DConditionModel.from_config(dict(config)))


def first_stage_parts(folder: Path) -> dict[str, torch.nn.Module]:
    """vae_decoder and vocoder of a folder, none where it has neither weights nor configuration of them.

    Raises: RecipeError when it has one of the two.
    """
    config, weights = folder / "vae_config.json", folder / "pytorch_model_vae.bin"
    if not config.is_file() and not weights.is_file():
        return {}
    params, tensors = read_settings(config), read_tensors(weights)
    return sound_parts(tensors, params, float(params.get("scale_factor", SCALE)), params, weights)


def example_mask(tokens: int) -> np.ndarray:
    """A mask [2, tokens] float32 of one whole prompt and one of half the length."""
    return (np.arange(tokens) < np.array([[tokens], [tokens // 2]])).astype(np.float32)
