"""Whether a clip is what its caption asks for.

    by features   cos(features of the clip, features of the caption), in a space of sound and text: the CLAP score
    by words      share of what the caption says that the probe hears: the caption-attribute accuracy, offline

A probe's model comes with the words that name its classes, attribute by attribute. A caption says the class whose
phrase it holds, the longest phrase first and each word once ("bass register" is a register before "bass" is a drum).
Where it names none, or two, it says nothing of that attribute, and nothing is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quaver.runtime.measure.quality import Interval, bootstrap, mean_interval

Array = np.ndarray
Words = Mapping[str, Sequence[Sequence[str]]]  # attribute -> for each class, in the order of the logits, its phrases
UNSAID = -1


def cosine(features: Array, texts: Array) -> Array:
    """Cosine of features of clips `[N, D]` and of their captions `[N, D]`: `[N]` in [-1, 1]."""
    if np.shape(features) != np.shape(texts):
        raise ValueError(f"clips and captions differ in shape: {np.shape(features)} and {np.shape(texts)}")
    sizes = np.linalg.norm(features, axis=1) * np.linalg.norm(texts, axis=1)
    return np.einsum("nd,nd->n", features, texts) / np.maximum(sizes, np.finfo(np.float64).tiny)


def said(captions: Sequence[str], words: Words) -> Array:
    """The class that each caption names of each attribute, `[N, A]` int, `UNSAID` where it names none or several."""
    return np.array([list(_said(caption, words)) for caption in captions], int).reshape(len(captions), len(words))


def accuracies(
    verdicts: Mapping[str, Array],
    labels: Array,
    words: Words,
    *,
    rng: np.random.Generator,
    captions: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Share of captions whose class is heard, per attribute that some caption says, and over all that is said ("all").

    `verdicts` holds the classes heard `[N]` by attribute; `labels` `[N, A]` are those said, in the order of `words`.
    Intervals are bootstraps over clips; those of the same of `captions` [N] are drawn together.
    """
    heard = np.stack([verdicts[name] for name in words], axis=1)
    hits, told = heard == labels, labels != UNSAID

    def drawn(rows: Array) -> Any:
        return {"rng": rng, "groups": None if captions is None else np.asarray(captions)[rows].tolist()}

    found = {
        name: mean_interval(hits[rows, i], **drawn(rows))
        for i, name in enumerate(words)
        for rows in [told[:, i]]
        if rows.any()
    }
    if not found:
        return {}
    rows = told.any(axis=1)
    share = bootstrap(lambda h, t: (h & t).sum() / t.sum(), hits[rows], told[rows], **drawn(rows))
    return {"all": share, **found}


def _said(caption: str, words: Words) -> Iterator[int]:
    phrases = [
        (phrase.lower(), name, i) for name, rows in words.items() for i, row in enumerate(rows) for phrase in row
    ]
    left, named = caption.lower(), {name: set[int]() for name in words}
    for phrase, group in _by_length(phrases):
        left, times = re.subn(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", "\0", left)
        for name, i in group if times else ():
            named[name].add(i)
    for found in named.values():
        yield found.pop() if len(found) == 1 else UNSAID


def _by_length(phrases: Sequence[tuple[str, str, int]]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Phrases, the longest first, each with all that it names: "snare" is a family and a register."""
    meanings: dict[str, list[tuple[str, int]]] = {}
    for phrase, name, i in phrases:
        meanings.setdefault(phrase, []).append((name, i))
    yield from sorted(((phrase, group) for phrase, group in meanings.items() if phrase), key=lambda row: -len(row[0]))
