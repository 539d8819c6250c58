"""How much smaller a quantized file is: bytes of the ONNX with its weights, against float16 and float32.

    python -m benchmarks.size [SHAPE ...] [--check audioldm-s]

    bytes = sum over layers (weights at their width + a scale per channel or block + bias) + other parameters + graph

What is coded, and how, is what placement decides for `tensorrt-rtx`, whose kernels take float16; what stays float
counts two bytes. Shapes are enough for that, so the networks are made without weights. The graph, its nodes and names,
counts GRAPH bytes in files of codes and nothing in those of floats. "W8" and "W4" leave attention's projections, the
first and the last convolution in float16; of the time embedding the weights alone are coded, to 8 bits (`TIME`: presets
leave it float, "W8 preset"). "+" is the second preset: attention's projections are coded too.

--check exports a float graph that `benchmarks.shapes` makes, with ranges made up, and says how many percent larger the
files are than that sum.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.export import bundle_of
from benchmarks.figures import publish
from benchmarks.shapes import ARCHS, network, shape
from quaver.calib.graph import Layer, activation_edges, read_model
from quaver.calib.quant import FLOAT8, INT4, INT8
from quaver.calib.rules import Rule, preset
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.placement import Placement, Site, place
from quaver.exporter.targets import find_target
from quaver.runtime.artifact import Stamp, save_tensors
from quaver.runtime.progress import quiet

TARGET = "tensorrt-rtx"
HALF: Literal["float16"] = "float16"
OUT = Path("build/size")
GRAPH = 10**6  # AudioLDM-S: 0.4 MB of nodes, names and shapes as a float graph, 0.6 MB with codes
BITS = {fmt.name: fmt.bits for fmt in (INT8, INT4, FLOAT8)}
TIME = (Rule("time_embedding.*", "int8", "float", "weights alone", optional=True),)
FILES: Mapping[str, tuple[tuple[Rule, ...], str]] = {
    HALF: ((), "16w16a"),
    "W8 preset": ((), "8w8a"),
    "W8": (TIME, "8w8a"),
    "W8+": (TIME, "8w8a-attention"),
    "W4 preset": ((), "4w8a"),
    "W4": (TIME, "4w8a"),
    "W4+": (TIME, "4w8a-attention"),
}
# percent to be saved against float16 by W8 and W4, and against float32 by the second preset
AIMS = {"tango": (43.5, 65.5), "audioldm-l": (41.5, 62.5), "make-an-audio": (40.5, 60.5)}
SECOND = 82.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the sizes of every shape, and what is saved."""
    parser = argparse.ArgumentParser(prog="benchmarks.size")
    parser.add_argument("shapes", nargs="*", default=list(AIMS))
    parser.add_argument("--check", metavar="SHAPE", default="")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name in given.shapes:
        sizes = predicted(name)
        rows += [{"shape": name, "file": file, **saved(size, sizes)} for file, size in sizes.items()]
    if given.check:
        rows += [{"shape": given.check, "file": file, **row} for file, row in check(given.check).items()]
    found = {(row["shape"], row["file"]): row for row in rows}
    reached = {}
    for name, (eight, four) in AIMS.items():
        if (name, HALF) in found:
            for file, aim, against in (("W8", eight, HALF), ("W4", four, HALF), ("W4+", SECOND, "float32")):
                reached[f"{name}: {file} is {aim}% smaller than {against}, by the sum above"] = (
                    found[name, file][against] >= aim
                )
    publish("size", rows, figures={f"{name} {file}": row for (name, file), row in found.items()}, reached=reached)


def saved(size: int, sizes: Mapping[str, int]) -> dict[str, float]:
    """Megabytes, and percent less than each of the files of floats."""
    return {"MB": size / 1e6} | {floats: 100 * (1 - size / sizes[floats]) for floats in ("float32", HALF)}


def predicted(name: str) -> dict[str, int]:
    """Bytes of each file of a shape, the graph apart."""
    import torch

    with torch.device("meta"):
        unet = network(json.loads((ARCHS / f"{name}.json").read_text(encoding="utf-8")))
    found, parameters = module_layers(unet), sum(p.numel() for p in unet.parameters())
    rest = parameters - sum(map(parameters_of, found))
    sizes = {file: deployed_bytes(found, decide(found, file), rest) for file in FILES}
    return {"float32": 4 * parameters} | {file: size + GRAPH * (file != HALF) for file, size in sizes.items()}


def module_layers(unet: Any) -> list[Layer]:
    """The layers of a torch network as its graph will have them, without shapes of activations."""
    import torch

    found = []
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            op = "Conv" if isinstance(module, torch.nn.Conv2d) else "Gemm"
            edges, bias = (f"{name}.in", f"{name}.out", f"{name}.weight"), f"{name}.bias"
            size = tuple(module.weight.shape)
            found.append(Layer(name, name, op, *edges, size, None, 0, bias if module.bias is not None else ""))
    return found


def parameters_of(layer: Layer) -> int:
    """Weights and biases of a layer."""
    return math.prod(layer.weight_shape) + bool(layer.bias) * layer.weight_shape[layer.axis]


def decide(found: Sequence[Layer], file: str) -> list[Site]:
    """What placement decides about the layers of a file, given ranges that exclude nothing."""
    rules, name = FILES[file]
    ranges = {edge: (-1.0, 1.0) for layer in found for edge in (layer.input, layer.output)}
    return place(found, (*rules, *preset(name)), find_target(TARGET), ranges, options=Placement(half=True))


def deployed_bytes(found: Iterable[Layer], sites: Iterable[Site], rest: int) -> int:
    """Bytes of the constants of a quantized graph; `rest` counts the parameters that are in no layer."""
    width = {site.layer: 2 if site.compute == HALF else 4 for site in sites if site.role != "product"}
    coded = {site.layer: site for site in sites if site.role == "weight"}
    total = 2 * rest
    for layer in found:
        weights, channels = math.prod(layer.weight_shape), layer.weight_shape[layer.axis]
        if site := coded.get(layer.name):
            scales = weights // site.block if site.block else channels
            total += weights * BITS[site.format] // 8 + scales * width[layer.name]
        else:
            total += weights * width[layer.name]
        total += bool(layer.bias) * channels * width[layer.name]
    return total


def check(name: str) -> dict[str, dict[str, float]]:
    """Megabytes of files that were really written, and how many percent they are larger than predicted."""
    folder, sizes, rows = shape(name, latent=[8, 128, 16] if name == "audioldm-s" else None), predicted(name), {}
    for file in (HALF, "W8", "W4"):
        rules, start = FILES[file]
        shutil.rmtree(OUT / file, ignore_errors=True)
        (OUT / file).mkdir(parents=True)
        bundle = bundle_of(folder, OUT / file)
        edges = activation_edges(read_model(bundle.float_unet))
        limits = {"amin": np.full(len(edges), -8, np.float32), "amax": np.full(len(edges), 8, np.float32)}
        save_tensors(bundle.ranges, limits, Stamp("ranges"), meta={"edges": edges})
        settings = ExportSettings(preset=start, rules=rules, targets=(TARGET,), floats=HALF)
        path = export(bundle, settings, stamp=Stamp("export"), progress=quiet())
        size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
        rows[f"{file}, written"] = {"MB": size / 1e6, "float32": np.nan, HALF: 100 * (size / sizes[file] - 1)}
    return rows


if __name__ == "__main__":
    main()
