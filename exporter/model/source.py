"""Where a model comes from: a diffusers folder, the embedded one, or a repository of the hub (`hub`) as such a folder.

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

from quaver.exporter.checkpoints.places import assign, build
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.exporter.model.hub import WEIGHTS, fetch, is_hub_id
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

UNET_CLASSES = ("UNet2DConditionModel", "UNet2DModel", "AudioLDM2UNet2DConditionModel")
FOLDER = "model.source must name a diffusers folder with unet/, scheduler/ and tokenizer/"
EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of attention's layers


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


def load_folder(folder: Path) -> Model:
    """The U-Net of a diffusers folder, and what is around the embedded one.

    Raises: RecipeError when there is none, or it is damaged.
    """
    files = (folder / part / "config.json" for part in ("vocoder", "probe"))
    said, heard = (read_config(file) if file.exists() else {} for file in files)
    rate = {"sample_rate": int(said["sampling_rate"])} if "sampling_rate" in said else {}
    return Model(
        folder=folder,
        unet=load_unet(folder),
        parts=load_embedded(folder) if is_embedded(folder) else {},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
        card=rate | {"words": heard.get("words", {})},
    )


def model_folder(source: str, revision: str = "") -> Path:
    """The folder that `source` names: "demo", a path, or a hub id, downloaded at a commit, tag or branch.

    Raises: RecipeError when it does not exist, the hub does not give it, or a revision is asked of something else.
    """
    if source != "demo" and is_hub_id(source):
        return fetch(source, revision)
    if revision:
        raise RecipeError(f"model.revision is {revision!r}, and {source} is no hub id: leave it out")
    if source != "demo" and not Path(source).expanduser().exists():
        raise RecipeError(
            f"model.source {source!r} does not exist: name a diffusers folder, a checkpoint, an .onnx file, a hub id "
            "(owner/name), or 'demo'"
        )
    return Path(str(files("quaver.demo"))) / "model" if source == "demo" else Path(source).expanduser()


def load_unet(folder: Path) -> torch.nn.Module:
    """The U-Net of a diffusers folder in fp32, ready for inference; its weights are the pages of their file.

    Raises: RecipeError when the folder has no such network or its weights do not fit it.
    """
    config = read_config(folder / "unet" / "config.json")
    if (found := config.get("_class_name")) not in UNET_CLASSES:
        raise RecipeError(
            f"{folder}/unet is a {found}, expected {' or '.join(UNET_CLASSES)}: export another network to ONNX "
            "and name the file as model.source (docs/onnx.md)"
        )
    network = getattr(need("diffusers", extra="export"), found)
    try:
        unet = build(lambda: network.from_config(dict(config)))
        if any(buffer.is_meta for buffer in unet.buffers()):  # tables that are no weights
            unet = network.from_config(dict(config))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise RecipeError(f"{folder}/unet is no {found} ({first_line(error)}): copy the model folder again") from error
    return assign(unet, network_tensors(folder / "unet"), what=f"{folder}/unet")


def network_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of one network of diffusers, by their names of today.

    Raises: RecipeError when the folder has no weights, or they are damaged.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise RecipeError(f"{folder} has a configuration and no weights ({WEIGHTS[0]}): copy the whole model folder")
    shards = [name]
    if name.endswith(".index.json"):
        shards = sorted({Path(shard).name for shard in read_config(folder / name)["weight_map"].values()})
    tensors = {key: value for shard in shards for key, value in read_tensors(folder / shard).items()}
    return {".".join(EARLIER.get(word, word) for word in key.split(".")): value for key, value in tensors.items()}


def is_embedded(folder: Path) -> bool:
    """Whether a folder is laid out as the embedded model, which has a probe."""
    return (folder / "probe").is_dir()


def load_embedded(folder: Path) -> dict[str, torch.nn.Module]:
    """The networks beside the embedded U-Net by name: text_encoder, vae_decoder, vocoder, probe.

    Raises: RecipeError when they are damaged.
    """
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
