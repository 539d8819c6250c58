"""Weights of the demo's own networks: `<folder>/model.safetensors` in float16 beside a `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quaver.runtime.errors import ArtifactError

Network = TypeVar("Network", bound=nn.Module)


def save_weights(model: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Write a network's state, floats as float16, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_weights(model: Network, folder: Path) -> Network:
    """Load a network's state as float32 and put it in evaluation mode.

    Raises: ArtifactError when its file is missing, damaged, or of another network.
    """
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} does not load ({reason}): copy the model folder again") from error
    return model.eval()


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def seeded(seed: int) -> torch.Generator:
    """A torch generator with this seed."""
    return torch.Generator().manual_seed(seed)
