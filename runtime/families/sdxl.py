"""Stable Diffusion XL (arXiv:2307.01952): two CLIPs, what the second one pools, and the size of the picture.

    prompt --text_encoder--> states [B, 77, D1]
    prompt --text_encoder_2--> states and, behind them, the pooled vector [B, 78, D2]
    encoder_hidden_states [B, 77, D1 + D2]      text_embeds [B, D2]      unconditional: zeros, or those of "" (its card)
    time_ids [B, 6]      height and width before cropping, the corner, height and width
    U-Net: sample [N, 4, H, W], timestep [N] and these three -> eps [N, 4, H, W]
    latents --image_decoder--> image [B, 3, 8 H, 8 W] in -1..1

The card's `upscale` is that 8; `nothing_is_zero` says what an empty prompt is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quaver.runtime.families.ldm import decode
from quaver.runtime.families.stable_diffusion import EXAMPLE, clip_states
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 77, D1 + D2], text_embeds [B, D2] and time_ids [B, 6], float32, of prompts [B]."""
    first = clip_states(parts, "text_encoder", parts.tokenizer, prompts)
    second = clip_states(parts, "text_encoder_2", parts.tokenizer_2, prompts)
    states, pooled = np.concatenate([first, second[:, :-1]], -1), second[:, -1]
    if parts.card["nothing_is_zero"]:
        said = np.array([prompt != "" for prompt in prompts], np.float32)
        states, pooled = states * said[:, None, None], pooled * said[:, None]
    height, width = (parts.card["upscale"] * size for size in parts.card["latent_shape"][1:])
    sizes = np.array([height, width, 0, 0, height, width], np.float32)
    return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": np.tile(sizes, (len(prompts), 1))}


SDXL = Published(
    hub=("stabilityai/stable-diffusion-xl-base-1.0",),
    latent=(4, 128, 128),
    scheduler=latent_diffusion(0.00085, 0.012),
    sampling={"sampler": "euler", "steps": 50, "guidance": 5.0},
    licence="CreativeML OpenRAIL++-M",
    text_encoder="CLIP ViT-L/14, OpenCLIP ViT-bigG/14",
)
PARTS = ("text_encoder", "text_encoder_2", "image_decoder")
FAMILY = Family("sdxl", "pictures", PARTS, embed, feeds, decode, models={"sdxl": SDXL}, example=EXAMPLE)
