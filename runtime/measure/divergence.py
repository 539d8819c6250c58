"""What a classifier hears in two sets, as divergences of its class probabilities p(y|x).

    paired    KL_i  = sum over y of p(y|r_i) ln( p(y|r_i) / (p(y|g_i) + 1e-6) )              one item: reference, judged
    score     IS    = exp( mean over x of sum over y of p(y|x) ln( p(y|x) / p(y) ) )

The paired form is that of AudioGen (Kreuk et al. 2023) as evaluations of text-to-audio compute it, softmax and 1e-6
included: two equal items are at -1e-6 times the number of classes, not at 0. The score is the mean over splits of the
inception score (Salimans et al. 2016); between 1 and the number of classes, and larger for larger splits.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
EPSILON = 1e-6


def softmax(logits: Array) -> Array:
    """Class probabilities `[..., K]` of `logits` `[..., K]`, in float64."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def paired_kl(reference: Array, judged: Array) -> Array:
    """KL divergence of each item's probabilities `[N, K]` from those of its reference, `[N]` in nats."""
    if np.shape(reference) != np.shape(judged):
        raise ValueError(f"paired probabilities differ in shape: {np.shape(reference)} and {np.shape(judged)}")
    return _relative_entropy(reference, np.asarray(judged, np.float64) + EPSILON)


def inception_score(probabilities: Array, *, splits: int = 1) -> float:
    """Mean over `splits` parts, in order, of the inception score of `probabilities` `[N, K]`."""
    parts = np.array_split(np.asarray(probabilities, np.float64), splits)
    return float(np.mean([np.exp(_relative_entropy(part, part.mean(axis=0)).mean()) for part in parts]))


def _relative_entropy(p: Array, q: Array) -> Array:
    """Sum over the last axis of p ln(p / q), where 0 ln 0 is 0."""
    p = np.asarray(p, np.float64)
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=-1)
