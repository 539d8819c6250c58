"""Networks of a saved pipeline, in fp32 and whole: a part of its folder -> a torch module.

A U-Net is built without memory and its parameters are the pages of the mapped file (`checkpoints.places`); the others
are loaded as their libraries do, and what these would fill with random numbers is refused here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quaver.exporter.checkpoints.first_stage import as_decoder
from quaver.exporter.checkpoints.places import by_module
from quaver.exporter.checkpoints.vocoder import as_vocoder
from quaver.exporter.model.source import read_config
from quaver.exporter.model.tracing import quietly
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch


def load_network(folder: Path, part: str, kind: str, library: str = "transformers") -> Any:
    """The network of the class `kind` in `folder`/`part`.

    Raises: RecipeError when the part is missing, damaged, or lacks weights.
    """
    torch, place = need("torch", extra="export"), folder / part
    read_config(place / "config.json", f"the part {part} of a pipeline is not there, copy the whole folder")
    own = {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    more = own if library == "diffusers" else {"dtype": torch.float32}
    try:
        with quietly(), contextlib.redirect_stderr(io.StringIO()):  # bars, and tables of what is left over
            network, said = getattr(need(library, extra="export"), kind).from_pretrained(
                place, local_files_only=True, output_loading_info=True, **more
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RecipeError(f"{place} does not load as {kind} ({first_line(error)}): copy it again") from error
    if missing := sorted(said["missing_keys"]):
        found = f"{len(missing)} keys are missing: {by_module(missing)}"
        raise RecipeError(f"{place} is no whole {kind}, {found}: copy it again")
    return network.eval().requires_grad_(False)


def kind_of(folder: Path, part: str) -> str:
    """The class of a part, by the pipeline's index."""
    return str(read_config(folder / "model_index.json").get(part, ["", ""])[1])


def load_decoder(folder: Path, part: str = "vae", kind: str = "AutoencoderKL") -> torch.nn.Module:
    """latents [B, C, H, W] -> pictures or mel [B, c, H', W'], the way that pipelines scale them.

    Raises: RecipeError as `load_network`, and for latents with statistics of their own, which are not read.
    """
    stage = load_network(folder, part, kind, "diffusers")
    config = stage.config
    if getattr(config, "latents_mean", None) or getattr(config, "norm_type", "group") == "spatial":
        raise RecipeError(f"{folder / part} has latents_mean or a spatial norm, which is not supported: name another")
    codebook = stage.quantize.embedding.weight if kind == "VQModel" else None
    scale, stage.encoder = config.scaling_factor, None
    return as_decoder(stage, scale, codebook)


def factor_of(folder: Path, part: str = "vae") -> int:
    """How many pixels or mel bins a latent is high and wide: 2 for every level of the decoder but one."""
    return 2 ** (len(read_config(folder / part / "config.json")["block_out_channels"]) - 1)


def sound_parts(folder: Path) -> tuple[dict[str, torch.nn.Module], Mapping[str, Any]]:
    """vae_decoder and vocoder, and the vocoder's configuration."""
    vocoder = as_vocoder(load_network(folder, "vocoder", "SpeechT5HifiGan"))
    return {"vae_decoder": load_decoder(folder), "vocoder": vocoder}, read_config(folder / "vocoder" / "config.json")


def size_of(unet: torch.nn.Module, folder: Path) -> tuple[int, int]:
    """The height and width of latents that a U-Net says. Raises: RecipeError when it says none."""
    size = unet.config.sample_size
    if not size:
        raise RecipeError(f"{folder}/unet does not say how large its latents are: set sample_size in its config.json")
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
