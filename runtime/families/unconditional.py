"""Pictures of noise alone, in pixels (arXiv:2006.11239) or in the latents of a VQ (arXiv:2112.10752).

U-Net: sample [N, C, H, W], timestep [N] -> eps [N, C, H, W]
latents --image_decoder--> image [B, 3, H', W'] in -1..1; without one the sample is the picture
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quaver.runtime.families import ldm
from quaver.runtime.families.tango import feeds
from quaver.runtime.family import Array, Card, Family, Parts, Published, latent_diffusion
from quaver.runtime.schedule import Schedule


def as_they_are(parts: Parts, pixels: Array) -> dict[str, Any]:
    """image [B, C, H, W], the samples themselves."""
    return {"image": pixels}


def fit(card: Card, schedule: Schedule) -> Family:
    """The family of one model: what has a decoder draws latents."""
    return replace(FAMILY, components=ldm.PARTS, decode=ldm.decode) if card["components"] else FAMILY


MODELS = {
    "ddpm-cifar10": Published(
        hub=("google/ddpm-cifar10-32",),
        latent=(3, 32, 32),
        scheduler={
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "clip_sample": True,
        },
        sampling={"sampler": "ddim", "steps": 100, "eta": 0.0, "guidance": 1.0},
        licence="Apache 2.0",
    ),
    "ldm-celebahq": Published(
        hub=("CompVis/ldm-celebahq-256",),
        latent=(3, 64, 64),
        scheduler=latent_diffusion(0.0015, 0.0195),
        sampling={"sampler": "ddim", "steps": 200, "eta": 0.0, "guidance": 1.0},
        licence="Apache 2.0",
    ),
}
FAMILY = Family(
    "unconditional",
    "pictures",
    (),
    ldm.embed,
    feeds,
    as_they_are,
    fit=fit,
    models=MODELS,
    asks="nothing",
    example=ldm.NO_CLASS,
)
