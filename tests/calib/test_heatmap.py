"""The heat map, read back as XML."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from quaver.calib.heatmap import SHADES, block_of, draw_heatmap, shades
from quaver.calib.select import Field

NAMES = ["conv_in", "down.0.resnets.0.conv1", "down.0.<b>", "conv_out"]


def draw(layer: list[int], step: list[int], variance: np.ndarray | None = None) -> ElementTree.Element:
    field = Field(np.ones((4, 5)) if variance is None else variance, np.arange(801, 0, -200), 1000)
    return ElementTree.fromstring(draw_heatmap(field, NAMES, np.array(layer, int), np.array(step, int)).encode())


def parts(picture: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [part for part in picture.iter() if part.get("class") == name]


def test_a_shade_is_the_variance_over_its_layers_mean() -> None:
    got = shades(np.array([[1.0, 1, 1], [0.5, 1, 1.5], [1, 0, 20], [0, 0, 0]]))
    assert got.tolist() == [[round(SHADES / 2)] * 3, [0, 8, SHADES], [0, 0, SHADES], [0, 0, 0]]


def test_every_drawn_pair_is_one_dot_in_its_cell_and_every_timestep_a_bar() -> None:
    picture = draw([0, 0, 3, 3, 3, 3], [0, 0, 4, 4, 4, 4])
    first, last = parts(picture, "dot")
    assert float(first.get("cx", 0)) < float(last.get("cx", 0)) and float(first.get("cy", 0)) < float(last.get("cy", 0))
    assert float(last.get("r", 0)) > float(first.get("r", 0))
    assert [float(bar.get("height", 0)) > 0 for bar in parts(picture, "bar")] == [True, False, False, False, True]


def test_records_without_a_layer_are_bars_alone() -> None:
    picture = draw([-1, -1], [1, 2])
    assert not parts(picture, "dot") and len(parts(picture, "bar")) == 5
    assert "2 records drawn, by timestep alone" in "".join(picture.itertext())


def test_cells_of_one_shade_are_one_path_and_no_variance_is_no_cell() -> None:
    cells = [part for part in parts(draw([], [], np.ones((4, 5))), "cell") if part.tag.endswith("path")]
    assert [str(cell.get("d")).count("M") for cell in cells] == [4]
    assert not [part for part in parts(draw([], [], np.zeros((4, 5))), "cell") if part.tag.endswith("path")]


def test_blocks_are_named_by_their_path() -> None:
    assert [block_of(name) for name in NAMES] == ["conv_in", "down.0", "down.0", "conv_out"]
