"""AudioLDM as `AudioLDMPipeline` saves it: text_encoder, unet, vae, vocoder, tokenizer, scheduler.

    prompt --CLAP, |.| = 1--> class_labels [B, D]       latents / scaling_factor --vae--> mel --vocoder--> waveform

What such a folder lost in its conversion, the heads per level, only the original checkpoint has (docs/models.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quaver.exporter.checkpoints.audioldm import TOKENS
from quaver.exporter.checkpoints.original import example, first_published
from quaver.exporter.checkpoints.text_encoder import EMBEDS, as_encoder
from quaver.exporter.model.source import Model, load_unet, read_config
from quaver.exporter.pipelines.networks import factor_of, load_network, size_of, sound_parts
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch


def load(folder: Path) -> Model:
    """The model of a saved pipeline. Raises: RecipeError when a part is missing or damaged."""
    unet, published = load_unet(folder), first_published("audioldm")
    parts, voice = sound_parts(folder)
    return Model(
        folder=folder,
        unet=unet,
        parts={"text_encoder": load_clap(folder), **parts},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        latent=sound_latent(folder, unet, voice["model_in_dim"]),
        rows={"class_labels": example(unet.config.projection_class_embeddings_input_dim)},
        card={"sample_rate": int(voice["sampling_rate"]), "sampler": published.sampling},
        tokens=TOKENS,
    )


def load_clap(folder: Path) -> torch.nn.Module:
    """input_ids, attention_mask [B, L] -> text_embeds [B, D] of length 1, of CLAP's text tower or all of it."""
    model = load_network(folder, "text_encoder", "ClapTextModelWithProjection")
    unit = need("torch", extra="export").nn.functional.normalize
    return as_encoder(lambda ids, mask: unit(model(ids, mask).text_embeds, dim=-1), [model], EMBEDS)


def sound_latent(folder: Path, unet: torch.nn.Module, bins: int) -> tuple[int, int, int]:
    """[C, T, F] of the length that a U-Net says, for so many mel bins."""
    return unet.config.in_channels, size_of(unet, folder)[0], bins // factor_of(folder)
