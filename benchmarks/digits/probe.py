"""A small network that reads digits: the feature network of the tables of images.

    x [N, 1, 8, 8] -> map [N, 32, 4, 4] -> features [N, 64] -> logits [N, 10]

Distances over its features are "Frechet distance (digits probe)": they compare with themselves and with their floor,
never with published FID, which is of Inception's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.digits.images import CLASSES
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

PROBE = Path(__file__).parent / "model" / "probe.safetensors"
FEATURES, SPATIAL = 64, 4  # values, channels of the map


@dataclass(frozen=True)
class Read:
    """What the probe makes of N images: features [N, 64], spatial [N, 64], probabilities [N, 10]."""

    features: np.ndarray
    spatial: np.ndarray
    classes: np.ndarray


def make_probe() -> torch.nn.Module:
    """The network without weights: `map`, `features` and `logits` in turn."""
    from torch import nn

    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2)]
    parts = {
        "map": nn.Sequential(*layers, nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()),
        "features": nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, FEATURES), nn.SiLU()),
        "logits": nn.Linear(FEATURES, CLASSES),
    }
    return nn.ModuleDict(parts)


def load_probe(path: Path = PROBE) -> torch.nn.Module:
    """The trained network."""
    need("torch", extra="export")
    from safetensors.torch import load_file

    probe = make_probe()
    probe.load_state_dict(load_file(path))
    return probe.eval()


def read_images(probe: torch.nn.Module, images: np.ndarray) -> Read:
    """What the probe makes of images [N, 1, 8, 8], cut to [-1, 1] as pixels are.

    `spatial` is the first channels of the map with their places, as in sFID (arXiv:2103.03841, section 4.1).
    """
    import torch

    with torch.no_grad():
        maps = probe["map"](torch.from_numpy(np.clip(images, -1, 1)))
        features = probe["features"](maps)
        classes = torch.softmax(probe["logits"](features), dim=1)
    return Read(features.numpy(), maps[:, :SPATIAL].flatten(1).numpy(), classes.numpy())
