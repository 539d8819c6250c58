"""A repository of the hub as a folder: only the files that a model is read from, at one commit, online or not.

    models--org--name/refs/main              a commit
    models--org--name/snapshots/<commit>/    the files, as far as they were fetched

Configurations come first and say what else is needed: the networks of a pipeline that are traced, each in one format
of weights; TANGO's files; or the one checkpoint of another layout. The cache of huggingface_hub keeps what it has of a
file, so a download that broke off goes on; offline, a whole snapshot in it is a model like any folder.

A hub that cannot be reached is asked once, here: huggingface_hub asks for every file seven times, the first time for
10 s and then for 60 s each, and only after that looks into its cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from quaver.exporter.checkpoints.layout import CLAPS, MAIN, TANGO, VOCODERS
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
NAMED = {  # what else a pipeline is read from, and the file that each has
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
WEIGHTS = (  # of a network, in order of preference; of an index, the files it lists too
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
WHOLE_TANGO = (TANGO, MAIN, "pytorch_model_vae.bin")
BESIDE = tuple(f"{folder}/*" for folder in (*VOCODERS, *CLAPS))  # of an original checkpoint

ANSWER = 5.0  # s that a hub may take to say anything; of every address its name has

log = logging.getLogger(__name__)


def is_hub_id(source: str) -> bool:
    """Whether a source has the form owner/name and is neither a folder here nor a file by its name."""
    file = Path(source).exists() or source.endswith(CHECKPOINTS)
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not file


def fetch(source: str, revision: str = "") -> Path:
    """The snapshot of a repository with all that its model is read from; its name is the commit.

    Raises: RecipeError when the hub does not give it, it holds no model, or offline a part of it is missing.
    """
    silent = why_silent()
    snapshot = partial(need("huggingface_hub", extra="export").snapshot_download, source, local_files_only=bool(silent))
    try:
        folder = Path(snapshot(revision=revision or None, allow_patterns=list(SETTINGS)))
        there, silent = (files_of(folder), silent) if silent else listing(source, folder)
        wanted = wanted_files(folder, there)
        if absent(folder, wanted) and not silent:
            snapshot(revision=folder.name, allow_patterns=wanted)
    except RecipeError:
        raise
    except Exception as error:  # unknown, gated, not in the cache: the hub has a class for each
        said = f"it cannot be asked, {silent}, and the cache has none" if silent else first_line(error)
        again = "run this again where it can, or " if silent else ""
        raise RecipeError(
            f"model.source {source!r} is no folder here, and the hub did not give it ({said}): {again}name a diffusers "
            "folder, or 'demo'"
        ) from error
    if missing := absent(folder, wanted):
        advice = "nor has the hub at that commit, name another model.revision or model.source"
        if silent:
            again = download_command(source, folder.name, missing)
            advice = f"the hub cannot be asked ({silent}), run this again where it can, or there {again}"
        raise RecipeError(f"of {source} only a part is here, {folder} lacks {', '.join(missing)}: {advice}")
    log.info("%s is at commit %s; model.revision = %r keeps it there", source, folder.name, folder.name)
    return folder


def download_command(source: str, commit: str, names: Iterable[str]) -> str:
    """What to type for some files of a repository; of a tokenizer all, for its configuration does not name them."""
    files = (name.replace("tokenizer_config.json", "*") for name in names)
    return f"hf download {source} --revision {commit} " + " ".join(f"--include '{file}'" for file in files)


def why_silent() -> str:
    """What keeps the hub from answering, asked once; "" when it answers, be it with a refusal."""
    ask = need("huggingface_hub.utils", extra="export").http_backoff
    at = need("huggingface_hub.constants", extra="export").ENDPOINT
    try:
        said = ask("HEAD", at, timeout=ANSWER, retry_on_exceptions=(), retry_on_status_codes=())
    except Exception as error:  # no route, no name, a proxy, told to ask nothing: a class for each
        return first_line(error)
    return f"it answers {said.status_code}" if said.status_code >= 500 else ""


def listing(source: str, folder: Path) -> tuple[set[str], str]:
    """The files of a repository at the commit of a snapshot; or those of the snapshot, and why the hub did not say."""
    try:
        return set(need("huggingface_hub", extra="export").list_repo_files(source, revision=folder.name)), ""
    except Exception as error:  # gated, gone, broken off: whether the snapshot is enough is seen by what is missing
        return files_of(folder), first_line(error)


def files_of(folder: Path) -> set[str]:
    """The files that a snapshot has, by their paths in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def wanted_files(folder: Path, there: Collection[str]) -> list[str]:
    """What a model is read from, of the files `there` are; `folder` has its configurations.

    Raises: RecipeError for several checkpoints, or none.
    """
    if INDEX in there:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weights = [file for part in parts_of(index, NETWORKS) for file in weights_of(part, folder, there)]
        return weights + [f"{part}/{NAMED[part]}" for part in parts_of(index, NAMED)]
    if "unet/config.json" in there:
        return list(weights_of("unet", folder, there))
    if TANGO in there:
        return list(WHOLE_TANGO)
    checkpoints = matching(there, ("*.ckpt",))
    if len(checkpoints) != 1:
        found = ", ".join(checkpoints) or "none"
        raise RecipeError(
            f"{folder.parents[1].name} has no {INDEX}, and of checkpoints {found}: download one and name its path"
        )
    return [*checkpoints, *matching(there, BESIDE)]


def parts_of(index: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the parts `names` that a pipeline is made of, as its index has them."""
    return [part for part in names if isinstance(said := index.get(part), list) and all(said)]


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
