"""Pipelines that draw from noise alone: `DDPMPipeline`, `DDIMPipeline` (pixels), `LDMPipeline` (latents of a VQ)."""

from __future__ import annotations

from pathlib import Path

from quaver.exporter.checkpoints.original import first_published
from quaver.exporter.model.source import Model, load_unet, read_config
from quaver.exporter.pipelines.networks import load_decoder, size_of


def load(folder: Path) -> Model:
    """The model of a saved pipeline. Raises: RecipeError when a part is missing or damaged."""
    unet, decodes = load_unet(folder), (folder / "vqvae").is_dir()
    return Model(
        folder=folder,
        unet=unet,
        parts={"image_decoder": load_decoder(folder, "vqvae", "VQModel")} if decodes else {},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        latent=(unet.config.in_channels, *size_of(unet, folder)),
        rows={},
        card={"sample_rate": 0, "sampler": first_published("unconditional").sampling, "classes": 0},
    )
