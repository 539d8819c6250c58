"""Coverage-driven prompt augmentation (PTQ4ADM, Algorithm 1).

    1. S = base captions, V_t for each
    2. while an aspect is uncovered, it is the target: the generator writes a caption for it
    3. the caption joins S if its own vector covers the target and S does not hold it yet; else it is dropped
    4. while R(S) > tau, a member of the largest group of equal vectors is replaced by a new caption that lowers R;
       a group of two or more never covers an aspect alone, so coverage stays
    5. captions for the least covered aspect, or pair of aspects, until the budget of added ones is used up; 4 again

The paper's step 3 adds captions that fail, its text drops them; it stops at full coverage, while its Table 1 uses 700
added captions, hence 5. One counter runs over everything: I_max calls of the generator end it whatever it does. What
keeps failing waits its turn, so that one aspect that cannot be said holds nothing else up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.calib.prompts.coverage import Cover, redundancy, redundancy_ratio
from quaver.calib.prompts.grammar import Generate

Target = tuple[int, ...]  # the aspects that a caption is asked for


@dataclass(frozen=True)
class Goal:
    """When it is enough: captions to add, the redundancy allowed and how it is counted, the calls of the generator."""

    budget: int
    tau: float
    i_max: int
    target: Literal["aspect", "pair"] = "aspect"
    redundancy: Literal["ratio", "raw"] = "ratio"

    def redundant(self, vectors: np.ndarray) -> bool:
        """Whether R of V [n, B], or its ratio, exceeds tau."""
        return (redundancy if self.redundancy == "raw" else redundancy_ratio)(vectors) > self.tau


@dataclass(frozen=True)
class Caption:
    """A caption, where it came from ("base" or "added:<aspects>") and its coverage V_t, bool [B]."""

    text: str
    origin: str
    covers: np.ndarray


@dataclass(frozen=True)
class Augmented:
    """S_final, the calls of the generator it took, and R as raw count and as ratio."""

    captions: tuple[Caption, ...]
    iterations: int
    uncovered: tuple[str, ...]
    redundancy: int
    redundancy_ratio: float


@dataclass
class _Search:
    """Where the loop stands."""

    captions: list[Caption]
    goal: Goal
    total: int  # aspects
    added: int = 0
    refused: bool = False  # the last caption that should have replaced another did not lower R
    failures: dict[Target, int] = field(default_factory=dict)


def augment(
    base: Sequence[str],
    aspects: Sequence[Aspect],
    cover: Cover,
    generate: Generate,
    goal: Goal,
    *,
    rng: np.random.Generator,
    on_added: Callable[[], object] = lambda: None,
) -> Augmented:
    """Extend `base` until every aspect is covered and the goal's budget is added, without saying the same too often."""
    covers = cover(base) if base else np.zeros((0, len(aspects)), bool)
    captions = [Caption(text, "base", row) for text, row in zip(base, covers, strict=True)]
    search, calls = _Search(captions, goal, len(aspects)), 0
    while calls < goal.i_max and (step := _next(search)):
        target, crowd = step
        new = _propose(captions, aspects, target, cover, generate, rng)
        calls += 1
        if _accept(search, new, target, crowd) and crowd is None:
            on_added()
    vectors = vectors_of(captions, len(aspects))
    missing = tuple(aspects[int(b)].name for b in np.flatnonzero(~vectors.any(axis=0)))
    return Augmented(tuple(captions), calls, missing, redundancy(vectors), redundancy_ratio(vectors))


def vectors_of(captions: Sequence[Caption], total: int) -> np.ndarray:
    """V [n, B] of captions over `total` aspects."""
    return np.array([caption.covers for caption in captions], bool).reshape(-1, total)


def _next(search: _Search) -> tuple[Target, np.ndarray | None] | None:
    """What to ask for, and the captions [c] of which it replaces one, if it does; None when the goal is reached."""
    vectors, goal = vectors_of(search.captions, search.total), search.goal
    open_ = np.flatnonzero(~vectors.any(axis=0))
    room, redundant = search.added < goal.budget, goal.redundant(vectors)
    target = _least(search, vectors, range(search.total))
    if target[0] in open_:
        return target, None
    if redundant and not (search.refused and (room or len(open_))):
        crowd = _crowd(vectors)
        unsaid = np.flatnonzero(~vectors[crowd[0]])
        return _least(search, vectors, unsaid if len(unsaid) else range(search.total)), crowd
    if room:
        return target if goal.target == "aspect" else _least_pair(search, vectors), None
    return (_least(search, vectors, open_), None) if len(open_) else None


def _accept(search: _Search, new: Caption | None, target: Target, crowd: np.ndarray | None) -> bool:
    """Take a caption into the set, in place of a member of the crowd if there is one; whether it was taken."""
    if new is not None and crowd is not None:
        same = (vectors_of(search.captions, search.total) == new.covers).all(axis=1).sum()
        new = new if same < len(crowd) - 1 else None
    search.refused = crowd is not None and new is None
    if new is None:
        search.failures[target] = search.failures.get(target, 0) + 1
    elif crowd is not None:
        search.captions[crowd[-1]] = new
    else:
        search.captions.append(new)
        search.added += 1
    return new is not None


def _least(search: _Search, vectors: np.ndarray, among: Sequence[int] | np.ndarray | range) -> Target:
    """The least covered aspect, failures counted like captions."""
    counts = vectors.sum(axis=0)
    return min(((int(b),) for b in among), key=lambda target: counts[target[0]] + search.failures.get(target, 0))


def _least_pair(search: _Search, vectors: np.ndarray) -> Target:
    """The pair of aspects that the fewest captions cover together; the one aspect where there is no pair."""
    both = vectors.T.astype(int) @ vectors.astype(int)
    pairs: list[Target] = [*combinations(range(search.total), 2)] or [(0,)]
    return min(pairs, key=lambda pair: both[pair[0], pair[-1]] + search.failures.get(pair, 0))


def _crowd(vectors: np.ndarray) -> np.ndarray:
    """The captions of the largest group of equal vectors."""
    _, group, sizes = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(group.ravel() == sizes.argmax())


def _propose(
    captions: Sequence[Caption],
    aspects: Sequence[Aspect],
    target: Target,
    cover: Cover,
    generate: Generate,
    rng: np.random.Generator,
) -> Caption | None:
    """A new caption that covers the target by its own vector, or None when the generator failed."""
    asked, texts = [aspects[b] for b in target], [caption.text for caption in captions]
    text = " ".join(generate(asked, texts, rng).split())
    if not text or _plain(text) in {_plain(known) for known in texts}:
        return None
    covers = cover([text])[0]
    origin = f"added:{' + '.join(aspect.name for aspect in asked)}"
    return Caption(text, origin, covers) if covers[list(target)].all() else None


def _plain(text: str) -> str:
    """What makes two captions the same: their words."""
    return " ".join(re.findall(r"\w+", text.lower()))
