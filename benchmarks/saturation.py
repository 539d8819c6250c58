"""What 16-bit saturation costs on CPUs without VNNI, and what avoiding it costs.

    python -m benchmarks.saturation [BUNDLE] [--layers 8]

Layers of a bundle (when it is there) and random ones run alone in onnxruntime's integer kernels, U8S8, on normal inputs
(codes lie around 128) and on their SiLU (most codes are small). The error is the norm of the difference from the float
layer over the norm of its output:

    full range    s_c = max |w_c| / 127, whatever the kernels make of it
    7 bits        s_c = max |w_c| / 63: no two codes can saturate
    limited       s_c grown until no pair of neighbouring codes of one sign passes 128: what quaver writes
    moved         five scales between the first and the third; codes of the pairs beyond are moved by least error,
                  and each channel takes the scale where that is least

and the same of the weights alone, in dB. On a CPU with VNNI, full range is the best column.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.calib.graph import Layer, layers
from quaver.calib.quant import INT8, Format
from quaver.calib.rules import Rule
from quaver.exporter.placement import place
from quaver.exporter.qdq import insert
from quaver.exporter.targets import ORT_CPU, PAIR_LIMIT, detect_isa
from quaver.exporter.weights import Coded, code_weight
from quaver.runtime.lazy import need

WAYS = ("full range", "7 bits", "limited", "moved")
POSITIONS = 256


def main(argv: Sequence[str] | None = None) -> None:
    """Print the errors of every layer and their means."""
    parser = argparse.ArgumentParser(prog="benchmarks.saturation")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo-w8a8"))
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args(argv)
    found = {**dict(random_weights()), **dict(bundle_weights(given.bundle, given.layers))}
    rows = [row(name, weight, inputs) for name, weight in found.items() for inputs in ("normal", "SiLU")]
    mean = {
        i: {way: float(np.mean([r[way] for r in rows if r["inputs"] == i])) for way in WAYS} for i in ("normal", "SiLU")
    }
    weights = {way: float(np.mean([r[f"{way} [dB]"] for r in rows])) for way in WAYS}
    publish(
        "saturation",
        rows,
        figures={"isa": detect_isa(), "output error": mean, "weight error [dB]": weights},
        reached={
            "limited pairs err less than 7 bits": all(m["limited"] < m["7 bits"] for m in mean.values()),
            "limited pairs err less than the full range in these kernels, normal inputs": mean["normal"]["limited"]
            < mean["normal"]["full range"],
            "moving codes gains less than 0.2 dB": weights["limited"] - weights["moved"] < 0.2,
        },
    )


def random_weights() -> Iterator[tuple[str, np.ndarray]]:
    """Convolutions and products of the spreads that trained weights have."""
    draw = np.random.default_rng(0)
    for shape in ((64, 64, 3, 3), (256, 128)):
        yield f"normal {shape}", draw.standard_normal(shape).astype(np.float32)
        yield f"Laplace {shape}", draw.laplace(size=shape).astype(np.float32)
        yield f"Student, 4 {shape}", draw.standard_t(4, shape).astype(np.float32)


def bundle_weights(bundle: Path, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """`count` layers of a bundle's float graph, evenly spread; output channels first."""
    onnx, path = need("onnx", extra="export"), bundle / "unet.float.onnx"
    if not path.exists():
        return
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    found = [x for x in layers(model) if len(x.weight_shape) in (2, 4) and min(x.weight_shape[:2]) >= 16]
    for layer in found[:: max(1, len(found) // count)][:count]:
        yield layer.name, np.moveaxis(onnx.numpy_helper.to_array(tensors[layer.weight]), layer.axis, 0)


def row(name: str, weight: np.ndarray, inputs: str) -> dict[str, Any]:
    """The errors of one layer, weight [C_out, C_in] or [C_out, C_in, h, w]."""
    model, x = layer_of(weight, inputs)
    plain, power = run(model, x), float(np.square(weight, dtype=np.float64).sum())
    coded = codes_of(weight)
    errors = {way: np.linalg.norm(run(quantized(model, x, plain, coded[way]), x) - plain) for way in WAYS}
    noise = {way: np.square(weight - real(coded[way]), dtype=np.float64).sum() for way in WAYS}
    return {
        "layer": name,
        "inputs": inputs,
        **{way: float(errors[way] / np.linalg.norm(plain)) for way in WAYS},
        **{f"{way} [dB]": float(10 * np.log10(noise[way] / power)) for way in WAYS},
    }


def codes_of(weight: np.ndarray) -> dict[str, Coded]:
    """The weight coded in each of WAYS."""
    full, limited = (code_weight(weight, INT8, axis=0, pair_limit=limit) for limit in (None, PAIR_LIMIT))
    return dict(
        zip(WAYS, (full, code_weight(weight, Format(7), axis=0), limited, moved(weight, full, limited)), strict=True)
    )


def moved(weight: np.ndarray, full: Coded, limited: Coded) -> Coded:
    """The best of five scales per channel when pairs beyond the limit are moved onto it by least error."""
    tries = [full.scale + (limited.scale - full.scale) * part for part in np.linspace(0, 1, 5)]
    coded = [Coded(moved_codes(weight, scale), scale.astype(np.float32)) for scale in tries]
    axes = tuple(range(1, weight.ndim))
    best = np.argmin([np.square(weight - real(c), dtype=np.float64).sum(axis=axes) for c in coded], axis=0)
    rows = np.arange(len(weight))
    return Coded(np.stack([c.codes for c in coded])[best, rows], np.stack([c.scale for c in coded])[best, rows])


def moved_codes(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Nearest codes of which no pair passes the limit, in both orders that kernels walk."""
    ratio = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    codes = np.clip(np.round(ratio), -127, 127)
    codes = reduce_pairs(ratio.reshape(len(ratio), -1), codes.reshape(len(ratio), -1)).reshape(weight.shape)
    if weight.ndim > 2:
        ratio, codes = np.moveaxis(ratio, 1, -1), np.moveaxis(codes, 1, -1)
        flat = reduce_pairs(ratio.reshape(len(ratio), -1), codes.reshape(len(ratio), -1))
        codes = np.moveaxis(flat.reshape(codes.shape), -1, 1)
    return codes.astype(np.int8)


def reduce_pairs(ratio: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Pairs of one sign that sum to more than the limit, moved so that both miss their weights equally."""
    ratio, padded = (np.pad(a, ((0, 0), (0, a.shape[1] % 2))) for a in (ratio, codes))
    first, second = padded[:, 0::2], padded[:, 1::2]
    at = np.nonzero((np.abs(first + second) > PAIR_LIMIT) & (first * second > 0))
    sign, a, b = np.sign(first[at]), np.abs(ratio[:, 0::2][at]), np.abs(ratio[:, 1::2][at])
    lower = np.minimum(np.clip(np.round((a - b + PAIR_LIMIT) / 2), 1, 127), np.abs(first[at]))
    first[at], second[at] = sign * lower, sign * np.minimum(PAIR_LIMIT - lower, np.abs(second[at]))
    return padded[:, : codes.shape[1]]


def real(coded: Coded) -> np.ndarray:
    """The weight that codes stand for."""
    return coded.codes * coded.scale.reshape(-1, *[1] * (coded.codes.ndim - 1))


def layer_of(weight: np.ndarray, inputs: str) -> tuple[Any, np.ndarray]:
    """A graph of one layer, and its input."""
    onnx, z = need("onnx", extra="export"), np.random.default_rng(1).standard_normal
    conv, side = weight.ndim == 4, int(POSITIONS**0.5)
    x = z((1, weight.shape[1], side, side) if conv else (POSITIONS, weight.shape[1])).astype(np.float32)
    x = x / (1 + np.exp(-x)) if inputs == "SiLU" else x
    pads = {"pads": [weight.shape[2] // 2, weight.shape[3] // 2] * 2} if conv else {"transB": 1}
    node = onnx.helper.make_node("Conv" if conv else "Gemm", ["x", "w"], ["y"], "layer", **pads)
    values = [onnx.helper.make_tensor_value_info(name, 1, dims) for name, dims in (("x", x.shape), ("y", None))]
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(weight), "w")
    graph = onnx.helper.make_graph([node], "layer", values[:1], values[1:], [tensor])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), x


def quantized(model: Any, x: np.ndarray, y: np.ndarray, coded: Coded) -> Any:
    """That graph with given codes, for onnxruntime."""
    copy = type(model)()
    copy.CopyFrom(model)
    ranges = {"x": (float(x.min()), float(x.max())), "y": (float(y.min()), float(y.max()))}
    found: list[Layer] = layers(copy)
    sites = place(found, [Rule("*")], ORT_CPU, ranges)
    return insert(copy, found, sites, ranges, ORT_CPU, learned={"layer": coded})


def run(model: Any, x: np.ndarray) -> np.ndarray:
    """What onnxruntime makes of it."""
    ort = need("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return np.asarray(ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0])


if __name__ == "__main__":
    main()
