"""Every model of both papers: known outputs, parameters, sizes and operations beside those published, full sizes.

    python -m benchmarks.families [--only fixtures parameters sizes full] [--models NAME ...] [--measured]

    fixtures      the error of checkpoints with known outputs (`benchmarks.fixtures`)
    parameters    of the full shapes, counted on networks without memory
    sizes         of the U-Net at each width, and its bit operations, in two modes
    full          every step of the chain on the full shapes (`benchmarks.full_size`); with --measured, of what is there

`paper` counts as the papers do. D2-DPM's: every tensor called "weight" at so many bits, the rest at 32, and its rule
for bit operations (`benchmarks.paper_cost` has the whole checkpoint and the published figures). PTQ4ADM says only that
attention stays float; taken here: all else at so many bits, what stays float at 16, against all at 16. `deployed` is
what this project's file for tensorrt-rtx holds (`benchmarks.size`) and what its kernels multiply.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import fixtures, full_size
from benchmarks.figures import publish, table
from benchmarks.full_size import PRESETS, arch_of, by_size
from benchmarks.paper_cost import count, deployed_bops, meta, paper_bops, unet_bytes
from benchmarks.size import module_layers, predicted

WIDTHS = {(32, 32): "", (8, 8): "W8", (4, 8): "W4"}  # bits of weights and activations -> file of `benchmarks.size`
MEBI, GIGA, TERA = 2**20, 10**9, 10**12
ATTENTION = (".attn1.", ".attn2.")
# percent saved by 8 and 4 bits of weights: PTQ4ADM, Table 1
PUBLISHED = {"tango": (39, 68), "audioldm-l": (39, 70), "make-an-audio": (38, 62)}
Rows = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables that were asked for, and what of the aims is reached."""
    parser = argparse.ArgumentParser(prog="benchmarks.families")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=by_size(), default=by_size(), metavar="NAME")
    parser.add_argument("--measured", action="store_true")
    given = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    reached: dict[str, bool] = {}
    for part in given.only:
        for title, found in PARTS[part](given.models, given.measured).items():
            print(f"{title}\n{table(found)}\n")
            figures[title] = found
            reached |= {claim: true for row in found for claim, true in CLAIMS.get(title, no_claims)(row)}
    publish("families", [], figures=figures, reached=reached)


def known_outputs(models: Sequence[str], measured: bool) -> dict[str, Rows]:
    """The errors of all fixtures."""
    return {"fixtures": list(fixtures.judged())}


def parameters(models: Sequence[str], measured: bool) -> dict[str, Rows]:
    """Parameters of each U-Net, and what is said of it."""
    rows = [{"model": name, "expected": arch_of(name)["parameters"], "counted": parameters_of(name)} for name in models]
    return {"parameters": rows}


def parameters_of(name: str) -> int:
    """Parameters of a U-Net that is made without memory."""
    return sum(p.numel() for p in meta(arch_of(name)).parameters())


def sizes(models: Sequence[str], measured: bool) -> dict[str, Rows]:
    """Sizes and bit operations at each width; sizes beside PTQ4ADM's."""
    rows = [row for name in models for row in costs(name)]
    return {
        "sizes and operations": rows,
        "PTQ4ADM": [row for name in models if name in PUBLISHED for row in saved(name)],
    }


def costs(name: str) -> Iterator[dict[str, Any]]:
    """MiB and T bit operations of a U-Net at each width, in both modes."""
    arch = arch_of(name)
    modules, normed = count(arch)
    tensors = [(key, p.numel()) for key, p in meta(arch).named_parameters()]
    named = sum(size for key, size in tensors if key.endswith("weight"))
    rest = sum(size for _, size in tensors) - named
    for (weight, activation), file in WIDTHS.items():
        yield {
            "model": name,
            "bits": f"{weight}/{activation}",
            "paper MiB": (named * weight + rest * 32) / 8 / MEBI,
            "deployed MiB": unet_bytes(arch, file) / MEBI,
            "paper T": paper_bops(modules, normed, weight, activation) / TERA,
            "deployed T": deployed_bops(arch, modules, file) / TERA,
        }


def saved(name: str) -> Iterator[dict[str, Any]]:
    """Percent that PTQ4ADM's two widths save: published, by its words, and of the file that is written."""
    unet, files = meta(arch_of(name)), predicted(name)
    total = sum(p.numel() for p in unet.parameters())
    coded = [layer for layer in module_layers(unet) if not any(part in f"{layer.name}." for part in ATTENTION)]
    weights = sum(math.prod(layer.weight_shape) for layer in coded)
    for bits, file, published in zip((8, 4), ("W8", "W4"), PUBLISHED[name], strict=True):
        yield {
            "model": name,
            "weights": bits,
            "published %": published,
            "paper %": 100 * weights / total * (1 - bits / 16),
            "deployed %, of 16 bit": 100 * (1 - files[file] / files["float16"]),
            "deployed %, of 32 bit": 100 * (1 - files[file] / files["float32"]),
        }


def full(models: Sequence[str], measured: bool) -> dict[str, Rows]:
    """Of each shape: its float model, then what each preset became on a CPU and for RTX GPUs."""
    if not measured:
        list(full_size.measured(models, list(full_size.CELLS)))
    cells = {(name, cell): full_size.kept(name, cell) or {} for name in models for cell in full_size.CELLS}
    return {
        "float": [float_row(name, cells) for name in models],
        "ort-cpu": [cpu_row(name, preset, cells) for name in models for preset in PRESETS],
        "tensorrt-rtx": [rtx_row(name, preset, cells) for name in models for preset in PRESETS],
    }


def float_row(name: str, cells: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """Tracing, ranges, and the float graph in onnxruntime."""
    trace, ranges, run = (cells[name, cell] for cell in ("trace", "ranges", "float"))
    return {
        "model": name,
        "trace s": trace.get("processor s", ""),
        "trace GB": giga(trace, "peak"),
        "ranges s": ranges.get("processor s", ""),
        "ranges GB": giga(ranges, "peak"),
        "call s": run.get("call s", ""),
        "call GB": giga(run, "peak"),
        "file GB": giga(run, "bytes"),
    }


def cpu_row(name: str, preset: str, cells: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """Export for onnxruntime, and the quantized graph in it."""
    export, call, kernels = (cells[name, f"{cell}-{preset}"] for cell in ("export", "call", "kernels"))
    return {
        "model": name,
        "preset": preset,
        "export s": export.get("processor s", ""),
        "export GB": giga(export, "peak"),
        "file GB": giga(export, "bytes"),
        "load s": call.get("load s", ""),
        "call s": call.get("call s", ""),
        "call GB": giga(call, "peak"),
        "off": call.get("error", ""),
        "INT8": kernels.get("INT8", ""),
        "lint": kernels.get("lint", ""),
    }


def rtx_row(name: str, preset: str, cells: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """Export and build for RTX GPUs."""
    rtx = cells[name, f"rtx-{preset}"]
    return {
        "model": name,
        "preset": preset,
        "processor s": rtx.get("processor s", ""),
        "build s": rtx.get("build s", ""),
        "GB": giga(rtx, "peak"),
        "file GB": giga(rtx, "bytes"),
        "plan GB": giga(rtx, "plan bytes"),
        "meant, INT8": rtx.get("meant, INT8", ""),
        "INT8": rtx.get("INT8", ""),
        "lint": rtx.get("lint", ""),
    }


def giga(found: Mapping[str, float], key: str) -> float | str:
    """Bytes as GB; nothing of what was not measured."""
    return found[key] / GIGA if key in found else ""


def parameter_claims(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Whether a shape has its parameters."""
    yield f"{row['model']}: {row['expected']:,} parameters", row["counted"] == row["expected"]


def full_claims(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Whether every cell of a row is there."""
    where = " ".join(str(row[key]) for key in ("model", "preset") if key in row)
    yield f"{where}: all steps run ({', '.join(key for key in row if key.endswith(' s'))})", "" not in row.values()


def no_claims(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Of rows that are there to be read."""
    yield from ()


PARTS: Mapping[str, Callable[[Sequence[str], bool], dict[str, Rows]]] = {
    "fixtures": known_outputs,
    "parameters": parameters,
    "sizes": sizes,
    "full": full,
}
CLAIMS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, bool]]]] = {
    "fixtures": fixtures.claims,
    "parameters": parameter_claims,
    "float": full_claims,
    "ort-cpu": full_claims,
    "tensorrt-rtx": full_claims,
}

if __name__ == "__main__":
    main()
