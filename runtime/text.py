"""Prompts: what is accepted, and how they become token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.errors import ArtifactError, QuaverError

MAX_CHARACTERS = 20_000  # what a tokenizer cuts is told; more than this was pasted by mistake

log = logging.getLogger(__name__)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that say nothing, and texts pasted by mistake.

    Raises: QuaverError naming the prompt.
    """
    if not prompts:
        raise QuaverError('no prompt given: say what to hear, for example --prompt "a soft low cello note"')
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise QuaverError(f'prompt {number} is empty: say what to hear, for example "a soft low cello note"')
        if len(prompt) > MAX_CHARACTERS:
            raise QuaverError(
                f"prompt {number} has {len(prompt)} characters, expected at most {MAX_CHARACTERS}: shorten it "
                f"({shown(prompt)})"
            )


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are none.

    Raises: QuaverError when it cannot be read or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise QuaverError(f"cannot read {path} ({why}): --prompts takes a text file, one prompt a line") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise QuaverError(f"{path} has no prompts: write one a line")
    return prompts


def shown(prompt: str, length: int = 40) -> str:
    """The beginning of a prompt, quoted, on one line."""
    line = " ".join(prompt.split())
    return repr(line if len(line) <= length else line[: length - 1] + "…")


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that pads to its own maximum, so that a prompt's ids do not depend on its neighbours.

    Raises: ArtifactError when the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist: 'quaver run RECIPE' writes it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ArtifactError(f"{path} is not a tokenizer ({error}): 'quaver trace RECIPE' writes it anew") from error
    padding = tokenizer.padding or {}
    if limit := (tokenizer.truncation or {}).get("max_length"):
        keep = {name: padding[name] for name in ("direction", "pad_id", "pad_type_id", "pad_token") if name in padding}
        tokenizer.enable_padding(length=limit, **keep)
    elif not padding:
        tokenizer.enable_padding()
    return tokenizer


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask, each [B, L] int64; a prompt that does not fit is cut, with one warning."""
    encodings = tokenizer.encode_batch(list(prompts))
    for prompt, encoding in dict(zip(prompts, encodings, strict=True)).items():
        if encoding.overflowing:
            tell_cut(prompt, len(encoding.ids), max(end for _, end in encoding.offsets))
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    return ids, np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)


@lru_cache(maxsize=1000)  # a prompt comes back in every batch and pass, and is told of once
def tell_cut(prompt: str, tokens: int, end: int) -> None:
    """Warn, once in a process, that of a prompt only `tokens` tokens are taken, up to character `end`."""
    rest = shown(prompt[end:])
    log.warning("prompt %s is cut after token %d; what follows is not heard: %s", shown(prompt), tokens, rest)
