"""The 1797 handwritten digits of 8 x 8 pixels that scikit-learn ships (UCI's "Optical Recognition of Handwritten
Digits", test part), as samples of a diffusion model.

    x = grey / 8 - 1     in [-1, 1], grey of 0 to 16
"""

from __future__ import annotations

import numpy as np

from quaver.runtime.lazy import need

CLASSES = 10
SHAPE = (1, 8, 8)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 1, 8, 8] float32 in [-1, 1] and what they show [1797] int64.

    Raises: QuaverError without scikit-learn.
    """
    pixels, labels = need("sklearn.datasets", extra="embed").load_digits(return_X_y=True)
    return (pixels.reshape(-1, *SHAPE) / 8 - 1).astype(np.float32), labels.astype(np.int64)


def held_out(count: int) -> np.ndarray:
    """Which of `count` images the probe is not trained on [count] bool: every fifth."""
    return np.arange(count) % 5 == 4
