"""The tokenizer of a model: the one in its folder, or the published one from the hub, at the length its U-Net takes.

ids [B, L], mask [B, L]        L = `tokens`, where a U-Net has cross-attention over so many and no other number
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quaver.runtime.artifact import atomic
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    from quaver.exporter.model.source import Model

FILE = "tokenizer.json"
PADS = ("<pad>", "[PAD]")  # of T5 and RoBERTa, of BERT


def save_tokenizer(model: Model, path: Path) -> list[Path]:
    """Write the tokenizer of a model to `path`; nothing where it has none and none was published.

    Raises: RecipeError when it is damaged, or has to come from the hub and does not.
    """
    found = model.folder / "tokenizer" / FILE
    if not found.is_file():
        if not model.tokenizer:
            return []
        found = download(model.tokenizer, model.folder)
    with atomic(path) as temporary:
        if model.tokens:
            fit(found, model.tokens, temporary)
        else:
            temporary.write_bytes(found.read_bytes())
    return [path]


def download(hub_id: str, folder: Path) -> Path:
    """The tokenizer of a hub id, from the hub or its cache. Raises: RecipeError when neither has it."""
    hub = need("huggingface_hub", extra="export")
    try:
        return Path(hub.hf_hub_download(hub_id, FILE))
    except Exception as error:  # offline, unknown, gated: the hub has a class for each
        raise RecipeError(
            f"{folder} has no tokenizer/{FILE}, and the hub did not give {hub_id} ({first_line(error)}): put its "
            f"{FILE} there"
        ) from error


def fit(source: Path, tokens: int, out: Path) -> None:
    """Write a tokenizer that cuts and pads every prompt to `tokens`. Raises: RecipeError when it is none, or cannot."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:  # tokenizers raises nothing narrower
        raise RecipeError(f"{source} is not a tokenizer ({first_line(error)}): copy it again") from error
    pads = {word: number for word in PADS if (number := tokenizer.token_to_id(word)) is not None}
    if not pads:
        raise RecipeError(f"{source} has no token to pad with, expected {' or '.join(PADS)}: copy it again")
    word, number = next(iter(pads.items()))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=number, pad_token=word)
    tokenizer.save(str(out))
