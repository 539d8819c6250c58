"""Checkpoints with known outputs, and checkpoints written here in the layouts of the published ones."""

from pathlib import Path

import pytest

from quaver.exporter.checkpoints import ldm
from quaver.exporter.checkpoints.places import place_of

torch = pytest.importorskip("torch")
DATA = Path(__file__).parents[2] / "data" / "checkpoints"
STAGE = {
    "embed_dim": 2,
    "ddconfig": {"z_channels": 2, "resolution": 8, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
}
CLASSES = {
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "context_dim": 12,
}
FILM = {
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 32,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "extra_film_condition_dim": 6,
    "extra_film_use_concat": True,
}


def relative(found, expected):
    """|found - expected| / |expected|."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def random_like(module, places=None, seed=0):
    """Weights of a module on the meta device by the keys of a checkpoint: of variance 1 / fan-in, norms about 1."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=draw)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        weights[place_of(name, places)] = value * scale + ("norm" in name and name.endswith("weight"))
    return weights


def unet_weights(params):
    """An LDM U-Net of random weights, by the keys below model.diffusion_model."""
    shape = ldm.read_shape(params)
    return random_like(ldm.make_unet(shape), dict(ldm.places(shape)))


def prefixed(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}
