"""A repository of the hub as a folder: only the files that a model is read from, at one commit, online or not.

    models--org--name/refs/main              a commit
    models--org--name/snapshots/<commit>/    the files, as far as they were fetched

Configurations come first and say what else is needed: the networks of a pipeline that are traced, each in one format
of weights; TANGO's files; or the one checkpoint of another layout. The cache of huggingface_hub keeps what it has of a
file, so a download that broke off goes on; offline, a whole snapshot in it is a model like any folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quaver.exporter.checkpoints.layout import CLAPS, VOCODERS
from quaver.exporter.checkpoints.layout import WEIGHTS as CHECKPOINTS
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

SETTINGS = ("*.json", "*.yaml", "*.yml", "tokenizer/*", "tokenizer_2/*")
INDEX = "model_index.json"
NETWORKS = (
    "unet",
    "vae",
    "vqvae",
    "vocoder",
    "text_encoder",
    "text_encoder_2",
    "projection_model",
    "language_model",
)
WEIGHTS = (  # of a network, in order of preference; of an index, the files it lists too
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
TANGO = ("main_config.json", "pytorch_model_main.bin", "pytorch_model_vae.bin")
BESIDE = tuple(f"{folder}/*" for folder in (*VOCODERS, *CLAPS))  # of an original checkpoint

log = logging.getLogger(__name__)


def is_hub_id(source: str) -> bool:
    """Whether a source has the form owner/name and is neither a folder here nor a file by its name."""
    file = Path(source).exists() or source.endswith(CHECKPOINTS)
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not file


def fetch(source: str, revision: str = "") -> Path:
    """The snapshot of a repository with all that its model is read from; its name is the commit.

    Raises: RecipeError when the hub does not give it, it holds no model, or offline a part of it is missing.
    """
    hub = need("huggingface_hub", extra="export")
    try:
        folder = Path(hub.snapshot_download(source, revision=revision or None, allow_patterns=list(SETTINGS)))
        wanted = wanted_files(folder, listing(source, folder))
        if absent(folder, wanted):
            hub.snapshot_download(source, revision=folder.name, allow_patterns=wanted)
    except RecipeError:
        raise
    except Exception as error:  # offline, unknown, gated: the hub has a class for each
        raise RecipeError(
            f"model.source {source!r} is no folder here, and the hub did not give it ({first_line(error)}): "
            "name a diffusers folder, or 'demo'"
        ) from error
    if missing := absent(folder, wanted):
        raise RecipeError(
            f"of {source} only a part is here, {folder} lacks {', '.join(missing)}: run it online, and the download "
            "goes on where it ended"
        )
    log.info("%s is at commit %s; model.revision = %r keeps it there", source, folder.name, folder.name)
    return folder


def listing(source: str, folder: Path) -> set[str]:
    """The files of a repository at the commit of a snapshot; offline those that the snapshot has."""
    try:
        return set(need("huggingface_hub", extra="export").list_repo_files(source, revision=folder.name))
    except Exception:  # no connection, or told to make none: whether that was enough is seen by what is missing
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def wanted_files(folder: Path, there: Collection[str]) -> list[str]:
    """What a model is read from, of the files `there` are; `folder` has its configurations.

    Raises: RecipeError for several checkpoints, or none.
    """
    if INDEX in there:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [file for part in networks(index) for file in weights_of(part, folder, there)]
    if "unet/config.json" in there:
        return list(weights_of("unet", folder, there))
    if TANGO[0] in there:
        return list(TANGO)
    checkpoints = matching(there, ("*.ckpt",))
    if len(checkpoints) != 1:
        found = ", ".join(checkpoints) or "none"
        raise RecipeError(
            f"{folder.parents[1].name} has no {INDEX}, and of checkpoints {found}: download one and name its path"
        )
    return [*checkpoints, *matching(there, BESIDE)]


def networks(index: Mapping[str, Any]) -> list[str]:
    """The networks of a pipeline that a model is made of, as its index has them."""
    return [part for part in NETWORKS if isinstance(said := index.get(part), list) and all(said)]


def weights_of(part: str, folder: Path, there: Collection[str]) -> Iterator[str]:
    """The configuration of a network, and its weights in the first format there is."""
    found = next((name for name in WEIGHTS if f"{part}/{name}" in there), WEIGHTS[0])
    yield from (f"{part}/config.json", f"{part}/{found}")
    if found.endswith(".index.json"):
        said = json.loads((folder / part / found).read_text(encoding="utf-8"))
        yield from sorted({f"{part}/{Path(shard).name}" for shard in said["weight_map"].values()})


def matching(names: Iterable[str], patterns: Collection[str]) -> list[str]:
    """Those of the names that fit one of the patterns."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def absent(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that a folder does not have."""
    return [name for name in names if not (folder / name).is_file()]
