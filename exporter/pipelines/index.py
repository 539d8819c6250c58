"""Whose pipeline a folder is, by the class that its model_index.json names, and what loads it."""

from __future__ import annotations

from pathlib import Path

from quaver.exporter.model.hub import INDEX
from quaver.exporter.model.source import Model, read_config
from quaver.runtime.errors import RecipeError
from quaver.runtime.plug import plug

FAMILIES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "DDPMPipeline": "unconditional",
    "DDIMPipeline": "unconditional",
    "LDMPipeline": "unconditional",
}
LOADERS = {
    "audioldm": "quaver.exporter.pipelines.audioldm:load",
    "audioldm2": "quaver.exporter.pipelines.audioldm2:load",
    "stable-diffusion": "quaver.exporter.pipelines.stable_diffusion:load",
    "sdxl": "quaver.exporter.pipelines.stable_diffusion:load_xl",
    "unconditional": "quaver.exporter.pipelines.unconditional:load",
}


def saved_family(folder: Path) -> str:
    """The family of a saved pipeline; "" where a folder has no index. Raises: RecipeError for a pipeline of none."""
    if not (folder / INDEX).is_file():
        return ""
    kind = read_config(folder / INDEX).get("_class_name")
    if kind not in FAMILIES:
        raise RecipeError(
            f"{folder} is a {kind}, which is not supported; these are: {', '.join(FAMILIES)}. Its U-Net alone can be "
            "fed from samples: model.family = 'onnx' and model.samples (docs/onnx.md)"
        )
    return FAMILIES[kind]


def load_pipeline(folder: Path, family: str) -> Model:
    """The model of a saved pipeline of `family`. Raises: RecipeError when it is another's, damaged or incomplete."""
    found = saved_family(folder)
    if found != family:
        raise RecipeError(f"{folder} is of the family {found}, not {family}: set model.family = {found!r}")
    return plug(family, LOADERS, what="family of pipelines")(folder)
