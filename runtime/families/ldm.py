"""Latent diffusion of pictures (arXiv:2112.10752): of a class of ImageNet, or of nothing but noise (LSUN).

    class --class_encoder, a table--> encoder_hidden_states [B, 1, D]       unconditional: the last class of the table
    U-Net: sample [N, C, H, W], timestep [N] and, of a class, encoder_hidden_states -> out [N, C, H, W]
    latents --image_decoder--> image [B, 3, H', W'] in -1..1

A prompt is the number of a class, "207" or "class 207", or "no class". The card says how many there are: `classes`, 0
for a model that takes no other prompt than the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quaver.runtime.errors import QuaverError
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Card, Family, Parts, Published, latent_diffusion
from quaver.runtime.guide import Rows
from quaver.runtime.schedule import Schedule

NO_CLASS = "no class"


def embed(parts: Parts, prompts: Sequence[str]) -> Rows:
    """encoder_hidden_states [B, 1, D] of classes [B] by number; nothing where the model has no classes."""
    classes = int(parts.card["classes"])
    numbers = np.array([class_number(prompt, classes) for prompt in prompts], np.int64)
    if not classes:
        return {}
    states = parts.engines["class_encoder"]({"class_label": numbers})
    return {"encoder_hidden_states": np.asarray(states, dtype=np.float32)}


def class_number(prompt: str, classes: int) -> int:
    """The class a prompt names, of `classes` and an unconditional one after them; "" and "no class" are that one.

    Raises: QuaverError when there is no such class.
    """
    if prompt.strip() in ("", NO_CLASS):
        return classes
    found = re.fullmatch(r"(?:class |row )?(\d+)", prompt.strip())
    if found and int(found[1]) < classes:
        return int(found[1])
    where = "in a recipe, prompts.source = 'classes'"
    if not classes:
        raise QuaverError(f"this model draws from noise alone and cannot heed {prompt!r}: give no prompt ({where})")
    raise QuaverError(f"this model draws classes, {prompt!r} is none: say 0 to {classes - 1} ({where})")


def decode(parts: Parts, latents: Array) -> dict[str, Any]:
    """image [B, 3, H', W'] of latents [B, C, H, W]."""
    engine = parts.engines["image_decoder"]
    return {"image": engine({engine.inputs[0]: latents})}


def fit(card: Card, schedule: Schedule) -> Family:
    """The family with the components of one model: a table of classes where it has classes."""
    if card.get("classes"):
        return replace(FAMILY, components=("class_encoder", *PARTS))
    return replace(FAMILY, asks="nothing")


def published(latent: tuple[int, int, int], beta_end: float, **sampling: Any) -> Published:
    """One of the models of its paper; all have the schedule of latent diffusion, with ends of their own."""
    return Published(
        hub=(),
        latent=latent,
        scheduler=latent_diffusion(0.0015, beta_end),
        sampling={"sampler": "ddim", **sampling},
        licence="MIT, the licence of its repository",
    )


MODELS = {
    "ldm4-imagenet": published((3, 64, 64), 0.0195, steps=250, eta=1.0, guidance=1.5),
    "ldm4-bedrooms": published((3, 64, 64), 0.0195, steps=200, eta=1.0, guidance=1.0),
    "ldm8-churches": published((4, 32, 32), 0.0155, steps=200, eta=0.0, guidance=1.0),
}
PARTS = ("image_decoder",)
FAMILY = Family("ldm", "pictures", PARTS, embed, feeds, decode, fit=fit, models=MODELS, asks="number", example=NO_CLASS)
