"""Latents as files, where a model ends at latents: .npy, or .safetensors with the one tensor "latents".

A mel is an .npy file too, where a model ends at it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from quaver.runtime.artifact import atomic


def write_latents(path: Path, latents: np.ndarray) -> Path:
    """Write latents [C, H, W] of one sample as float32."""
    values = np.ascontiguousarray(latents, np.float32)
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(save({"latents": values}))
        else:
            np.save(temporary, values, allow_pickle=False)
    return path
