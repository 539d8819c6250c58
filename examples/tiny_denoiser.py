"""A denoiser of a few kilobytes as somebody else's ONNX file, and samples for it: to try engines/tiny-onnx on.

    python examples/tiny_denoiser.py            build/tiny-onnx/unet.onnx, samples.npz
    quaver run engines/tiny-onnx.toml           engines/tiny-onnx/
    quaver generate engines/tiny-onnx --row 0   row-0-0.npy

The graph is as an older exporter writes it: opset 13, group norms as Reshape and InstanceNormalization, attention as
Einsum, the timestep a float. Its weights are random, so what it draws is noise; its graph is what counts here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS, SIZE, WIDTH, WORDS, TEXT, GROUPS, HEADS = 4, 8, 32, 6, 16, 8, 4
OUT = Path("build/tiny-onnx")


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files into the folder named, or OUT."""
    folder = Path(next(iter(sys.argv[1:] if argv is None else argv), OUT))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(denoiser(np.random.default_rng(0)), folder / "unet.onnx")
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((20, WORDS, TEXT), np.float32)
    np.savez(folder / "samples.npz", context=rows, uncond_context=np.zeros((1, WORDS, TEXT), np.float32))
    print(folder / "unet.onnx", folder / "samples.npz", sep="\n")


def denoiser(draw: np.random.Generator, *, batch: int | str = "N") -> onnx.ModelProto:
    """x [N, C, H, W], t [N] float, context [N, WORDS, TEXT] -> eps [N, C, H, W]: a block, cross-attention, a skip."""
    weights, nodes = Weights(draw), Nodes()
    time = nodes("Unsqueeze", ["t", weights.constant("last", [1])])
    time = nodes("Div", [time, weights.constant("thousand", np.float32(1000))])
    time = linear(nodes, weights, "time_embedding.linear_1", time, 1, WIDTH)
    time = nodes("Unsqueeze", [nodes("Tanh", [time]), weights.constant("space", [2, 3])])
    h = conv(nodes, weights, "conv_in", "x", CHANNELS, WIDTH)
    skip = h
    h = norm(nodes, weights, "block.norm1", h)
    h = nodes("Add", [conv(nodes, weights, "block.conv1", h, WIDTH, WIDTH), time])
    h = conv(nodes, weights, "block.conv2", norm(nodes, weights, "block.norm2", h), WIDTH, WIDTH)
    h = nodes("Add", [h, attention(nodes, weights, "attn", h)])
    h = nodes("Concat", [h, skip], axis=1)
    nodes("Conv", [h, *weights.layer("conv_out", (CHANNELS, 2 * WIDTH, 3, 3))], "eps", "/conv_out/Conv", pads=[1] * 4)
    ends = {"x": [CHANNELS, SIZE, SIZE], "t": [], "context": [WORDS, TEXT], "eps": [CHANNELS, SIZE, SIZE]}
    infos = [helper.make_tensor_value_info(name, 1, [batch, *dims]) for name, dims in ends.items()]
    graph = helper.make_graph(nodes.made, "denoiser", infos[:3], infos[3:], weights.made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def conv(nodes: Nodes, weights: Weights, name: str, edge: str, inner: int, outer: int) -> str:
    """A convolution of 3 x 3."""
    made = [edge, *weights.layer(name, (outer, inner, 3, 3))]
    return nodes("Conv", made, name=f"/{name.replace('.', '/')}/Conv", pads=[1] * 4)


def linear(nodes: Nodes, weights: Weights, name: str, edge: str, inner: int, outer: int) -> str:
    """A linear layer as older exporters write it: its weight transposed, without a name."""
    weight, bias = weights.layer(name, (inner, outer))
    product = nodes("MatMul", [edge, weight], name=f"/{name.replace('.', '/')}/MatMul")
    return nodes("Add", [product, bias])


def norm(nodes: Nodes, weights: Weights, name: str, edge: str) -> str:
    """GroupNormalization in operators of opset 13, and SiLU."""
    grouped = nodes("Reshape", [edge, weights.constant("groups", [0, GROUPS, -1])])
    one, zero = (weights.constant(f"all.{v}", np.full(GROUPS, v, np.float32)) for v in (1, 0))
    white = nodes("InstanceNormalization", [grouped, one, zero], epsilon=1e-5)
    white = nodes("Reshape", [white, nodes("Shape", [edge])])
    scale, shift = (
        weights.constant(f"{name}.weight", weights.near_one()),
        weights.constant(f"{name}.bias", weights.small()),
    )
    h = nodes("Add", [nodes("Mul", [white, scale]), shift])
    return nodes("Mul", [h, nodes("Sigmoid", [h])])


def attention(nodes: Nodes, weights: Weights, name: str, edge: str) -> str:
    """Cross-attention between positions and words, heads apart, as Einsum."""
    flat = nodes("Reshape", [edge, weights.constant("flat", [0, WIDTH, -1])])
    rows = nodes("Transpose", [flat], perm=[0, 2, 1])
    heads = weights.constant("heads", [0, 0, HEADS, -1])
    q, k, v = (
        nodes("Reshape", [linear(nodes, weights, f"{name}.to_{part}", source, inner, WIDTH), heads])
        for part, source, inner in (("q", rows, WIDTH), ("k", "context", TEXT), ("v", "context", TEXT))
    )
    scores = nodes("Einsum", [q, k], equation="bihd,bjhd->bhij")
    scores = nodes("Mul", [scores, weights.constant("scale", np.float32((WIDTH / HEADS) ** -0.5))])
    mixed = nodes("Einsum", [nodes("Softmax", [scores], axis=-1), v], equation="bhij,bjhd->bihd")
    joined = nodes("Reshape", [mixed, weights.constant("joined", [0, 0, WIDTH])])
    out = linear(nodes, weights, f"{name}.to_out.0", joined, WIDTH, WIDTH)
    turned = nodes("Transpose", [out], perm=[0, 2, 1])
    return nodes("Reshape", [turned, weights.constant("image", [0, WIDTH, SIZE, SIZE])])


class Nodes:
    """The nodes made so far; calling it makes one more and returns its output."""

    def __init__(self) -> None:
        self.made: list[onnx.NodeProto] = []

    def __call__(self, op: str, inputs: Sequence[str], out: str = "", name: str = "", **attributes: object) -> str:
        out = out or f"e{len(self.made)}"
        self.made.append(helper.make_node(op, list(inputs), [out], name, **attributes))
        return out


class Weights:
    """The constants made so far, random where they are learned."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.draw = draw
        self.values: dict[str, np.ndarray] = {}

    @property
    def made(self) -> list[onnx.TensorProto]:
        """All of them, as ONNX has them."""
        return [numpy_helper.from_array(value, name) for name, value in self.values.items()]

    def constant(self, name: str, value: object) -> str:
        """A constant of a name, made once."""
        self.values.setdefault(name, np.asarray(value))
        return name

    def layer(self, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """Weight and bias of a layer: [out, in, 3, 3] of a convolution, [in, out] of a linear layer."""
        fan, outer = (np.prod(shape[1:]), shape[0]) if len(shape) == 4 else shape
        weight = (self.draw.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        label = f"{name}.weight" if len(shape) == 4 else f"onnx::MatMul_{100 + len(self.values)}"
        return self.constant(label, weight), self.constant(f"{name}.bias", self.draw.normal(0, 0.1, outer).astype("f"))

    def near_one(self) -> np.ndarray:
        """A norm's scale [WIDTH, 1, 1]."""
        return self.draw.normal(1, 0.1, (WIDTH, 1, 1)).astype(np.float32)

    def small(self) -> np.ndarray:
        """A norm's shift [WIDTH, 1, 1]."""
        return self.draw.normal(0, 0.1, (WIDTH, 1, 1)).astype(np.float32)


if __name__ == "__main__":
    main()
