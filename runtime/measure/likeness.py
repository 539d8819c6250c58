"""How alike two pictures are.

With ``y`` the reference and ``q`` what is judged, of values in a range of width L,

    PSNR = 10 log10( L^2 / mean (q - y)^2 )                                                          (dB)
    SSIM = mean over places of  (2 m_q m_y + c1)(2 s_qy + c2) / ((m_q^2 + m_y^2 + c1)(s_q^2 + s_y^2 + c2))

m, s^2 and s_qy are means, variances and covariance under a Gaussian window of sigma 1.5 and 11 x 11 pixels, where it
fits into the picture; c1 = (0.01 L)^2, c2 = (0.03 L)^2 (Wang et al. 2004, Eq. 13). Channels are averaged.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
SIGMA, RADIUS = 1.5, 5


def psnr_db(q: Array, y: Array, *, span: float) -> Array:
    """Peak signal-to-noise ratio of pictures `[N, ...]` whose values span `span`, `[N]` in dB; infinite where equal."""
    _same_shape(q, y)
    error = ((np.asarray(q, np.float64) - y) ** 2).reshape(len(q), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / error)


def ssim(q: Array, y: Array, *, span: float) -> Array:
    """Structural similarity of pictures `[N, C, H, W]` whose values span `span`: `[N]`, 1 where they are equal.

    Raises: ValueError for pictures smaller than the window.
    """
    _same_shape(q, y)
    if np.ndim(q) != 4 or min(np.shape(q)[2:]) <= 2 * RADIUS:
        raise ValueError(f"pictures are [N, C, H, W], {2 * RADIUS + 1} pixels or more a side, got {list(np.shape(q))}")
    q, y = np.asarray(q, np.float64), np.asarray(y, np.float64)
    mean_q, mean_y = blur(q), blur(y)
    var_q, var_y, both = blur(q * q) - mean_q**2, blur(y * y) - mean_y**2, blur(q * y) - mean_q * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * mean_q * mean_y + c1) * (2 * both + c2)
    return (alike / ((mean_q**2 + mean_y**2 + c1) * (var_q + var_y + c2))).mean(axis=(1, 2, 3))


def blur(x: Array) -> Array:
    """Gaussian means of `[..., H, W]` where the window fits: `[..., H - 10, W - 10]`."""
    down, across = (_band(size) for size in x.shape[-2:])
    return down @ x @ across.T


def _band(size: int) -> Array:
    """The window at every place of a row as a matrix `[size - 10, size]`."""
    window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    band = np.zeros((size - 2 * RADIUS, size))
    for place, row in enumerate(band):
        row[place : place + len(window)] = window / window.sum()
    return band


def _same_shape(q: Array, y: Array) -> None:
    if np.shape(q) != np.shape(y):
        raise ValueError(f"paired pictures differ in shape: {np.shape(q)} and {np.shape(y)}")
