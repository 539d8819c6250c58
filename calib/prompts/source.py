"""Captions from a file: text, one a line, or JSON lines.

What is wrong with a file is found here, before anything is computed, and named with its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from quaver.runtime.errors import RecipeError

LONGEST = 512  # characters of a caption
SPLITS = ("calib", "validate")


def prompts_file(source: str) -> Path | None:
    """The file a source names; None for the grammar and for classes."""
    if source in ("grammar", "classes"):
        return None
    # Data of a package above this one, found by name and never imported.
    return Path(str(files("quaver.demo") / "model" / "prompts.txt")) if source == "demo" else Path(source)


def read_captions(path: Path) -> list[tuple[str, str]]:
    """Captions of a text file (one a line) or of JSON lines ({"text", "split"}): pairs (text, split, may be "").

    Raises: RecipeError for a file that is missing, empty or not UTF-8, or a line that is no caption or repeats one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"prompts.source {path} is not UTF-8 (line {line}, byte {error.start}): save it as UTF-8, for example with"
            f" 'iconv -f WINDOWS-1252 -t UTF-8 {path}'"
        ) from error
    except OSError as error:
        raise RecipeError(
            f"prompts.source {path}: {error.strerror}; name a .txt or .jsonl file, or 'grammar'"
        ) from error
    first_line: dict[str, int] = {}
    captions = []
    for number, caption, split in _captions(path, text):
        if (earlier := first_line.setdefault(caption, number)) != number:
            raise RecipeError(f"prompts.source {path}: line {number} repeats line {earlier}, {caption!r}: remove one")
        captions.append((caption, split))
    if not captions:
        raise RecipeError(f"prompts.source {path} holds no caption: write one a line, or use source = 'grammar'")
    return captions


def _captions(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    json_lines = path.suffix == ".jsonl"
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = _row(line) if json_lines else {"text": line}
            said, split, place = row.get("text"), row.get("split", ""), f"prompts.source {path}: line {number}"
            if not isinstance(said, str):
                raise RecipeError(f'{place} is no JSON object with a text: write it as {{"text": "a dog barking"}}')
            caption = " ".join(said.split())
            if not 0 < len(caption) <= LONGEST or not caption.isprintable():
                raise RecipeError(
                    f"{place} is no caption of 1 to {LONGEST} printable characters (it has {len(caption)}): mend it"
                )
            if split not in ("", *SPLITS):
                raise RecipeError(f"{place} is of the split {split!r}: write {' or '.join(map(repr, SPLITS))}, or none")
            yield number, caption, split


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
