"""The offline topic model: which terms are heard, and what they weigh."""

from __future__ import annotations

from math import log

import pytest

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.lexicon import lexicon
from quaver.calib.prompts.thresholds import topics

DEFAULT = load_aspects()
COVER = topics(DEFAULT)


def aspects(*words: tuple[str, ...]) -> tuple[Aspect, ...]:
    return tuple(Aspect(f"a{n}", "aspect", listed) for n, listed in enumerate(words))


def covered(text: str) -> set[str]:
    return {aspect.name for aspect, hit in zip(DEFAULT, COVER([text])[0], strict=True) if hit}


def test_a_star_finds_endings_and_a_plain_word_does_not() -> None:
    score = lexicon(aspects(("low",), ("low*",)))
    assert (score(["slowly lower", "LOW."]) > 0).tolist() == [[False, True], [True, True]]


def test_a_word_weighs_less_the_more_aspects_list_it() -> None:
    score = lexicon(aspects(("own", "shared"), ("shared",), ("else",)))
    assert score(["own", "shared", "own shared"])[:, 0] == pytest.approx([1, log(2) / log(4), 1 + log(2) / log(4)])


def test_a_word_said_again_adds_the_logarithm_of_its_count() -> None:
    assert lexicon(aspects(("dog",)))(["dog dog dog"])[0, 0] == pytest.approx(1 + log(3))


def test_of_terms_that_overlap_the_longest_is_heard() -> None:
    score = lexicon(aspects(("fork",), ("tuning fork",), ("tun*",)))
    assert (score(["a tuning fork", "a fork for tuning"]) > 0).tolist() == [[False, True, False], [True, False, True]]


def test_no_caption_and_an_empty_one_have_no_score() -> None:
    score = lexicon(aspects(("dog",), ("cat",)))
    assert score([]).shape == (0, 2) and not score(["", "  "]).any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man speaking", {"speech"}),
        ("A Soft, high-pitched violin", {"music", "loudness", "pitch"}),
        ("a dog barking in a large hall", {"animal sounds", "reverberation"}),
        ("rain in the distance", {"environmental sound", "spatial coherence"}),
        ("a church organ", {"music"}),
        ("", set()),
        ("catalogue", set()),
    ],
)
def test_a_caption_covers_what_it_speaks_of_and_nothing_else(text: str, expected: set[str]) -> None:
    assert covered(text) == expected


@pytest.mark.parametrize("target", DEFAULT, ids=lambda aspect: aspect.name)
def test_every_phrase_of_the_default_taxonomy_covers_its_own_aspect(target: Aspect) -> None:
    assert COVER(target.phrases)[:, DEFAULT.index(target)].all()
