"""The taxonomy B of what calibration prompts should cover: modalities (what sounds) and aspects (how it sounds).

The default is the paper's: 7 modalities and 9 aspects (PTQ4ADM, section 4). "pictures" is one for models that draw:
what is seen, and how. Any TOML file of the same form replaces it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from quaver.runtime.config import read_toml, to_config
from quaver.runtime.errors import RecipeError

PICTURES = "pictures"


@dataclass(frozen=True)
class Aspect:
    """One entry of B: `words` speak of it, `threshold` is the score above which a caption covers it, None for a
    calibrated one; the grammar says it with `phrases`."""

    name: str
    kind: str
    words: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Entry:
    """A table [[aspect]] as it is written."""

    name: str
    words: tuple[str, ...]
    kind: Literal["modality", "aspect"] = "aspect"
    phrases: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Taxonomy:
    """A file of aspects."""

    aspect: tuple[Entry, ...] = ()


def load_aspects(path: str | Path = "") -> tuple[Aspect, ...]:
    """Read a taxonomy; the packaged default of sounds when `path` is empty, that of pictures when it is "pictures".

    Raises: RecipeError when the file is missing, is not UTF-8 TOML, is empty, holds what is no aspect, or names an
    aspect or a word twice.
    """
    packaged = {"": "aspects.toml", PICTURES: "pictures.toml"}.get(str(path))
    table = read_toml(Path(str(files("quaver.calib.prompts") / packaged)) if packaged else Path(path))
    try:
        aspects = tuple(_aspect(entry) for entry in to_config(Taxonomy, table).aspect)
        _refuse_twice([aspect.name for aspect in aspects], "it names the aspect")
    except RecipeError as error:
        raise RecipeError(f"prompts.aspects {path}: {error}") from error
    if not aspects:
        raise RecipeError(f"prompts.aspects {path} names no aspect: add [[aspect]] tables with name, kind and words")
    return aspects


def _aspect(entry: Entry) -> Aspect:
    name, words = entry.name.strip(), tuple(word.strip().lower() for word in entry.words)
    if not name or not all(word.strip("* ") for word in words) or not words:
        raise RecipeError(f"aspect {name!r} needs a name and a list of words")
    _refuse_twice(words, f"aspect {name!r} lists the word")
    if entry.threshold is not None and not entry.threshold >= 0:
        raise RecipeError(
            f"aspect {name!r} has the threshold {entry.threshold:g}: use a number from 0, or leave it out"
        )
    return Aspect(name, entry.kind, words, entry.phrases, entry.threshold)


def _refuse_twice(names: list[str] | tuple[str, ...], what: str) -> None:
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise RecipeError(f"{what} {twice[0]!r} twice: remove one of them")
