"""A network of two residual blocks between two convolutions, made by hand, and how its layers are coded."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, layers
from quaver.calib.quant import INT4, quantize
from quaver.calib.reconstruct.coding import Coding, Grid

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

CHANNELS = 6


def node(op, inputs, output, module="", **attributes):
    made = onnx.helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes)
    made.metadata_props.add(key=MODULE_KEY, value=module)
    return made


def conv(source, output, module):
    return node("Conv", [source, f"{module}.weight", f"{module}.bias"], output, module, pads=[1, 1, 1, 1])


def residual(source, output, module):
    """x + conv2(silu(conv1(x))), with one node that no module owns up to."""
    return [
        conv(source, f"{output}_1", f"{module}.conv1"),
        node("Sigmoid", [f"{output}_1"], f"{output}_s", f"{module}.act"),
        node("Mul", [f"{output}_1", f"{output}_s"], f"{output}_a"),
        conv(f"{output}_a", f"{output}_2", f"{module}.conv2"),
        node("Add", [source, f"{output}_2"], output, module),
    ]


@pytest.fixture(scope="session")
def model():
    """conv_in, down.resnets.0, down.resnets.1, conv_out."""
    rng = np.random.default_rng(3)
    nodes = [conv("x", "h0", "conv_in"), *residual("h0", "h1", "down.resnets.0")]
    nodes += [*residual("h1", "h2", "down.resnets.1"), conv("h2", "out", "conv_out")]
    modules = [n.metadata_props[0].value for n in nodes if n.op_type == "Conv"]
    constants = []
    for name in modules:
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 7
        constants.append(onnx.numpy_helper.from_array(weight, f"{name}.weight"))
        constants.append(onnx.numpy_helper.from_array(rng.standard_normal(CHANNELS).astype(np.float32), f"{name}.bias"))
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", CHANNELS, 5, 5]) for name in ("x", "out")]
    graph = onnx.helper.make_graph(nodes, "two", ends[:1], ends[1:], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="session")
def codings(model):
    """Four bits for every weight, a grid of 8 bits for every input."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {}
    for layer in layers(model):
        weight = values[layer.weight]
        scale = np.abs(weight).reshape(CHANNELS, -1).max(axis=1) / np.float32(7)
        codes = quantize(weight, scale, np.int32(0), INT4, axis=0)
        made[layer.name] = Coding(layer, INT4, scale, codes, input=Grid(0.05, 128, 0, 255))
    return made


@pytest.fixture(scope="session")
def feeds():
    """Twelve rows whose channels go together, as activations do: what rounding can be learned from."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((12, 1, 5, 5)) + 0.3 * rng.standard_normal((12, CHANNELS, 5, 5))
    return [{"x": part.astype(np.float32)} for part in np.split(rows, 3)]
