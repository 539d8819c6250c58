"""The topic model by sentence embeddings: how near a caption's vector lies to what says an aspect.

    s[b] = max over anchors a of b of <E(caption), E(a)>          E: unit vectors, so the product is the cosine

The anchors are the aspect's name, its phrases and its whole words. Any model of the library sentence-transformers
serves, by hub id or local folder; it runs on the CPU. A vector of a whole caption hears what the caption is about and
little of how it sounds: with all-MiniLM-L6-v2 the held-out macro-F1 is 0.54, where the lexicon's is 0.895. It is there
for aspects that no list of words can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.calib.prompts.coverage import Score
from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need


def embedding(aspects: Sequence[Aspect], model: str) -> Score:
    """Scores by cosine similarity to the anchors: captions [n] -> s [n, B].

    Raises: QuaverError without the extra `embed`; RecipeError when the model cannot be opened.
    """
    network = _open(model)
    anchors = [_vectors(network, _anchors(aspect)) for aspect in aspects]

    def score(captions: Sequence[str]) -> np.ndarray:
        vectors = _vectors(network, captions)
        return np.stack([(vectors @ anchor.T).max(axis=1) for anchor in anchors], axis=1)

    return score


def _anchors(aspect: Aspect) -> list[str]:
    return [aspect.name, *aspect.phrases, *(word for word in aspect.words if not word.endswith("*"))]


def _open(model: str) -> Any:
    library = need("sentence_transformers", extra="embed")
    try:
        return library.SentenceTransformer(str(Path(model).expanduser()) if "~" in model else model, device="cpu")
    except Exception as error:  # the library and the hub raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"prompts.embedding {model!r} cannot be opened ({reason}): name a sentence-transformers model on the hub,"
            " or a folder that holds one; leave it empty for the offline lexicon"
        ) from error


def _vectors(network: Any, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors [n, D] float64."""
    found = np.asarray(network.encode(list(texts), show_progress_bar=False), np.float64).reshape(len(texts), -1)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
