"""U-Nets of the models people use, in their real shapes with random weights: what exporting them costs can be measured.

    python -m benchmarks.shapes NAME [--latent 8 128 16] [--records 2]        build/shapes/NAME-8x128x16/

writes unet.float.onnx (the exporter's own trace, batch free) and records.safetensors, `records` rows of every input.
The shapes are benchmarks/archs/*.json: the U-Net's diffusers configuration, its latent [C, H, W] at ten seconds (or the
model's picture), its conditioning, and its number of parameters, which is checked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quaver.exporter.model.tracing import Traced, trace_module
from quaver.exporter.modelfile import save_model
from quaver.exporter.passes.provenance import WRAPPER
from quaver.runtime.artifact import Stamp, save_tensors

ARCHS = Path(__file__).parent / "archs"
OUT = Path("build/shapes")
GRAPH, RECORDS = "unet.float.onnx", "records.safetensors"


def main(argv: Sequence[str] | None = None) -> None:
    """Write one shape."""
    parser = argparse.ArgumentParser(prog="benchmarks.shapes")
    parser.add_argument("name", choices=sorted(path.stem for path in ARCHS.glob("*.json")))
    parser.add_argument("--latent", nargs=3, type=int)
    parser.add_argument("--records", type=int, default=2)
    given = parser.parse_args(argv)
    print(shape(given.name, latent=given.latent, records=given.records))


def shape(name: str, *, latent: Sequence[int] | None = None, records: int = 2, out: Path = OUT) -> Path:
    """The folder of a shape's float graph and records, made when it is not there."""
    arch = json.loads((ARCHS / f"{name}.json").read_text(encoding="utf-8"))
    size = list(latent or arch["latent"])
    folder = out / f"{name}-{'x'.join(map(str, size))}"
    if not (folder / GRAPH).exists():
        traced = trace(arch, size)
        save_model(traced.model, folder / GRAPH, Stamp("trace"), memory=traced.memory)
    feeds = {key: value.numpy() for key, value in inputs(arch, size, records).items()}
    save_tensors(folder / RECORDS, feeds, Stamp("records"))
    return folder


def trace(arch: Mapping[str, Any], latent: Sequence[int]) -> Traced:
    """A U-Net with random weights, seed 0, traced."""
    import torch

    torch.manual_seed(0)
    unet = network(arch)
    names = list(inputs(arch, latent, 2))

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(WRAPPER, unet)

        def forward(self, sample: Any, timestep: Any, condition: Any = None) -> Any:
            if "class_labels" in names:
                return getattr(self, WRAPPER)(sample, timestep, None, class_labels=condition, return_dict=False)[0]
            given = () if condition is None else (condition,)
            return getattr(self, WRAPPER)(sample, timestep, *given, return_dict=False)[0]

    return trace_module(Denoiser().eval(), inputs(arch, latent, 2), ("out",))


def network(arch: Mapping[str, Any]) -> Any:
    """The U-Net in torch. Raises: ValueError when it has not the number of parameters its file says."""
    import diffusers

    unet = getattr(diffusers, arch["class"])(**arch["unet"]).eval()
    if (found := sum(p.numel() for p in unet.parameters())) != arch["parameters"]:
        raise ValueError(
            f"{found:,} parameters, expected {arch['parameters']:,}: another diffusers builds another U-Net"
        )
    return unet


def inputs(arch: Mapping[str, Any], latent: Sequence[int], rows: int) -> dict[str, Any]:
    """Random `sample` [rows, C, H, W], `timestep` [rows] and conditioning [rows, ...], as torch tensors by name."""
    import torch

    draw = torch.Generator().manual_seed(0)
    fed = {"sample": torch.randn(rows, *latent, generator=draw), "timestep": torch.linspace(981, 1, rows).long()}
    return fed | {key: torch.randn(rows, *size, generator=draw) for key, size in arch["conditioning"].items()}


if __name__ == "__main__":
    main()
