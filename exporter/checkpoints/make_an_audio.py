"""Make-An-Audio's checkpoint, and the vocoder's and text encoder's where they lie beside it.

    maa1_full.ckpt          model.diffusion_model.*, first_stage_model.*, maybe cond_stage_model.caption_encoder.*
    CLAP/*.pth              caption_encoder.*
    bigvgan/*.pt, args.yml  generator

A mel is a picture [B, 1, M, T] here, frequency first. Without a vocoder the pipeline ends at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quaver.exporter.checkpoints import bigvgan, first_stage, ldm
from quaver.exporter.checkpoints.layout import (
    CLAPS,
    VOCODERS,
    WEIGHTS,
    Checkpoint,
    config_beside,
    read_settings,
    section,
)
from quaver.exporter.checkpoints.original import (
    example,
    first_published,
    model_params,
    read_weights,
    schedule_of,
)
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import read_tensors, under
from quaver.exporter.checkpoints.text_encoder import load_caption_encoder
from quaver.exporter.model.source import Model

if TYPE_CHECKING:
    import torch

TOKENS = 77


def load(checkpoint: Checkpoint) -> Model:
    """The model of a Make-An-Audio checkpoint; text encoder and vocoder where they are found.

    Raises: RecipeError where weights and configuration do not fit.
    """
    tensors, params = read_weights(checkpoint, "make-an-audio"), model_params(checkpoint)
    published, what, folder = first_published("make-an-audio"), checkpoint.weights, checkpoint.weights.parent
    shape = ldm.read_shape(section(params, "unet_config", "params", where=checkpoint.config or what))
    decoder = first_stage.read_decoder(tensors, params, where=checkpoint.config or what, what=what)
    return Model(
        folder=checkpoint.weights.parent,
        unet=ldm.load_unet(shape, under(tensors, UNET), what=f"the U-Net of {what}"),
        parts={**text_parts(tensors, folder), "vae_decoder": decoder, **vocoder_parts(folder)},
        latent=(shape.in_channels, params.get("mel_dim", 10), params.get("mel_length", 80)),
        scheduler=schedule_of(params, published),
        rows={"encoder_hidden_states": example(TOKENS, shape.context_dim or 0)},
        card={"sample_rate": published.sample_rate, "sampler": published.sampling},
        tokenizer=published.tokenizer,
        tokens=TOKENS,
    )


def text_parts(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.nn.Module]:
    """text_encoder, of the checkpoint or of CLAP's own beside it."""
    inside, apart = under(tensors, "cond_stage_model.caption_encoder."), file_in(folder, CLAPS)
    if not inside and apart:
        inside = under(read_tensors(apart), "caption_encoder.")
    return {"text_encoder": load_caption_encoder(inside, what=f"CLAP in {apart or folder}")} if inside else {}


def vocoder_parts(folder: Path) -> dict[str, torch.nn.Module]:
    """vocoder, of BigVGAN's own checkpoint in a folder beside."""
    if (path := file_in(folder, VOCODERS)) is None:
        return {}
    config = config_beside(path)
    shape = bigvgan.read_shape(read_settings(config) if config else {})
    return {"vocoder": bigvgan.load_bigvgan(shape, read_tensors(path), what=str(path))}


def file_in(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first file of weights in one of the sub-folders `names`."""
    found = (file for name in names for file in sorted((folder / name).glob("*")) if file.suffix in WEIGHTS)
    return next(found, None)
