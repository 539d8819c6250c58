"""What is shown of error statistics, against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quaver.calib.explained import as_simulated, columns, explained, relative_variance
from quaver.runtime.error_law import Gaussian
from tests.runtime.gaussians import gaussian_stats, joint


def test_the_share_explained_is_weighted_by_the_variance_of_each_channel() -> None:
    """Channels with rho 0.6 and 0.8 and deviations 0.2 and 0.1 of the error: (0.36 * 4 + 0.64) / 5."""
    cov = np.stack([joint(0.6, s_D=0.2)[1], joint(0.8, s_D=0.1)[1]])
    stats = gaussian_stats(np.zeros((2, 2)), cov, channels=2)
    np.testing.assert_allclose(explained(stats), (0.36 * 0.04 + 0.64 * 0.01) / 0.05)
    spread = 2 * 0.81 - 2 * (0.6 * 0.9 * 0.2 + 0.8 * 0.9 * 0.1) + 0.05
    np.testing.assert_allclose(relative_variance(stats), 0.05 / spread)


def test_deployed_and_simulated_stand_side_by_side() -> None:
    stats = gaussian_stats(*joint(0.6), channels=2)
    other = gaussian_stats(*joint(0.3, mu=(0.0, 0.02)), channels=2)
    stats = replace(stats, simulated=Gaussian(other.mean, other.cov))
    table = columns(stats, {"local": [0.1, 0.2, 0.3]})
    assert table["t"] == [951, 501, 1] and table["local law"] == [0.1, 0.2, 0.3]
    assert table["deployed rho^2"] == pytest.approx([0.36] * 3)
    assert table["simulated rho^2"] == pytest.approx([0.09] * 3)
    assert table["deployed mean D"] == pytest.approx([-0.05] * 3)
    assert table["simulated mean D"] == pytest.approx([0.02] * 3)
    assert not any(name.startswith("simulated") for name in columns(other))


def test_an_engine_without_error_explains_nothing_and_has_none() -> None:
    """Statement 20: C11 = 0."""
    stats = gaussian_stats((0.3, 0.0), np.diag([0.81, 0.0]))
    assert not explained(stats).any() and not relative_variance(stats).any()
    assert as_simulated(stats) is None
