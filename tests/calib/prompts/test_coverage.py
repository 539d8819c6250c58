"""Redundancy of coverage vectors."""

from __future__ import annotations

import numpy as np

from quaver.calib.prompts.coverage import coverage, redundancy, redundancy_ratio


def test_a_score_above_the_threshold_covers() -> None:
    cover = coverage(lambda captions: np.array([[0.0, 1.0], [2.0, 0.5]]), np.array([0.0, 0.5]))
    assert cover(["a", "b"]).tolist() == [[False, True], [True, False]]


def test_redundancy_counts_ordered_pairs() -> None:
    vectors = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(bool)
    brute = sum(bool((a == b).all()) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j)
    assert redundancy(vectors) == brute
    assert redundancy_ratio(vectors) == brute / (40 * 39)


def test_one_caption_or_none_is_not_redundant() -> None:
    assert redundancy_ratio(np.ones((1, 4), bool)) == 0 == redundancy_ratio(np.ones((0, 4), bool))
