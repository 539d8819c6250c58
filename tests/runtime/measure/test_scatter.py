from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from quaver.runtime.measure import scatter
from quaver.runtime.measure.scatter import Point

POINTS = (
    Point("float", (20, 20, 20), (0, 0, 0)),
    Point("fast", (9, 10, 11), (0.05, 0.06, 0.07), "tone0", "square", "fast"),
    Point("slow and wrong <b>", (14, 15, 16), (0.07, 0.08, 0.09), "tone1", "diamond"),
)


def test_the_pareto_line_leaves_out_what_another_point_beats_in_both():
    assert scatter.pareto([(20, 0.0), (10, 0.06), (15, 0.08), (15, 0.05)]) == [1, 3, 0]


def test_equal_points_are_both_on_the_line_and_a_tie_in_one_is_decided_by_the_other():
    assert scatter.pareto([(10, 1.0), (10, 1.0), (10, 2.0), (11, 1.0)]) == [0, 1]


def test_points_stand_where_their_values_are_with_whiskers_around_them():
    root = ElementTree.fromstring(scatter.scatter(POINTS, x="ms", y="error", label="Error against time"))
    marks = {group.find("title").text: group for group in root.iter("g")}
    assert list(marks) == [point.name for point in POINTS]
    across, up = (next(marks["float"].iter("circle")).attrib[key] for key in ("cx", "cy"))
    fast = [float(line.attrib[key]) for line in marks["fast"].iter("line") for key in ("x1", "x2", "y1", "y2")]
    x = (fast[0] + fast[1]) / 2
    assert fast[4] == fast[5] == pytest.approx(x, abs=0.1) and x < float(across)
    assert fast[6] > fast[2] > fast[7] and fast[6] < float(up)  # up is less
    line = re.findall(r"[\d.]+,[\d.]+", root.find("polyline").attrib["points"])
    assert len(line) == 2 and line[1] == f"{float(across):.1f},{float(up):.1f}"


def test_every_form_is_drawn():
    assert len({scatter.mark(shape, 0, 0) for shape in scatter.SHAPES}) == len(scatter.SHAPES)


def test_an_axis_that_does_not_begin_at_zero_encloses_its_values():
    found = scatter.between(0.013, 0.0212)
    assert found[0] <= 0.013 and found[-1] >= 0.0212 and found[0] > 0 and 4 <= len(found) <= 8
