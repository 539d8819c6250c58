"""What a set of digits is worth, every measure with its values on resampled sets.

Image i of every set has the same class and noise, and all sets are resampled with the same indices, so that orders of
two sets keep the pairing (`benchmarks.orders`). The real images are resampled for recall alone, which is a share of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.digits.images import CLASSES, load_digits
from benchmarks.digits.probe import Read, load_probe, read_images
from benchmarks.orders import Measured, resamples
from quaver.runtime.measure.divergence import inception_score
from quaver.runtime.measure.frechet import frechet_gaussians, half_distances, moments
from quaver.runtime.measure.manifold import covered
from quaver.runtime.measure.quality import Interval, relative_error


@dataclass(frozen=True)
class Judge:
    """The real images as the probe reads them, and the resamples of N images [B, N] and of the real ones."""

    real: Read
    picks: np.ndarray
    real_picks: np.ndarray


def make_judge(count: int, *, draws: int = 200, seed: int = 0) -> Judge:
    """A judge of sets of `count` images."""
    real, rng = read_images(load_probe(), load_digits()[0]), np.random.default_rng(seed)
    size = len(real.features)
    return Judge(real, resamples(count, draws=draws, rng=rng), resamples(size, draws=draws, rng=rng))


def measure(images: np.ndarray, paths: np.ndarray | None, judge: Judge) -> dict[str, Measured]:
    """The measures of images [N, 1, 8, 8]; `paths` are those of the float engine from the same noise, if others."""
    read, real = read_images(load_probe(), images), judge.real
    flags = covered(read.features, real.features), covered(real.features, read.features)
    asked = np.arange(len(images)) % CLASSES
    found = {
        "Frechet": distance(read.features, real.features, judge.picks),
        "spatial": distance(read.spatial, real.spatial, judge.picks),
        "IS": resampled(read.classes, inception_score, judge.picks),
        "precision": mean(100 * flags[0], judge.picks),
        "recall": mean(100 * flags[1], judge.real_picks),
        "hit rate": mean(100 * (read.classes.argmax(axis=1) == asked), judge.picks),
    }
    return found if paths is None else found | {"latent error": mean(relative_error(images, paths), judge.picks)}


def distance(features: np.ndarray, real: np.ndarray, picks: np.ndarray) -> Measured:
    """Squared Frechet distance of features [N, D] to those of the real images [M, D]."""
    to = moments(real)
    return resampled(features, lambda part: frechet_gaussians(*moments(part), *to), picks)


def mean(values: np.ndarray, picks: np.ndarray) -> Measured:
    """Mean of values [N]."""
    values = np.asarray(values, np.float64)
    return Measured(float(values.mean()), values[picks].mean(axis=1), np.array([values.mean()]))


def resampled(rows: np.ndarray, statistic: Callable[[np.ndarray], float], picks: np.ndarray) -> Measured:
    """A statistic of rows [N, ...], and of the rows at each of `picks` [B, N]."""
    value = float(statistic(rows))
    return Measured(value, np.array([statistic(rows[pick]) for pick in picks]), np.array([value]))


def floors(images: np.ndarray, judge: Judge) -> dict[str, Interval]:
    """Frechet distances of halves, over random splits: real images to real ones, the float engine's to its own."""
    sets = {"real to real": judge.real.features, "FP to FP": read_images(load_probe(), images).features}
    found = {}
    for name, features in sets.items():
        floor, _ = half_distances(features, features, rng=np.random.default_rng(0))
        spread = Interval(float(floor.mean()), float(floor.min()), float(floor.max()))
        found[f"{name}, {len(features) // 2} images"] = spread
    return found
