"""Which aspects a set of captions covers, and how much of it says the same.

    V_t [B] in {0, 1}:   V_t[b] = 1 when s_t[b] > theta[b]         score of a topic model, threshold of the aspect
    V_S = max over t in S of V_t                                   (OR)
    R(S) = sum_{i != j} 1[V_i = V_j]        ordered pairs;   R / (n (n - 1)) in [0, 1] compares sets of any size

PTQ4ADM, section 5.1. A raw R grows as n^2, so its threshold means something for one size of set only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Score = Callable[[Sequence[str]], np.ndarray]  # captions [n] -> s [n, B], higher says more of an aspect
Cover = Callable[[Sequence[str]], np.ndarray]  # captions [n] -> V [n, B] bool


def coverage(score: Score, thresholds: np.ndarray) -> Cover:
    """The coverage vectors of a topic model with thresholds theta [B]."""
    return lambda captions: score(captions) > thresholds


def redundancy(vectors: np.ndarray) -> int:
    """R, the ordered pairs of captions with equal coverage, from V [n, B]."""
    counts = np.unique(vectors, axis=0, return_counts=True)[1] if len(vectors) else np.zeros(0, int)
    return int((counts * (counts - 1)).sum())


def redundancy_ratio(vectors: np.ndarray) -> float:
    """R / (n (n - 1)): the chance that two captions cover the same; 0 for fewer than two."""
    n = len(vectors)
    return redundancy(vectors) / (n * (n - 1)) if n > 1 else 0.0
