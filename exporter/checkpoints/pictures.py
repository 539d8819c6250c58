"""Checkpoints of latent diffusion for pictures: ImageNet by class, LSUN by nothing; VQ and KL first stages.

    model.diffusion_model.*  model_ema.*  cond_stage_model.embedding.weight [classes + 1, D]  first_stage_model.*

The last row of the table of classes is the unconditional one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints import first_stage, ldm
from quaver.exporter.checkpoints.layout import Checkpoint, section
from quaver.exporter.checkpoints.original import (
    example,
    model_params,
    read_weights,
    schedule_of,
)
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import under
from quaver.exporter.model.source import Model
from quaver.runtime.family import Published, find_family
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

TABLE = "cond_stage_model.embedding.weight"


def load(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint that draws pictures.

    Raises: RecipeError where weights and configuration do not fit.
    """
    tensors, params, what = read_weights(checkpoint, "ldm"), model_params(checkpoint), checkpoint.weights
    shape = ldm.read_shape(section(params, "unet_config", "params", where=checkpoint.config or what))
    decoder = first_stage.read_decoder(tensors, params, where=checkpoint.config or what, what=what)
    table = tensors.get(TABLE)
    size, published = int(params.get("image_size", 0)), published_like(table, shape.in_channels)
    return Model(
        folder=checkpoint.weights.parent,
        unet=ldm.load_unet(shape, under(tensors, UNET), what=f"the U-Net of {what}"),
        parts={**({} if table is None else {"class_encoder": class_encoder(table)}), "image_decoder": decoder},
        latent=(shape.in_channels, size, size),
        scheduler=schedule_of(params, published),
        rows={} if table is None else {"encoder_hidden_states": example(1, table.shape[1])},
        card={"sample_rate": 0, "sampler": published.sampling, "classes": 0 if table is None else len(table) - 1},
    )


def published_like(table: torch.Tensor | None, channels: int) -> Published:
    """The published model that draws classes where there is a table of them, else by how many latent channels."""
    models = find_family("ldm").models
    if table is not None:
        return models["ldm4-imagenet"]
    return models["ldm4-bedrooms" if channels == models["ldm4-bedrooms"].latent[0] else "ldm8-churches"]


def class_encoder(table: torch.Tensor) -> torch.nn.Module:
    """class_label [B] -> encoder_hidden_states [B, 1, D], a context of one token."""
    nn = need("torch", extra="export").nn

    class Encoder(nn.Module):  # type: ignore[name-defined]
        outputs = ("encoder_hidden_states",)

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", table.float())

        def forward(self, class_label: Any) -> Any:
            return self.table[class_label].unsqueeze(1)

    return Encoder().eval()
