"""Makes tests/data/modelopt_unet/: a tiny U-Net really quantized by nvidia-modelopt, as its own tools save it.

    pip install nvidia-modelopt==0.47.0 && python tests/data/modelopt_unet.py FOLDER

Runs on a CPU. The folder is what `save_pretrained` writes: the config, and weights with every quantizer's `_amax`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, EMBEDDING = (4, 8, 8), 8
TIMESTEPS = (901, 501, 1)


def network() -> Any:
    """A U-Net of AudioLDM's shape with 70,000 random weights."""
    import diffusers
    import torch

    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16), class_embed_type="simple_projection", class_embeddings_concat=True,
        projection_class_embeddings_input_dim=EMBEDDING, attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip


def calls() -> list[dict[str, np.ndarray]]:
    """What it is calibrated on: two rows at each of three timesteps."""
    rng = np.random.default_rng(0)
    return [
        {
            "sample": rng.standard_normal((2, *SHAPE), np.float32),
            "timestep": np.full(2, t, np.int64),
            "class_labels": rng.standard_normal((2, EMBEDDING), np.float32),
        }
        for t in TIMESTEPS
    ]


def quantized() -> Any:
    """The network after modelopt's INT8 calibration."""
    import modelopt.torch.quantization as mtq
    import torch

    def calibrate(unet: Any) -> None:
        for feeds in calls():
            named = {name: torch.from_numpy(value) for name, value in feeds.items()}
            unet(named["sample"], named["timestep"], None, class_labels=named["class_labels"])

    return mtq.quantize(network(), mtq.INT8_DEFAULT_CFG, calibrate)


if __name__ == "__main__":
    quantized().save_pretrained(Path(sys.argv[1]))
