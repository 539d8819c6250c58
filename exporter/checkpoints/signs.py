"""Whose checkpoint it is, by keys and shapes that only one family has.

The first sign that is there decides; what conditions the U-Net and what its first stage draws tell latent diffusion's
children apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.runtime.errors import RecipeError

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

UNET = "model.diffusion_model."
DRAWN = "first_stage_model.decoder.conv_out.weight"  # [1 of mel or 3 of colour, C, 3, 3]
SIGNS: dict[str, Callable[[Tensors], bool]] = {
    "audioldm": lambda t: f"{UNET}film_emb.weight" in t,
    "tango": lambda t: "unet.conv_in.weight" in t and "text_encoder.shared.weight" in t,
    "stable diffusion": lambda t: any(k.startswith("cond_stage_model.transformer.text_model.") for k in t),
    "make-an-audio": lambda t: f"{UNET}input_blocks.0.0.weight" in t and DRAWN in t and t[DRAWN].shape[0] == 1,
    "ldm": lambda t: f"{UNET}input_blocks.0.0.weight" in t,
    "a diffusers U-Net": lambda t: "conv_in.weight" in t and "down_blocks.0.resnets.0.conv1.weight" in t,
    "a BigVGAN vocoder": lambda t: "activation_post.act.alpha" in t,
    "a HiFi-GAN vocoder": lambda t: any(k.startswith("conv_pre.") for k in t),
    "a first stage": lambda t: any(k.startswith("decoder.conv_in.") for k in t),
}
ADVICE = {
    "stable diffusion": "name its diffusers folder",
    "a diffusers U-Net": "name the folder of the whole model",
}


def likely_family(tensors: Tensors) -> str:
    """The family whose sign a checkpoint carries, or what else it is; "" when none is known."""
    return next((name for name, sign in SIGNS.items() if sign(tensors)), "")


def check_family(tensors: Tensors, family: str, path: Path) -> None:
    """Raise RecipeError unless a checkpoint carries the sign of `family`, naming the likely one."""
    found = likely_family(tensors)
    if found == family:
        return
    some = ", ".join(list(tensors)[:3])
    if not found:
        raise RecipeError(f"{path} is no {family} checkpoint and none known here (it has {some}, …): name another file")
    advice = ADVICE.get(found, f"set model.family = {found!r}" if " " not in found else "name the whole model")
    raise RecipeError(f"{path} looks like {found}, expected {family} (it has {some}, …): {advice}")
