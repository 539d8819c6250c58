"""Thresholds of a topic model, calibrated on captions labelled by hand.

    theta[b] = argmax over theta >= 0 of F1(s[:, b] > theta, label[:, b])     F1 = 2 tp / (2 tp + fp + fn)

Candidates lie half-way between neighbouring scores; of equal ones the lowest is taken. `labelled.jsonl` holds the
captions: a part to calibrate on and a part held out, on which `python -m benchmarks.coverage` reports macro-F1, the
mean over aspects. A label says that the caption itself speaks of the aspect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.coverage import Cover, Score, coverage
from quaver.runtime.errors import RecipeError


def topics(aspects: Sequence[Aspect], model: str = "") -> Cover:
    """Coverage vectors of the lexicon, or of a sentence-transformers model given by hub id or folder.

    An aspect's own threshold holds; else it is calibrated, if the labelled captions know the aspect by name; else it is
    0 for the lexicon: any of its words.
    Raises: RecipeError for an aspect without a threshold where similarities need one, and as `embedding`.
    """
    own = np.array([np.nan if aspect.threshold is None else aspect.threshold for aspect in aspects])
    known = np.atleast_1d(labelled("train", aspects)[1].any(axis=0))
    lost = [aspect.name for b, aspect in enumerate(aspects) if aspect.threshold is None and not known[b]]
    if model and lost:
        raise RecipeError(
            f"the aspect {lost[0]!r} has no threshold, and no labelled caption to calibrate one on: give it"
            " threshold = 0.4 or so in the file of prompts.aspects, or leave prompts.embedding empty"
        )
    score = topic_score(aspects, model)
    return coverage(score, np.where(np.isnan(own), calibrated(score, aspects), own))


def topic_score(aspects: Sequence[Aspect], model: str) -> Score:
    """The scores of the lexicon, or of an embedding model."""
    if model:
        from quaver.calib.prompts.embedding import embedding

        return embedding(aspects, model)
    from quaver.calib.prompts.lexicon import lexicon

    return lexicon(aspects)


def calibrated(score: Score, aspects: Sequence[Aspect]) -> np.ndarray:
    """theta [B] from the labelled captions to calibrate on; 0 for aspects that no caption is labelled with."""
    texts, labels = labelled("train", aspects)
    scores = score(texts)
    return np.array([best_threshold(scores[:, b], labels[:, b]) for b in range(len(aspects))])


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """theta of one aspect from scores [n] and labels [n]."""
    if not labels.any():
        return 0.0
    levels = np.unique(np.append(scores[scores > 0], 0.0))
    candidates = np.append(0.0, (levels[1:] + levels[:-1]) / 2)
    return float(candidates[f1((scores > candidates[:, None]).T, labels[:, None]).argmax()])


def f1(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 per column of bool [n, B]; 1 where nothing is labelled and nothing is found."""
    both, either = (found & labels).sum(axis=0), found.sum(axis=0) + labels.sum(axis=0)
    return np.where(either == 0, 1.0, 2 * both / np.maximum(either, 1))


def labelled(part: str, aspects: Sequence[Aspect]) -> tuple[list[str], np.ndarray]:
    """Captions [n] of a part and which aspects they were labelled with, bool [n, B]."""
    rows = [row for row in _rows() if row["part"] == part]
    return [row["text"] for row in rows], np.array([[a.name in row["covers"] for a in aspects] for row in rows])


def measure(model: str = "") -> dict[str, tuple[float, int]]:
    """Per aspect of the paper: F1 on the held-out captions, and how many of them are labelled with it."""
    aspects = load_aspects()
    texts, labels = labelled("held-out", aspects)
    found = topics(aspects, model)(texts)
    return {a.name: (float(f1(found, labels)[b]), int(labels[:, b].sum())) for b, a in enumerate(aspects)}


def _rows() -> list[dict[str, Any]]:
    text = (files("quaver.calib.prompts") / "labelled.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
