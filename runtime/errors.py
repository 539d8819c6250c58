"""The errors a user can cause and mend, one line each: what happened, observed against expected, what to type.

The console script prints the message alone and exits with 1. Anything that is not a `QuaverError` is a bug of ours and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class QuaverError(Exception):
    """A user's error: the message is the whole explanation."""


class RecipeError(QuaverError):
    """A recipe, a setting or a name that cannot be meant."""


class ArtifactError(QuaverError):
    """A stage file that is missing, damaged, of another kind, out of date, or that cannot be written."""


class EngineError(QuaverError):
    """An engine that cannot be opened, or that answers with something else than it promised."""


def first_line(error: BaseException) -> str:
    """What a library's error says, up to its first line break and 300 characters; its class when it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """The one line about a name that is not among the valid ones: the nearest of them, or all."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names) or 'none'}"
    return f"unknown {what} {name!r}; {advice}"
