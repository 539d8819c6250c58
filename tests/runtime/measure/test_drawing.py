from __future__ import annotations

from xml.etree import ElementTree

from quaver.runtime.measure.drawing import drawing
from quaver.runtime.measure.markup import h

SVG = "{http://www.w3.org/2000/svg}"


def test_a_drawing_is_a_file_of_its_own_that_says_what_it_shows():
    text = drawing("A < B", "two things", h("circle", r=3), width=200.4, height=99.6, left=7, style=".dot { r: 1 }")
    root = ElementTree.fromstring(text.encode())
    assert (root.tag, root.get("viewBox"), root.get("aria-label")) == (f"{SVG}svg", "0 0 200 100", "A < B: two things")
    assert [child.tag.removeprefix(SVG) for child in root] == ["style", "text", "text", "circle"]
    assert [(child.text, child.get("x")) for child in root[1:3]] == [("A < B", "7"), ("two things", "7")]
    used = {part.partition(")")[0] for part in root[0].text.split("var(")[1:]}
    assert used <= {part.partition(":")[0] for part in root[0].text.split() if part.startswith("--")}
    assert "prefers-color-scheme: dark" in root[0].text and root[0].text.endswith(".dot { r: 1 }")
