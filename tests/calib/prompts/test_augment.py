"""Algorithm 1: coverage, validation, redundancy, and that it always ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.augment import augment, vectors_of
from quaver.calib.prompts.coverage import coverage, redundancy_ratio
from quaver.calib.prompts.grammar import grammar, grammar_captions

DEFAULT = load_aspects()
THREE = tuple(Aspect(name, "aspect", (name,)) for name in ("red", "green", "blue"))


def run(base: Sequence[str], aspects=THREE, generate=None, *, budget=0, tau=1.0, i_max=200, seed=0):
    generate = generate or grammar(aspects)
    rng = np.random.default_rng(seed)
    return augment(base, aspects, generate, budget=budget, tau=tau, i_max=i_max, rng=rng)


def test_every_aspect_of_the_paper_is_covered_from_one_caption() -> None:
    result = run(["a dog barking"], DEFAULT)
    assert result.uncovered == ()
    assert len(result.captions) - 1 <= 16


def test_every_added_caption_covers_its_target() -> None:
    result = run(["a dog barking"], DEFAULT, budget=100, i_max=1000)
    names = [aspect.name for aspect in DEFAULT]
    assert len(result.captions) == 101
    for caption in result.captions[1:]:
        assert caption.covers[names.index(caption.origin.removeprefix("added:"))]


def test_the_budget_goes_to_the_least_covered_aspect() -> None:
    result = run(
        [f"red {n}" for n in range(9)], generate=lambda target, said, rng: f"{target.name} {len(said)}", budget=12
    )
    assert vectors_of(result.captions).sum(axis=0).tolist() == [9, 6, 6]


def test_a_caption_that_misses_its_target_is_dropped() -> None:
    result = run(["red"], generate=lambda target, said, rng: "green" if target.name == "green" else "nothing", i_max=40)
    assert [caption.text for caption in result.captions] == ["red", "green"]
    assert result.uncovered == ("blue",)


def test_a_generator_that_always_fails_ends_after_i_max_calls() -> None:
    calls = []
    result = run(["red"], generate=lambda target, said, rng: calls.append(target.name) or "", budget=5, i_max=37)
    assert len(calls) == result.iterations == 37
    assert {"green", "blue"} <= set(calls)


def test_one_i_max_counts_covering_and_replacing_together() -> None:
    calls = []

    def repeat(target: Aspect, said: Sequence[str], rng: np.random.Generator) -> str:
        calls.append(target.name)
        return f"{target.name} {len(calls)}"

    result = run([f"red green blue {n}" for n in range(20)], generate=repeat, budget=4, tau=0.0, i_max=50)
    assert len(calls) == result.iterations == 50


def test_redundancy_is_brought_under_tau_and_coverage_stays() -> None:
    base = [f"a dog barking {n}" for n in range(12)]
    before = redundancy_ratio(np.array([coverage(text, DEFAULT) for text in base]))
    result = run(base, DEFAULT, tau=0.05, i_max=2000)
    assert before == 1.0
    assert result.redundancy_ratio <= 0.05
    assert result.uncovered == ()


def test_what_it_reports_is_what_is_in_the_set() -> None:
    result = run([f"a dog barking {n}" for n in range(5)], DEFAULT, budget=10)
    vectors = vectors_of(result.captions)
    brute = sum((vectors[i] == vectors[j]).all() for i in range(len(vectors)) for j in range(len(vectors)) if i != j)
    assert result.redundancy == brute


def test_the_same_seed_gives_the_same_prompts() -> None:
    first, again, other = (run(["a dog"], DEFAULT, budget=30, i_max=500, seed=seed) for seed in (1, 1, 2))
    assert [c.text for c in first.captions] == [c.text for c in again.captions] != [c.text for c in other.captions]


@pytest.mark.parametrize("target", DEFAULT, ids=lambda aspect: aspect.name)
def test_every_phrase_of_the_default_taxonomy_covers_its_own_aspect(target: Aspect) -> None:
    position = DEFAULT.index(target)
    assert all(coverage(phrase, DEFAULT)[position] for phrase in target.phrases)


def test_the_grammar_gives_distinct_captions_and_stops_when_it_has_no_more() -> None:
    texts = grammar_captions(DEFAULT, 500, np.random.default_rng(0))
    assert len(texts) == len(set(texts)) == 500
    few = (Aspect("one", "modality", ("hum",)),)
    assert grammar_captions(few, 5, np.random.default_rng(0)) == ["hum"]
