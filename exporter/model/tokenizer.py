"""The tokenizers of a model: those in its folder, or the published one from the hub, at the length its U-Net takes.

ids [B, L], mask [B, L]        L = `tokens`, where a U-Net has cross-attention over so many and no other number
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.exporter.model.hub import INDEX, parts_of, why_silent
from quaver.runtime.artifact import atomic
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from quaver.exporter.model.source import Model

FILE = "tokenizer.json"
PADS = ("<pad>", "[PAD]")  # of T5 and RoBERTa, of BERT; CLIP's is another in each of its tokenizers
SAID = ("tokenizer_config.json", "special_tokens_map.json")  # where a folder names its own


def save_tokenizers(model: Model, bundle: Bundle) -> list[Path]:
    """Write the tokenizer of each text encoder of a model. Raises: RecipeError as `save_tokenizer`."""
    files = {"text_encoder": bundle.tokenizer, "text_encoder_2": bundle.tokenizer_2}
    return [
        written
        for part, path in files.items()
        if part in model.parts
        for written in save_tokenizer(model, path, path.parent.name)
    ]


def save_tokenizer(model: Model, path: Path, name: str = "tokenizer") -> list[Path]:
    """Write the tokenizer in the folder `name` of a model to `path`; nothing where it has none and none was published.

    Raises: RecipeError when it is damaged, or missing where the folder's index names it or the hub should give it.
    """
    found = model.folder / name / FILE
    if not found.is_file() and (found.parent / SAID[0]).is_file():
        made = converted(found.parent)
    elif found.is_file() or model.tokenizer:
        found = found if found.is_file() else download(model.tokenizer, model.folder)
        made = None
    elif named(model.folder, name):
        raise RecipeError(f"{model.folder} has no {name}/, which its {INDEX} names: copy the whole folder")
    else:
        return []
    with atomic(path) as temporary:
        if model.tokens or made:
            fit(made or opened(found), model.tokens, temporary, pad_of(model.folder / name), found)
        else:
            temporary.write_bytes(found.read_bytes())
    return [path]


def named(folder: Path, name: str) -> bool:
    """Whether the index of a saved pipeline names a part of it; a folder without index names none."""
    index = folder / INDEX
    return index.is_file() and bool(parts_of(json.loads(index.read_text(encoding="utf-8")), [name]))


def download(hub_id: str, folder: Path) -> Path:
    """The tokenizer of a hub id, from the hub or its cache. Raises: RecipeError when neither has it."""
    hub, silent = need("huggingface_hub", extra="export"), why_silent()
    try:
        return Path(hub.hf_hub_download(hub_id, FILE, local_files_only=bool(silent)))
    except Exception as error:  # offline, unknown, gated: the hub has a class for each
        raise RecipeError(
            f"{folder} has no tokenizer/{FILE}, and the hub did not give {hub_id} ({silent or first_line(error)}): put "
            f"its {FILE} there, or fetch it with: hf download {hub_id} {FILE}"
        ) from error


def opened(source: Path) -> Tokenizer:
    """The tokenizer in a file. Raises: RecipeError when it is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(source))
    except Exception as error:  # tokenizers raises nothing narrower
        raise RecipeError(f"{source} is not a tokenizer ({first_line(error)}): copy it again") from error


def converted(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of before `tokenizer.json`: words and merges. Raises: RecipeError when it is none."""
    transformers = need("transformers", extra="export")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # transformers has a class for each
        raise RecipeError(f"{folder} is not a tokenizer ({first_line(error)}): put its {FILE} there") from error


def pad_of(folder: Path) -> str:
    """The token that a folder says it pads with; "" when it says none."""
    for name in SAID:
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if word := said.get("content", "") if isinstance(said, dict) else said or "":
                return str(word)
    return ""


def fit(tokenizer: Tokenizer, tokens: int, out: Path, pad: str, source: Path) -> None:
    """Write a tokenizer that cuts and pads every prompt to `tokens`. Raises: RecipeError when it cannot pad."""
    pads = {word: number for word in (pad, *PADS) if (number := tokenizer.token_to_id(word)) is not None}
    if not pads:
        raise RecipeError(f"{source} has no token to pad with, expected {' or '.join(PADS)}: copy it again")
    word, number = next(iter(pads.items()))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=number, pad_token=word)
    tokenizer.save(str(out))
