"""Algorithm 1: coverage, validation, redundancy, and that it always ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.augment import Augmented, Caption, Goal, augment
from quaver.calib.prompts.augment import vectors_of as vectors_over
from quaver.calib.prompts.coverage import redundancy, redundancy_ratio
from quaver.calib.prompts.grammar import Generate, grammar, grammar_captions
from quaver.calib.prompts.thresholds import topics

DEFAULT = load_aspects()
COVERS = topics(DEFAULT)
THREE = tuple(Aspect(name, "aspect", (name,)) for name in ("red", "green", "blue"))


def run(
    base: Sequence[str],
    aspects: Sequence[Aspect] = THREE,
    generate: Generate | None = None,
    *,
    seed: int = 0,
    **goal: Any,
) -> Augmented:
    cover = COVERS if aspects is DEFAULT else topics(aspects)
    goal = {"budget": 0, "tau": 1.0, "i_max": 200, **goal}
    rng = np.random.default_rng(seed)
    return augment(base, aspects, cover, generate or grammar(aspects), Goal(**goal), rng=rng)


def vectors_of(captions: Sequence[Caption]) -> np.ndarray:
    return vectors_over(captions, len(captions[0].covers))


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
        [f"red {n}" for n in range(9)], generate=lambda targets, said, rng: f"{targets[0].name} {len(said)}", budget=12
    )
    assert vectors_of(result.captions).sum(axis=0).tolist() == [9, 6, 6]


def test_a_caption_that_misses_its_target_is_dropped() -> None:
    result = run(
        ["red"], generate=lambda targets, said, rng: "green" if targets[0].name == "green" else "nothing", i_max=40
    )
    assert [caption.text for caption in result.captions] == ["red", "green"]
    assert result.uncovered == ("blue",)


def test_a_generator_that_always_fails_ends_after_i_max_calls() -> None:
    calls = []
    result = run(["red"], generate=lambda targets, said, rng: calls.append(targets[0].name) or "", budget=5, i_max=37)
    assert len(calls) == result.iterations == 37
    assert {"green", "blue"} <= set(calls)


def test_one_i_max_counts_covering_and_replacing_together() -> None:
    calls = []

    def repeat(targets: Sequence[Aspect], said: Sequence[str], rng: np.random.Generator) -> str:
        calls.append(targets[0].name)
        return f"{targets[0].name} {len(calls)}"

    result = run([f"red green blue {n}" for n in range(20)], generate=repeat, budget=4, tau=0.0, i_max=50)
    assert len(calls) == result.iterations == 50


def test_redundancy_is_brought_under_tau_and_coverage_stays() -> None:
    base = [f"a dog barking {n}" for n in range(12)]
    before = redundancy_ratio(COVERS(base))
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


def test_the_raw_count_bounds_what_the_ratio_does_not() -> None:
    base = [f"a dog barking {n}" for n in range(12)]
    assert redundancy(COVERS(base)) == 12 * 11
    result = run(base, DEFAULT, tau=20, redundancy="raw", i_max=2000)
    assert result.redundancy <= 20
    loose = run(base, DEFAULT, tau=20, redundancy="ratio")
    assert loose.redundancy == 12 * 11 and [c.origin for c in loose.captions[:12]] == ["base"] * 12


def test_a_base_that_covers_everything_once_per_caption_is_left_alone() -> None:
    base = ["red", "green", "blue"]
    result = run(base, tau=0.0)
    assert [caption.text for caption in result.captions] == base and result.iterations == 0


def test_replacing_never_takes_the_only_caption_of_an_aspect() -> None:
    result = run(["red", *(f"green {n}" for n in range(8)), "blue"], tau=0.0, i_max=300, budget=6)
    assert result.uncovered == ()
    assert {"red", "blue"} <= {caption.text for caption in result.captions}


def test_the_budget_evens_out_pairs() -> None:
    said = run(["red", "green", "blue"], generate=both, target="pair", budget=9, i_max=300)
    vectors = vectors_of(said.captions).astype(int)
    together = vectors.T @ vectors
    assert [together[i, j] for i, j in ((0, 1), (0, 2), (1, 2))] == [3, 3, 3]


def both(targets: Sequence[Aspect], said: Sequence[str], rng: np.random.Generator) -> str:
    return " ".join(aspect.name for aspect in targets) + f" {len(said)}"


def test_the_grammar_says_pairs_of_any_kind() -> None:
    rng, say = np.random.default_rng(0), grammar(DEFAULT)
    for first, second in combinations(range(len(DEFAULT)), 2):
        covers = COVERS([say([DEFAULT[first], DEFAULT[second]], (), rng) for _ in range(5)])
        assert covers[:, [first, second]].mean() > 0.85


def test_an_aspect_that_cannot_be_said_does_not_hold_up_the_budget() -> None:
    def never_blue(targets: Sequence[Aspect], said: Sequence[str], rng: np.random.Generator) -> str:
        return "" if targets[0].name == "blue" else f"{targets[0].name} {len(said)}"

    result = run(["red"], generate=never_blue, budget=10, i_max=100)
    assert result.uncovered == ("blue",) and result.iterations == 100
    assert vectors_of(result.captions).sum(axis=0).tolist() == [6, 5, 0]


def test_captions_that_differ_in_case_or_dots_are_the_same() -> None:
    texts = iter(["Green.", "GREEN!", "green thing", *[""] * 50])
    result = run(["red", "green"], generate=lambda targets, said, rng: next(texts), budget=1, i_max=5)
    assert [caption.text for caption in result.captions] == ["red", "green", "green thing"]


def test_the_grammar_gives_distinct_captions_and_stops_when_it_has_no_more() -> None:
    texts = grammar_captions(DEFAULT, 500, np.random.default_rng(0))
    assert len(texts) == len(set(texts)) == 500
    few = (Aspect("one", "modality", ("hum",)),)
    assert grammar_captions(few, 5, np.random.default_rng(0)) == ["hum"]
