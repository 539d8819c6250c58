"""The taxonomy B of what calibration prompts should cover: modalities (what sounds) and aspects (how it sounds).

The default is the paper's: 7 modalities and 9 aspects (PTQ4ADM, section 4). Any TOML file of the same form replaces it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from quaver.runtime.config import read_toml
from quaver.runtime.errors import RecipeError

KINDS = ("modality", "aspect")
_FIELDS = {"name", "kind", "words", "phrases", "threshold"}


@dataclass(frozen=True)
class Aspect:
    """One entry of B: `words` speak of it, `threshold` is the score above which a caption covers it, None for a
    calibrated one; the grammar says it with `phrases`."""

    name: str
    kind: str
    words: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    threshold: float | None = None


def load_aspects(path: str | Path = "") -> tuple[Aspect, ...]:
    """Read a taxonomy; the packaged default when `path` is empty.

    Raises: RecipeError when the file is missing, is not UTF-8 TOML, is empty, or names an aspect or a word twice.
    """
    entries = read_toml(Path(path or str(files("quaver.calib.prompts") / "aspects.toml"))).get("aspect", [])
    aspects = tuple(_aspect(entry, path) for entry in entries)
    if not aspects:
        raise RecipeError(f"prompts.aspects {path} names no aspect: add [[aspect]] tables with name, kind and words")
    _refuse_twice([aspect.name for aspect in aspects], f"prompts.aspects {path} names the aspect")
    return aspects


def _aspect(entry: dict[str, Any], path: str | Path) -> Aspect:
    name = str(entry.get("name", "")).strip()
    place = f"prompts.aspects {path}: aspect {name!r}"
    if unknown := set(entry) - _FIELDS:
        raise RecipeError(f"{place} has an unknown key {min(unknown)!r}: use {', '.join(sorted(_FIELDS))}")
    words = tuple(str(word).strip().lower() for word in entry.get("words", ()))
    if not name or not all(word.strip("* ") for word in words) or not words:
        raise RecipeError(f"{place} needs a name and a list of words")
    if (kind := entry.get("kind", "aspect")) not in KINDS:
        raise RecipeError(f"{place} is of kind {kind!r}: use 'modality' or 'aspect'")
    _refuse_twice(words, f"{place} lists the word")
    threshold = entry.get("threshold")
    if threshold is not None and (type(threshold) not in (int, float) or not threshold >= 0):
        raise RecipeError(f"{place} has the threshold {threshold!r}: use a number from 0, or leave it out")
    return Aspect(name, kind, words, tuple(map(str, entry.get("phrases", ()))), threshold)


def _refuse_twice(names: list[str] | tuple[str, ...], what: str) -> None:
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise RecipeError(f"{what} {twice[0]!r} twice: remove one of them")
