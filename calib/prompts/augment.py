"""Coverage-driven prompt augmentation (PTQ4ADM, Algorithm 1).

    1. S = base captions, V_t for each
    2. the least covered aspect is the target; the generator writes a caption for it
    3. the caption joins S if its own vector covers the target and S does not hold it yet; else it is dropped
    4. until every aspect is covered and the budget of added captions is used up
    5. while R(S) / (n (n - 1)) > tau: a member of the largest group of equal vectors is replaced by a new caption that
       lowers R; a group of two or more never covers an aspect alone, so coverage stays

The paper's step 3 adds captions that fail, its text drops them; it stops at full coverage, while its Table 1 uses 700
added captions, hence the budget. I_max counts every call of the generator: the loop ends whatever the generator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.calib.prompts.coverage import coverage, redundancy, redundancy_ratio
from quaver.calib.prompts.grammar import Generate


@dataclass(frozen=True)
class Caption:
    """A caption, where it came from ("base" or "added:<aspect>") and its coverage V_t, bool [B]."""

    text: str
    origin: str
    covers: np.ndarray


@dataclass(frozen=True)
class Augmented:
    """S_final, the calls of the generator it took, and R before the last step."""

    captions: tuple[Caption, ...]
    iterations: int
    uncovered: tuple[str, ...]
    redundancy: int
    redundancy_ratio: float


def augment(
    base: Sequence[str],
    aspects: Sequence[Aspect],
    generate: Generate,
    *,
    budget: int,
    tau: float,
    i_max: int,
    rng: np.random.Generator,
) -> Augmented:
    """Extend `base` until every aspect is covered and `budget` captions are added, then thin out what says the same."""
    captions = [Caption(text, "base", coverage(text, aspects)) for text in base]
    used = _extend(captions, aspects, generate, budget, i_max, rng)
    used += _diversify(captions, aspects, generate, tau, i_max - used, rng)
    vectors = vectors_of(captions)
    missing = tuple(aspects[int(b)].name for b in np.flatnonzero(~vectors.any(axis=0)))
    return Augmented(tuple(captions), used, missing, redundancy(vectors), redundancy_ratio(vectors))


def vectors_of(captions: Sequence[Caption]) -> np.ndarray:
    """V [n, B] of captions."""
    return np.array([caption.covers for caption in captions])


def _extend(
    captions: list[Caption],
    aspects: Sequence[Aspect],
    generate: Generate,
    budget: int,
    i_max: int,
    rng: np.random.Generator,
) -> int:
    """Steps 2 to 4; how many calls it took."""
    failures, added = np.zeros(len(aspects), int), 0
    for call in range(i_max):
        counts = vectors_of(captions).sum(axis=0) if captions else np.zeros(len(aspects), int)
        # Over the budget only what is still uncovered is asked for; a target that keeps failing has to wait its turn.
        open_ = np.full(len(aspects), True) if added < budget else counts == 0
        if not open_.any():
            return call
        target = int(np.where(open_, counts + failures, np.iinfo(int).max).argmin())
        new = _propose(captions, aspects, target, generate, rng)
        if new is None:
            failures[target] += 1
        else:
            captions.append(new)
            added += 1
    return i_max


def _diversify(
    captions: list[Caption],
    aspects: Sequence[Aspect],
    generate: Generate,
    tau: float,
    i_max: int,
    rng: np.random.Generator,
) -> int:
    """Step 5; how many calls it took."""
    for call in range(i_max):
        vectors = vectors_of(captions)
        if redundancy_ratio(vectors) <= tau:
            return call
        _, group, sizes = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)
        crowd = np.flatnonzero(group.ravel() == sizes.argmax())
        target = int(rng.choice(np.flatnonzero(~vectors[crowd[0]]))) if not vectors[crowd[0]].all() else 0
        new = _propose(captions, aspects, target, generate, rng)
        if new is not None and (vectors == new.covers).all(axis=1).sum() < len(crowd) - 1:
            captions[crowd[-1]] = new
    return i_max


def _propose(
    captions: Sequence[Caption],
    aspects: Sequence[Aspect],
    target: int,
    generate: Generate,
    rng: np.random.Generator,
) -> Caption | None:
    """A new caption that covers the target by its own vector, or None when the generator failed."""
    texts = [caption.text for caption in captions]
    text = " ".join(generate(aspects[target], texts, rng).split())
    covers = coverage(text, aspects)
    return Caption(text, f"added:{aspects[target].name}", covers) if covers[target] and text not in texts else None
