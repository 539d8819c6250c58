"""Latent diffusion of pictures (arXiv:2112.10752): of a class of ImageNet, or of nothing but noise (LSUN).

    class --class_encoder, a table--> encoder_hidden_states [B, 1, D]       unconditional: the last class of the table
    U-Net: sample [N, C, H, W], timestep [N] and, of a class, encoder_hidden_states -> out [N, C, H, W]
    latents --image_decoder--> image [B, 3, H', W'] in -1..1

A prompt is the number of a class, "207" or "class 207". The card says how many there are: `classes`, 0 for none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from quaver.runtime.errors import QuaverError
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Family, Parts, Published
from quaver.runtime.guide import Rows


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 1, D] of classes [B] by number; nothing where the model has no classes."""
    if not (classes := int(parts.card.get("classes", 0))):
        return {}
    numbers = np.array([class_number(prompt, classes) for prompt in prompts], np.int64)
    states = parts.engines["class_encoder"]({"class_label": numbers})
    return {"encoder_hidden_states": np.asarray(states, dtype=np.float32)}


def class_number(prompt: str, classes: int) -> int:
    """The class a prompt names, of `classes` and an unconditional one after them; "" is that one.

    Raises: QuaverError when there is no such class.
    """
    if not prompt.strip():
        return classes
    found = re.fullmatch(r"(?:class )?(\d+)", prompt.strip())
    if not found or int(found[1]) >= classes:
        raise QuaverError(f"this model draws classes, {prompt!r} is none: say 0 to {classes - 1}")
    return int(found[1])


def decode(parts: Parts, latents: Array) -> dict[str, Any]:
    """image [B, 3, H', W'] of latents [B, C, H, W]."""
    engine = parts.engines["image_decoder"]
    return {"image": engine({engine.inputs[0]: latents})}


def published(latent: tuple[int, int, int], beta_end: float, **sampling: Any) -> Published:
    """One of the models of its paper; all have the schedule of latent diffusion, with ends of their own."""
    return Published(
        hub=(),
        latent=latent,
        scheduler={
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "beta_end": beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "clip_sample": False,
        },
        sampling={"sampler": "ddim", **sampling},
        licence="MIT, the licence of its repository",
    )


MODELS = {
    "ldm4-imagenet": published((3, 64, 64), 0.0195, steps=250, eta=1.0, guidance=1.5),
    "ldm4-bedrooms": published((3, 64, 64), 0.0195, steps=200, eta=1.0, guidance=1.0),
    "ldm8-churches": published((4, 32, 32), 0.0155, steps=200, eta=0.0, guidance=1.0),
}
FAMILY = Family("ldm", "pictures", ("image_decoder",), embed, feeds, decode, models=MODELS)
