"""Where a model comes from: a diffusers folder, the embedded one, or a hub repository fetched into such a folder.

Only weights and JSON are read: safetensors, or a checkpoint through torch's weights-only unpickler. No code that comes
with a model is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

UNET_CLASSES = ("UNet2DConditionModel", "UNet2DModel")
FOLDER = "model.source must name a diffusers folder with unet/, scheduler/ and tokenizer/"
CONFIGS = ("*.json", "tokenizer/*")
TANGO = ("main_config.json", "pytorch_model_main.bin", "pytorch_model_vae.bin")  # its authors' layout
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin")  # in order of preference


@dataclass(frozen=True)
class Model:
    """A U-Net and the networks around it by name, ready to trace.

    folder     where it comes from; a tokenizer in it goes into the bundle
    tokenizer  hub id of the published one, for checkpoints that come without
    tokens     L that prompts are cut and padded to; 0: as the tokenizer says
    scheduler  keys of a diffusers scheduler_config.json
    latent     [C, T, F]; () where the U-Net's configuration says it
    rows       an example of what conditions the U-Net, each [2, ...], by the names of its arguments; None where the
               U-Net's configuration says it
    card       what the bundle's card says of this model beside what every card says
    """

    folder: Path
    unet: torch.nn.Module
    parts: Mapping[str, torch.nn.Module]
    scheduler: Mapping[str, Any]
    latent: tuple[int, ...] = ()
    rows: Mapping[str, np.ndarray] | None = None
    tokenizer: str = ""
    tokens: int = 0
    card: Mapping[str, Any] = field(default_factory=dict)


def load_folder(source: str) -> Model:
    """The model of a diffusers folder. Raises: RecipeError when there is none, or it is damaged."""
    folder = model_folder(source)
    files = (folder / part / "config.json" for part in ("vocoder", "probe"))
    said, heard = (read_config(file) if file.exists() else {} for file in files)
    rate = {"sample_rate": int(said["sampling_rate"])} if "sampling_rate" in said else {}
    return Model(
        folder=folder,
        unet=load_unet(folder),
        parts=load_parts(source, folder),
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        card=rate | {"words": heard.get("words", {})},
    )


def model_folder(source: str) -> Path:
    """The folder that `source` names, as diffusers lays it out or TANGO: "demo", a path, or a hub id (downloaded).

    Raises: RecipeError when there is no such folder, or the hub does not give it.
    """
    if source == "demo":
        return Path(str(files("quaver.demo"))) / "model"
    folder = Path(source).expanduser()
    if folder.is_dir() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return folder
    hub = need("huggingface_hub", extra="export")
    try:
        there = set(hub.list_repo_files(source))
        weights = [name for name in WEIGHTS if name in there][:1] or [name for name in TANGO if name in there]
        return Path(hub.snapshot_download(source, allow_patterns=[*CONFIGS, *weights]))
    except Exception as error:  # offline, unknown, gated: the hub has a class for each
        raise RecipeError(
            f"model.source {source!r} is no folder here, and the hub did not give it ({first_line(error)}): "
            "name a diffusers folder, or 'demo'"
        ) from error


def load_unet(folder: Path) -> torch.nn.Module:
    """The U-Net of a diffusers folder in fp32, ready for inference.

    Raises: RecipeError when the folder has no such network or its weights do not fit it.
    """
    config = read_config(folder / "unet" / "config.json")
    if (found := config.get("_class_name")) not in UNET_CLASSES:
        raise RecipeError(
            f"{folder}/unet is a {found}, expected {' or '.join(UNET_CLASSES)}: export another network to ONNX "
            "and name the file as model.source (docs/onnx.md)"
        )
    torch, diffusers = need("torch", extra="export"), need("diffusers", extra="export")
    try:
        unet = getattr(diffusers, found).from_pretrained(
            folder / "unet", local_files_only=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RecipeError(f"{folder}/unet does not load ({first_line(error)}): copy the model folder again") from error
    return unet.eval()


def load_parts(source: str, folder: Path) -> dict[str, torch.nn.Module]:
    """The networks beside the U-Net by name: text_encoder, vae_decoder, vocoder, probe; none when it has another shape.

    Raises: RecipeError when the embedded model is damaged.
    """
    if source != "demo" and not (folder / "probe").is_dir():
        return {}
    try:
        parts = need("quaver.demo.components", extra="export").load_components(folder)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise RecipeError(f"{folder} is damaged ({first_line(error)}): install quaver again") from error
    return {name: module.eval() for name, module in parts.items()}


def read_config(path: Path, wanted: str = FOLDER) -> Mapping[str, Any]:
    """A JSON object, of a model folder unless other words say what is `wanted`.

    Raises: RecipeError when it is not there, cannot be read or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist: {wanted}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): {wanted}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON ({error}): copy it again") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds {type(found).__name__}, expected a JSON object: {wanted}")
    return found
