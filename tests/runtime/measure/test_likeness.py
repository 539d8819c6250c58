from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import likeness


@pytest.fixture
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures [4, 3, 32, 24] in 0..1, and the same with noise."""
    rng = np.random.default_rng(0)
    y = np.cumsum(np.cumsum(rng.normal(size=(4, 3, 32, 24)), axis=2), axis=3)
    y = (y - y.min()) / (y.max() - y.min())
    return np.clip(y + 0.05 * rng.normal(size=y.shape), 0, 1), y


def test_ssim_equals_that_of_scikit_image(pictures):
    structural = pytest.importorskip("skimage.metrics").structural_similarity
    q, y = pictures
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural(a, b, channel_axis=0, **options) for a, b in zip(q, y, strict=True)]
    assert likeness.ssim(q, y, span=1.0) == pytest.approx(expected, abs=1e-6)


def test_psnr_equals_that_of_scikit_image(pictures):
    peak = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    q, y = pictures
    expected = [peak(b, a, data_range=2.0) for a, b in zip(q, y, strict=True)]
    assert likeness.psnr_db(q, y, span=2.0) == pytest.approx(expected, abs=1e-6)


def test_an_error_of_a_tenth_of_the_range_is_twenty_decibels():
    y = np.random.default_rng(1).uniform(size=(2, 1, 12, 12))
    assert likeness.psnr_db(y + 0.1, y, span=1.0) == pytest.approx([20.0, 20.0])
    assert np.isinf(likeness.psnr_db(y, y, span=1.0)).all()


def test_flat_pictures_are_alike_as_their_levels_are():
    q, y = np.full((1, 1, 16, 16), 0.25), np.full((1, 1, 16, 16), 0.75)
    c1 = 0.01**2
    assert likeness.ssim(q, y, span=1.0) == pytest.approx([(2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1)])
    assert likeness.ssim(y, y, span=1.0) == pytest.approx([1.0])


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="11 pixels or more a side"):
        likeness.ssim(np.ones((1, 1, 8, 8)), np.ones((1, 1, 8, 8)), span=1.0)
    with pytest.raises(ValueError, match="paired pictures differ in shape"):
        likeness.psnr_db(np.ones((1, 1, 8, 8)), np.ones((2, 1, 8, 8)), span=1.0)
