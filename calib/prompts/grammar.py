"""The offline caption generator: a sound, said with up to three aspects of how it sounds.

    caption = modality phrase { ", " aspect phrase }

It draws from the phrases of the taxonomy itself, so a user's own aspects are spoken too; an aspect without phrases is
said by its words. Deterministic given the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quaver.calib.prompts.aspects import Aspect

# (aspects to cover together, captions so far, generator) -> a new caption, which may fail to cover them
Generate = Callable[[Sequence[Aspect], Sequence[str], np.random.Generator], str]

PLAIN_SOUND = ("a sound", "a recording")  # said when a taxonomy has no modality


def grammar(aspects: Sequence[Aspect]) -> Generate:
    """A generator over a taxonomy."""
    modalities = [aspect for aspect in aspects if aspect.kind == "modality"]
    manners = [aspect for aspect in aspects if aspect.kind == "aspect"]

    def generate(targets: Sequence[Aspect], context: Sequence[str], rng: np.random.Generator) -> str:
        sounds = [aspect for aspect in targets if aspect.kind == "modality"] or _any(modalities, rng)
        how = [aspect for aspect in _shuffled(manners, rng) if aspect not in targets][: rng.integers(3)]
        said = [*(aspect for aspect in targets if aspect.kind == "aspect"), *how]
        sound = " and ".join([_say(aspect, rng) for aspect in sounds] or [PLAIN_SOUND[int(rng.integers(2))]])
        return ", ".join([sound, *(_say(aspect, rng) for aspect in said)])

    return generate


def grammar_captions(aspects: Sequence[Aspect], n: int, rng: np.random.Generator) -> list[str]:
    """Up to n distinct captions about aspects at random; fewer only when the taxonomy cannot say more."""
    generate, seen = grammar(aspects), dict[str, None]()
    for _ in range(50 * n):
        if len(seen) == n:
            break
        seen[generate([aspects[int(rng.integers(len(aspects)))]], (), rng)] = None
    return list(seen)


def _any(modalities: Sequence[Aspect], rng: np.random.Generator) -> list[Aspect]:
    return [modalities[int(rng.integers(len(modalities)))]] if modalities else []


def _shuffled(aspects: Sequence[Aspect], rng: np.random.Generator) -> list[Aspect]:
    return [aspects[int(i)] for i in rng.permutation(len(aspects))]


def _say(aspect: Aspect, rng: np.random.Generator) -> str:
    phrases = aspect.phrases or tuple(word.rstrip("*") for word in aspect.words)
    return phrases[int(rng.integers(len(phrases)))]
