"""Which aspects a set of captions covers, and how much of it says the same.

    V_t [B] in {0, 1}:   V_t[b] = 1 when caption t mentions aspect b            (here: one of its words, a lexicon)
    V_S = max over t in S of V_t                                                (OR)
    R(S) = sum_{i != j} 1[V_i = V_j]        ordered pairs;   R / (n (n - 1)) in [0, 1] compares sets of any size

PTQ4ADM, section 5.1. An absolute threshold on R means nothing when the set grows, so thresholds are on the ratio.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from quaver.calib.prompts.aspects import Aspect


def coverage(caption: str, aspects: Sequence[Aspect]) -> np.ndarray:
    """V_t, bool [B]: which aspects a caption mentions."""
    text = _plain(caption)
    return np.array([re.search(_pattern(aspect.words), text) is not None for aspect in aspects])


def redundancy(vectors: np.ndarray) -> int:
    """R, the ordered pairs of captions with equal coverage, from V [n, B]."""
    counts = np.unique(vectors, axis=0, return_counts=True)[1] if len(vectors) else np.zeros(0, int)
    return int((counts * (counts - 1)).sum())


def redundancy_ratio(vectors: np.ndarray) -> float:
    """R / (n (n - 1)): the chance that two captions cover the same; 0 for fewer than two."""
    n = len(vectors)
    return redundancy(vectors) / (n * (n - 1)) if n > 1 else 0.0


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _pattern(words: Sequence[str]) -> str:
    # re keeps the compiled pattern of each aspect
    return "|".join(rf"\b{_plain(word)}" + (r"\w*" if word.endswith("*") else r"\b") for word in words)
