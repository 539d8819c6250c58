"""Coverage vectors and redundancy."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.coverage import coverage, redundancy, redundancy_ratio

DEFAULT = load_aspects()


def covered(text: str) -> set[str]:
    return {aspect.name for aspect, hit in zip(DEFAULT, coverage(text, DEFAULT), strict=True) if hit}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man speaking", {"speech"}),
        ("A Soft, high-pitched violin", {"music", "loudness", "pitch"}),
        ("a dog barking in a large hall", {"animal sounds", "reverberation"}),
        ("rain in the distance", {"environmental sound", "spatial coherence"}),
        ("an organ playing a single note", {"music", "pitch"}),
        ("", set()),
        ("catalogue", set()),
    ],
)
def test_a_caption_covers_what_it_mentions_and_nothing_else(text: str, expected: set[str]) -> None:
    assert covered(text) == expected


def test_a_star_finds_endings_and_a_plain_word_does_not() -> None:
    aspects = (Aspect("a", "aspect", ("low",)), Aspect("b", "aspect", ("low*",)))
    assert coverage("slowly lower", aspects).tolist() == [False, True]


def test_redundancy_counts_ordered_pairs() -> None:
    vectors = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(bool)
    brute = sum(bool((a == b).all()) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j)
    assert redundancy(vectors) == brute
    assert redundancy_ratio(vectors) == brute / (40 * 39)


def test_one_caption_or_none_is_not_redundant() -> None:
    assert redundancy_ratio(np.ones((1, 4), bool)) == 0 == redundancy_ratio(np.ones((0, 4), bool))
