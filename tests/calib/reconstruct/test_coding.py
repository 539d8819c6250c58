from dataclasses import replace

import numpy as np
import pytest

from quaver.calib.quant import UINT8, dequantize, fake_quant
from quaver.calib.reconstruct.coding import Grid, hard_layers, on_grid, on_learned_grid, regridded
from quaver.calib.reconstruct.replay import read_graph, run

torch = pytest.importorskip("torch")
GRID = Grid(0.05, 128, 0, 255)


def test_a_coded_layer_is_fake_quantization_around_its_operator(model, codings, feeds):
    graph, x = read_graph(model), feeds[0]["x"]
    coding = replace(codings["conv_in"], output=Grid(0.1, 100, 0, 255))
    made = run(graph, {"x": torch.from_numpy(x)}, ["h0"], layers=hard_layers({"conv_in": coding}, graph.nodes, "cpu"))
    coded = torch.from_numpy(fake_quant(x, 0.05, 128, UINT8))
    weight = torch.from_numpy(dequantize(coding.codes, coding.scale, np.int32(0), axis=0))
    bias = graph.constants["conv_in.bias"]
    expected = fake_quant(torch.nn.functional.conv2d(coded, weight, bias, padding=1).numpy(), 0.1, 100, UINT8)
    assert np.abs(made["h0"].numpy() - expected).max() <= 0.1001  # a sum on the edge of two codes may fall either way
    assert np.mean(np.abs(made["h0"].numpy() - expected) > 1e-5) < 0.01


def test_the_gradient_passes_where_nothing_is_clipped():
    x = torch.tensor([-20.0, 0.3, 20.0], requires_grad=True)
    on_grid(x, "", GRID).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_a_learned_step_gets_the_gradient_of_lsq():
    scale = torch.tensor(0.05, requires_grad=True)
    x = torch.tensor([0.12, 20.0])  # 2.4 steps, rounded to 2; clipped to 127 steps
    found = on_learned_grid(x, scale, GRID)
    assert torch.allclose(found, on_grid(x, "", GRID))
    found.sum().backward()
    assert float(scale.grad) == pytest.approx((2 - 2.4) + 127)


def test_a_new_step_reaches_every_reader_of_its_edge(codings):
    moved = regridded(codings, {}, {"h1": 0.2})
    changed = {name for name, coding in moved.items() if coding != codings[name]}
    assert changed == {"down.resnets.1.conv1"} and moved["down.resnets.1.conv1"].input == replace(GRID, scale=0.2)
