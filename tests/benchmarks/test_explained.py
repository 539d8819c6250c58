"""The table and the picture of the share explained: every number where it belongs."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.explained import compared, shares
from benchmarks.explained_picture import HEIGHT, WIDTH, draw_explained
from quaver.runtime.error_law import ErrorStats

TIMESTEPS = np.array([901, 501, 1])


def stats(rho: np.ndarray, s_D: float) -> ErrorStats:
    """Var[q] = 1, rho [S, C]."""
    cov = np.stack([np.ones_like(rho), rho * s_D, rho * s_D, np.full_like(rho, s_D**2)], axis=-1).reshape(3, 2, 2, 2)
    return ErrorStats(TIMESTEPS, np.zeros((3, 2, 2)), cov, np.full(3, 9.0))


DEPLOYED = stats(np.array([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]]), 0.1)
SIMULATED = stats(np.array([[0.1, 0.1], [0.1, 0.2], [0.4, 0.4]]), 0.2)


def test_a_row_has_both_engines_of_a_timestep_and_of_every_channel() -> None:
    row = compared(DEPLOYED, SIMULATED)[1]
    assert row["t"] == 501 and row["0"] == "4.00/1.00" and row["1"] == "9.00/4.00"
    assert row["rho^2"] == pytest.approx((0.04 + 0.09) / 2) and row["simulated rho^2"] == pytest.approx(0.025)
    assert row["C11/Var[e]"] == pytest.approx(0.02 / (2 - 2 * 0.05 + 0.02))


def test_the_picture_has_a_panel_per_channel_and_both_curves_on_one_axis() -> None:
    svg = draw_explained(TIMESTEPS, shares(DEPLOYED), shares(SIMULATED))
    ElementTree.fromstring(svg.encode())
    curves = re.findall(r'points="([^"]+)" class="line (\w+)"', svg)
    assert [name for _, name in curves] == ["simulated", "deployed"] * 2
    top = 0.5  # the axis is even in rho, whose largest is 0.5
    for (points, _), values in zip(curves[1::2], shares(DEPLOYED).T, strict=True):
        x, y = np.array([point.split(",") for point in points.split()], float).T
        np.testing.assert_allclose(x, [0, WIDTH / 2, WIDTH], atol=0.06)
        np.testing.assert_allclose(y, HEIGHT * (1 - np.sqrt(values) / top), atol=0.06)
    assert re.findall(r">([\d.]+%)<", svg) == ["0%", "1%", "4%", "9%", "16%", "25%"]
    assert "prefers-color-scheme: dark" in svg
