from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from quaver.runtime.measure import chart


@pytest.mark.parametrize(
    ("top", "expected"),
    [(4.6, [0, 2, 4, 6]), (10, [0, 5, 10]), (0.05, [0, 0.02, 0.04, 0.06]), (0.0, [0, 2.5e-13])],
)
def test_ticks_are_round_and_reach_the_top(top: float, expected: list[float]):
    found = chart.ticks(top)
    assert found[-1] >= top
    if top:
        assert found == pytest.approx(expected)


def test_a_curve_runs_from_corner_to_corner():
    svg = chart.lines([chart.Curve("none", [0.0, 0.5, 1.0])], x="step", y="error", label="Drift")
    points = re.search(r'points="([^"]+)"', svg).group(1).split()
    assert points == ["44.0,196.0", "216.0,103.0", "388.0,10.0"]


def test_a_curve_below_zero_has_its_axis_there():
    svg = chart.lines([chart.Curve("none", [-1.0, 0.0, 1.0])], x="step", y="share", label="Explained")
    assert re.search(r'points="([^"]+)"', svg).group(1).split() == ["44.0,196.0", "216.0,103.0", "388.0,10.0"]
    assert ">-1.0<" in svg or ">-1<" in svg


def test_beside_a_region_the_axis_is_logarithmic():
    curves = [chart.Curve("none", [0.01, 0.1])]
    svg = chart.lines(curves, x="step", y="error", label="Drift", beyond=chart.Curve("seeds", [1.0, 1.0]))
    (_, low), (_, middle) = [map(float, p.split(",")) for p in re.search(r'line ink" points="([^"]+)"', svg)[1].split()]
    *_, corner, _ = re.search(r'beyond" points="([^"]+)"', svg)[1].split()
    assert low - middle == pytest.approx(middle - float(corner.split(",")[1]), abs=0.1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.02, 0.08], [0.02, 0.05, 0.1]), ([0.0003, 1.3], [0.0002, 0.001, 0.01, 0.1, 1, 2]), ([0.0, 1.0], [1, 2])],
)
def test_marks_of_a_logarithmic_axis_enclose_what_is_above_zero(values: list[float], expected: list[float]):
    assert chart.decades(values) == pytest.approx(expected)


def test_marks_stand_in_proportion_to_their_values():
    rows = [chart.Row("a", 1.0, 0.5, 2.0), chart.Row("b", 2.0, 1.5, 4.0, "accent")]
    marks = [float(x) for x in re.findall(r'cx="([\d.]+)"', chart.intervals(rows, label="Error"))]
    assert marks[1] - 4 == pytest.approx(2 * (marks[0] - 4))


def test_labels_are_escaped_and_the_drawing_is_xml():
    svg = chart.bars([chart.Row("<b>&", 1.0, 1.0, 2.0)], label='"quoted"')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == '"quoted": <b>& 1.0'


def test_an_axis_drops_zeros_after_the_point():
    assert [chart.short(text) for text in ("20.0 ms", "10.05%", "0.0%", "5.50")] == ["20 ms", "10.05%", "0%", "5.50"]
