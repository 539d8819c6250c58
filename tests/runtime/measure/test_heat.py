from __future__ import annotations

from xml.etree import ElementTree

import pytest

from quaver.runtime.measure import heat


def test_a_strip_is_full_where_its_share_is_one_and_has_so_many_cells_at_most():
    at = list(range(200, 0, -1))
    root = ElementTree.fromstring(
        heat.strips([("conv", "4.0x", [i / 199 for i in range(200)])], at=at, x="t", label="R")
    )
    cells = [float(cell.attrib["opacity"]) for cell in root.iter("rect")]
    assert len(cells) == heat.COLUMNS and cells[0] == 0.06 and cells[-1] == 1.0
    assert cells == sorted(cells)
    assert [text.text for text in root.iter("text")] == ["conv", "4.0x", "200", "t", "1"]


def test_a_tally_has_a_bar_in_proportion_and_a_mark_for_the_other():
    root = ElementTree.fromstring(heat.tallies([("pitch", 0.5, 0.25), ("<tempo>", 0.25, 0.5)], label="Aspects"))
    long, short = [float(bar.attrib["width"]) for bar in root.iter("rect")]
    marks = [float(line.attrib["x1"]) for line in root.iter("line")]
    assert long == pytest.approx(2 * short, abs=0.1) and marks[1] - marks[0] == pytest.approx(short, abs=0.2)
    assert "<tempo>" in root.attrib["aria-label"]


def test_a_long_name_keeps_its_end():
    assert heat.cut("down_blocks.0.resnets.1.conv1", 12) == "…ets.1.conv1" and heat.cut("conv", 12) == "conv"
