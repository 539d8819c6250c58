"""The tensors of a checkpoint file, mapped from the disk and never executed.

A `.ckpt`, `.bin`, `.pt` or `.pth` is a zip of a pickle and raw tensors; torch's weights-only unpickler builds nothing
but tensors and containers, and refuses whatever else the pickle names. Lightning leaves the classes of its callbacks
in training checkpoints: an inert stand-in takes their place, their code is neither needed nor imported.

EMA. Latent diffusion keeps an exponential moving average of its U-Net beside it, and samples with it:

    model.diffusion_model.input_blocks.0.0.weight        the weights of the last step of training
    model_ema.diffusion_modelinput_blocks00weight        their average, the same name without dots
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

INERT = ("pytorch_lightning.", "lightning.")  # whose names in a pickle may stand for nothing
INSIDE = ("state_dict", "generator", "model")  # where a checkpoint of training keeps the weights
AGAIN = "download it again"

log = logging.getLogger(__name__)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by key, in the dtype they are stored in, mapped from the file.

    Raises: RecipeError for a file that is missing, ends early, holds code, or is no checkpoint.
    """
    if not path.is_file():
        raise RecipeError(f"{path} does not exist: name a checkpoint (.ckpt, .bin, .pt, .pth or .safetensors)")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    inner = next((found[key] for key in INSIDE if isinstance(found.get(key), dict)), found)
    torch = need("torch", extra="export")
    tensors = {key: value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise RecipeError(f"{path} holds no tensors, only {', '.join(map(str, list(inner)[:5]))}: name the weights")
    return tensors


def under(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, by the rest of their keys."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def averaged(tensors: Tensors, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The tensors with the moving average, where there is a whole one, in the place of the weights below `prefix`."""
    dotless = {key: "model_ema." + key.removeprefix(prefix).replace(".", "") for key in under_keys(tensors, prefix)}
    averages = {key: tensors[name] for key, name in dotless.items() if name in tensors}
    if not dotless or len(averages) < len(dotless):
        return dict(tensors)
    log.info("the moving average of the weights (model_ema) is used, as the model's authors sample with it")
    return {**tensors, **averages}


def under_keys(tensors: Iterable[str], prefix: str) -> list[str]:
    """The keys below a prefix, whole."""
    return [key for key in tensors if key.startswith(prefix)]


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return dict(need("safetensors.torch", extra="export").load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise RecipeError(f"{path} is damaged or ends early ({first_line(error)}): {AGAIN}") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    torch = need("torch", extra="export")
    with path.open("rb") as file:
        head = file.read(64)
    zipped = head.startswith(b"PK")
    if zipped and not zipfile.is_zipfile(path):
        raise RecipeError(f"{path} ends early after {path.stat().st_size} bytes: {AGAIN}")
    if not zipped and not head.startswith(b"\x80"):
        kind = "a git-lfs pointer" if head.startswith(b"version https://git-lfs") else "no checkpoint"
        raise RecipeError(f"{path} is {kind} (it begins with {head[:16]!r}): {AGAIN}")
    try:
        with torch.serialization.safe_globals(_stand_ins(path) if zipped else []):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # pickle, zipfile and torch have a class each
        if code := _refused(error):
            raise RecipeError(
                f"{path} holds code, which is never run ({code}): name a checkpoint of plain tensors"
            ) from error
        raise RecipeError(f"{path} is damaged, or not written by torch ({first_line(error)}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds a {type(found).__name__}, expected tensors by key: name the weights")
    return found


def _stand_ins(path: Path) -> list[Any]:
    """Classes that do nothing, for what Lightning left in a pickle."""
    names = need("torch", extra="export").serialization.get_unsafe_globals_in_checkpoint(path)
    return [(type("Inert", (), {}), name) for name in names if name.startswith(INERT)]


def _refused(error: Exception) -> str:
    """What the unpickler refused by name, or ""."""
    found = re.search(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)", str(error))
    return found[1] if found else ""
