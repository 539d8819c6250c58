"""Stable Diffusion (arXiv:2112.10752) and its XL (arXiv:2307.01952) as their pipelines save them.

    1.5, 2.1    states [B, 77, D] of CLIP's last layer
    XL          those of the last but one of two CLIPs, side by side, and what the second one pools [B, D2]

A network here has one answer, so XL's second CLIP gives its pooled vector as one more row behind the states,
[B, 78, D2]. The safety checker is no part of a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.exporter.checkpoints.original import example, first_published
from quaver.exporter.model.source import Model, load_unet, read_config
from quaver.exporter.pipelines.networks import factor_of, load_decoder, load_network, size_of
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

TOKENS = 77  # positions that CLIP was trained with


def load(folder: Path) -> Model:
    """The model of a `StableDiffusionPipeline`. Raises: RecipeError when a part is missing, damaged or another."""
    unet, clip = load_unet(folder), load_network(folder, "text_encoder", "CLIPTextModel")
    check_conditions(unet, folder, None)
    text = as_states(lambda ids: clip(ids).last_hidden_state, clip, "encoder_hidden_states")
    rows = {"encoder_hidden_states": example(TOKENS, unet.config.cross_attention_dim)}
    return picture_model(folder, unet, {"text_encoder": text}, rows, "stable-diffusion")


def load_xl(folder: Path) -> Model:
    """The model of a `StableDiffusionXLPipeline`. Raises: RecipeError when a part is missing, damaged or another."""
    unet, first = load_unet(folder), load_network(folder, "text_encoder", "CLIPTextModel")
    second = load_network(folder, "text_encoder_2", "CLIPTextModelWithProjection")
    check_conditions(unet, folder, "text_time")
    width, pooled = second.config.hidden_size, second.config.projection_dim
    if width != pooled:
        raise RecipeError(f"{folder}/text_encoder_2 pools {width} channels to {pooled}, expected as many: name another")
    text = {
        "text_encoder": as_states(lambda ids: first(ids, output_hidden_states=True).hidden_states[-2], first, "states"),
        "text_encoder_2": as_states(lambda ids: states_and_pooled(second, ids), second, "states_2"),
    }
    rows = {
        "encoder_hidden_states": example(TOKENS, unet.config.cross_attention_dim),
        "text_embeds": example(pooled),
        "time_ids": np.tile(np.array([512, 512, 0, 0, 512, 512], np.float32), (2, 1)),
    }
    zeros = bool(read_config(folder / "model_index.json").get("force_zeros_for_empty_prompt", True))
    return picture_model(folder, unet, text, rows, "sdxl", upscale=factor_of(folder), nothing_is_zero=zeros)


def picture_model(
    folder: Path, unet: torch.nn.Module, text: dict[str, Any], rows: dict[str, np.ndarray], family: str, **card: Any
) -> Model:
    """The model of U-Net and text encoders, with the decoder and scheduler of their folder."""
    return Model(
        folder=folder,
        unet=unet,
        parts={**text, "image_decoder": load_decoder(folder)},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        latent=(unet.config.in_channels, *size_of(unet, folder)),
        rows=rows,
        card={"sample_rate": 0, "sampler": first_published(family).sampling, **card},
        tokens=TOKENS,
    )


def check_conditions(unet: torch.nn.Module, folder: Path, added: str | None) -> None:
    """Raise RecipeError unless a U-Net is conditioned by states and what is `added`, and by nothing else."""
    said = {key: unet.config.get(key) for key in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")}
    said |= {"addition_embed_type": unet.config.get("addition_embed_type")}
    wanted = dict.fromkeys(said) | {"addition_embed_type": added}
    if odd := [key for key in said if said[key] != wanted[key]]:
        raise RecipeError(
            f"{folder}/unet has {odd[0]} = {said[odd[0]]!r}, expected {wanted[odd[0]]!r}: export it to ONNX and name "
            "the file (docs/onnx.md)"
        )


def states_and_pooled(clip: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The states of the last layer but one [B, L, D], and behind them the pooled vector: [B, L + 1, D]."""
    said = clip(ids, output_hidden_states=True)
    return need("torch", extra="export").cat([said.hidden_states[-2], said.text_embeds[:, None]], 1)


def as_states(encode: Any, network: torch.nn.Module, answer: str) -> torch.nn.Module:
    """A function of ids with its network as a module to trace; CLIP sees no mask, only what stands before."""
    nn = need("torch", extra="export").nn

    class Encoder(nn.Module):  # type: ignore[name-defined]
        outputs = (answer,)

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return encode(input_ids)

    return Encoder().eval()
