"""AudioLDM's checkpoint: one file with U-Net, CLAP, decoder and vocoder.

    model.diffusion_model.*  cond_stage_model.model.text_branch.*  first_stage_model.*  first_stage_model.vocoder.*

The published files come without configuration. Their sizes differ in one number, the U-Net's width W, which is read off
the weights: S 128, M 192, L 256; a head is 32 wide, L's 64. (Folders of diffusers say 8 heads everywhere: the same
parameters, other mathematics.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints import first_stage, ldm
from quaver.exporter.checkpoints.layout import Checkpoint, section
from quaver.exporter.checkpoints.original import (
    example,
    first_published,
    model_params,
    read_weights,
    schedule_of,
)
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import under
from quaver.exporter.checkpoints.text_encoder import load_clap
from quaver.exporter.checkpoints.vocoder import load_hifigan
from quaver.exporter.model.source import Model

if TYPE_CHECKING:
    import torch

TOKENS = 77
FIRST_STAGE: dict[str, Any] = {
    "embed_dim": 8,
    "ddconfig": {
        "z_channels": 8,
        "resolution": 256,
        "out_ch": 1,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    },
}


def load(checkpoint: Checkpoint) -> Model:
    """The model of an AudioLDM checkpoint; no text encoder where the file has none.

    Raises: RecipeError where weights and configuration do not fit.
    """
    tensors, published, what = read_weights(checkpoint, "audioldm"), first_published("audioldm"), checkpoint.weights
    params = model_params(checkpoint) if checkpoint.config else published_params(tensors)
    shape = ldm.read_shape(section(params, "unet_config", "params", where=what))
    parts = {}
    if text := under(tensors, "cond_stage_model.model."):
        parts["text_encoder"] = load_clap(text, what=f"the text encoder of {what}")
    stage = under(tensors, "first_stage_model.")
    scale = float(tensors.get("scale_factor", 1.0))
    parts |= sound_parts(stage, section(params, "first_stage_config", "params", where=what), scale, params, what)
    return Model(
        folder=checkpoint.weights.parent,
        unet=ldm.load_unet(shape, under(tensors, UNET), what=f"the U-Net of {what}"),
        parts=parts,
        latent=(shape.in_channels, params.get("latent_t_size", 256), params.get("latent_f_size", 16)),
        scheduler=schedule_of(params, published),
        rows={"class_labels": example(shape.extra_film_condition_dim or 0)},
        card={"sample_rate": published.sample_rate, "sampler": published.sampling},
        tokenizer=published.tokenizer,
        tokens=TOKENS,
    )


def sound_parts(
    stage: Mapping[str, torch.Tensor], params: Mapping[str, Any], scale: float, said: Mapping[str, Any], what: Any
) -> dict[str, torch.nn.Module]:
    """vae_decoder and vocoder of an AudioLDM first stage; `said` may describe another vocoder than the published."""
    shape = first_stage.read_shape(params)
    decoder = first_stage.load_decoder(shape, stage, scale=scale, what=f"the first stage of {what}")
    parts = {"vae_decoder": decoder}
    if voice := under(stage, "vocoder."):
        parts["vocoder"] = load_hifigan(voice, said.get("vocoder_config"), what=f"the vocoder of {what}")
    return parts


def published_params(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`model.params` of the published size that a U-Net has."""
    width = len(tensors[f"{UNET}input_blocks.0.0.weight"])
    unet = {
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": width,
        "attention_resolutions": [8, 4, 2],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 3, 5],
        "num_head_channels": 64 if width == 256 else 32,
        "use_spatial_transformer": True,
        "extra_film_condition_dim": tensors[f"{UNET}film_emb.weight"].shape[1],
        "extra_film_use_concat": True,
    }
    return {"unet_config": {"params": unet}, "first_stage_config": {"params": FIRST_STAGE}}
