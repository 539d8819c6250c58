"""The offline caption generator: a sound, said with up to three aspects of how it sounds.

    caption = modality phrase { ", " aspect phrase }

It draws from the phrases of the taxonomy itself, so a user's own aspects are spoken too; an aspect without phrases is
said by its words. Deterministic given the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quaver.calib.prompts.aspects import Aspect

# (aspect to cover, captions so far, generator) -> a new caption, which may fail to cover it
Generate = Callable[[Aspect, Sequence[str], np.random.Generator], str]

PLAIN_SOUND = ("a sound", "a recording")  # said when a taxonomy has no modality


def grammar(aspects: Sequence[Aspect]) -> Generate:
    """A generator over a taxonomy."""
    modalities = [aspect for aspect in aspects if aspect.kind == "modality"]
    manners = [aspect for aspect in aspects if aspect.kind == "aspect"]

    def generate(target: Aspect, context: Sequence[str], rng: np.random.Generator) -> str:
        sound = _pick(modalities, target, rng)
        how = [aspect for aspect in _shuffled(manners, rng) if aspect is not target][: rng.integers(3)]
        said = [target, *how] if target.kind == "aspect" else how
        return ", ".join([_say(sound, rng), *(_say(aspect, rng) for aspect in said)])

    return generate


def grammar_captions(aspects: Sequence[Aspect], n: int, rng: np.random.Generator) -> list[str]:
    """Up to n distinct captions about aspects at random; fewer only when the taxonomy cannot say more."""
    generate, seen = grammar(aspects), dict[str, None]()
    for _ in range(50 * n):
        if len(seen) == n:
            break
        seen[generate(aspects[int(rng.integers(len(aspects)))], (), rng)] = None
    return list(seen)


def _pick(modalities: Sequence[Aspect], target: Aspect, rng: np.random.Generator) -> Aspect | None:
    if target.kind == "modality":
        return target
    return modalities[int(rng.integers(len(modalities)))] if modalities else None


def _shuffled(aspects: Sequence[Aspect], rng: np.random.Generator) -> list[Aspect]:
    return [aspects[int(i)] for i in rng.permutation(len(aspects))]


def _say(aspect: Aspect | None, rng: np.random.Generator) -> str:
    phrases = PLAIN_SOUND if aspect is None else aspect.phrases or tuple(word.rstrip("*") for word in aspect.words)
    return phrases[int(rng.integers(len(phrases)))]
