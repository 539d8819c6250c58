"""The offline topic model: which words of a caption speak of which aspect, weighted as in class-based TF-IDF.

    s[b] = sum over words w heard for b of (1 + ln tf(w)) idf(w)          tf: how often the caption says w
    idf(w) = ln((1 + |B|) / k(w)) / ln(1 + |B|)                           k: how many aspects list w;  0 < idf <= 1

The documents of this TF-IDF are the aspects' own word lists, so a user's set needs no corpus. Of terms that overlap in
a caption the longest is heard: "tuning fork" is no fork, "church organ" no church. It gives up context: a word listed
is heard whatever it means there, and the threshold on s[b] is what decides how far one word is trusted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.calib.prompts.coverage import Score


def lexicon(aspects: Sequence[Aspect]) -> Score:
    """Scores by the words of the aspects: captions [n] -> s [n, B]."""
    patterns = [_pattern(aspect.words) for aspect in aspects]

    def score(captions: Sequence[str]) -> np.ndarray:
        return np.array([_scores(_plain(caption), patterns) for caption in captions]).reshape(-1, len(patterns))

    return score


def _scores(text: str, patterns: Sequence[re.Pattern[str]]) -> np.ndarray:
    """s [B] of one caption."""
    total, said = len(patterns), Counter[tuple[str, frozenset[int]]]()
    for (start, end), listed in _heard(text, patterns).items():
        said[text[start:end], frozenset(listed)] += 1
    scores = np.zeros(total)
    for (_, heard), count in said.items():
        scores[list(heard)] += (1 + log(count)) * log((1 + total) / len(heard)) / log(1 + total)
    return scores


def _heard(text: str, patterns: Sequence[re.Pattern[str]]) -> dict[tuple[int, int], list[int]]:
    """Spans of terms and the aspects that list them, without spans inside longer ones."""
    spans: dict[tuple[int, int], list[int]] = {}
    for number, pattern in enumerate(patterns):
        for match in pattern.finditer(text):
            spans.setdefault(match.span(), []).append(number)
    inside = {(s, e) for s, e in spans for a, b in spans if a <= s and e <= b and e - s < b - a}
    return {span: listed for span, listed in spans.items() if span not in inside}


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    terms = (re.escape(_plain(word)) + (r"\w*" if word.endswith("*") else "") for word in longest_first)
    return re.compile(rf"\b(?:{'|'.join(terms)})\b")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
