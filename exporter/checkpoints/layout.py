"""Which files of a path make a checkpoint: the weights, and the configuration that lies beside them.

    model.ckpt, model.yaml or config.yaml                                a latent diffusion model of any kind
    folder/     one .ckpt and one .yaml                                  the same
    folder/     main_config.json, pytorch_model_main.bin, …              TANGO, as on the hub
    folder/     unet/, scheduler/, …                                     diffusers: not read here

Configurations are data: YAML without tags, or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
CONFIGS = (".yaml", ".yml", ".json")
VOCODERS, CLAPS = ("bigvgan", "bigvnat", "vocoder"), ("CLAP", "clap")  # folders of other checkpoints beside one
TOKENIZER = "tokenizer"  # and of the words of a text encoder
UNFINISHED = (".incomplete", ".part", ".crdownload")
TANGO, MAIN = "main_config.json", "pytorch_model_main.bin"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, and its configuration where there is a file of it."""

    weights: Path
    config: Path | None

    @property
    def files(self) -> list[Path]:
        """What the model is read from: its own files, and the folders of networks beside them."""
        folders = [self.weights.parent / name for name in (*VOCODERS, *CLAPS, TOKENIZER)]
        own = [path for path in (self.weights, self.config) if path is not None]
        return [*own, *(folder for folder in folders if folder.is_dir())]


def find_checkpoint(source: str | Path) -> Checkpoint | None:
    """The checkpoint a path names; None for a diffusers folder and for what is no path.

    Raises: RecipeError for a folder that is only part of a checkpoint, or of more than one.
    """
    path = Path(source).expanduser()
    if path.suffix in WEIGHTS and not path.is_dir():
        return Checkpoint(path, config_beside(path))
    if not path.is_dir() or (path / "unet").is_dir():
        return None
    if (path / TANGO).is_file():
        if not (path / MAIN).is_file():
            raise RecipeError(f"{path} holds {TANGO} of TANGO and not its weights: put {MAIN} beside it")
        return Checkpoint(path / MAIN, path / TANGO)
    here = sorted(file for file in path.iterdir() if file.suffix in (".ckpt", ".pt", ".pth"))
    if len(here) > 1:
        raise RecipeError(f"{path} holds {', '.join(file.name for file in here)}: name one of them as model.source")
    if here:
        return Checkpoint(here[0], config_beside(here[0]))
    if partial := [file.name for file in path.iterdir() if file.suffix in UNFINISHED]:
        raise RecipeError(f"{path} holds {partial[0]}, a download that is not finished: let it finish")
    if configs := [file.name for file in path.iterdir() if file.suffix in (".yaml", ".yml")]:
        raise RecipeError(f"{path} holds the configuration {configs[0]} and no weights: put the .ckpt beside it")
    return None


def config_beside(weights: Path) -> Path | None:
    """The configuration of a file of weights: of its name, or the only one in its folder."""
    named = [weights.with_suffix(suffix) for suffix in CONFIGS]
    usual = [weights.parent / name for name in ("config.yaml", "args.yml", "config.json")]
    if found := next((path for path in (*named, *usual) if path.is_file()), None):
        return found
    there = sorted({*weights.parent.glob("*.yaml"), *weights.parent.glob("*.yml")}) if weights.parent.is_dir() else []
    return there[0] if len(there) == 1 else None


def read_settings(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML or JSON file. Raises: RecipeError when it cannot be read or is something else."""
    yaml = need("yaml", extra="export")
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is no configuration ({first_line(error)}): copy it again") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds {type(found).__name__}, expected settings by name: copy it again")
    return found


def section(settings: Mapping[str, Any], *names: str, where: Path | str) -> Mapping[str, Any]:
    """The mapping at a path of names. Raises: RecipeError naming the first that is not there."""
    for name in names:
        if not isinstance(settings.get(name), dict):
            raise RecipeError(f"{where} has no {name}: (of {'.'.join(names)}), give the model's own configuration")
        settings = settings[name]
    return settings
