"""Bit operations and sizes of LDM-4 ImageNet (cin256-v2) in two modes, beside those that D2-DPM publishes.

    python -m benchmarks.paper_cost [--shape ldm4-imagenet-cin256-v2]

`paper` follows D2-DPM's numbers (arXiv:2408.11275, Table 1), whose parts are counted by different rules:

    W8A8, W4A8    2 x (convolutions' multiply-accumulates + linear weights, once whatever the tokens) x b_w x b_a, over
                  the 265 layers quantized there: all but the shortcuts and the convolutions that sample down
    FP32          (multiply-accumulates of all 283 layers, tokens counted, + 4 an element of every LayerNorm) x 32 x 32
    size          of the whole checkpoint, U-Net, VQ-f4 and class table, in MiB: every tensor called "weight" at b bits,
                  the rest and the twelve tables of the schedule at 32

so its ratio 11.67 compares a count with a factor 2 and fewer layers to one without and all. `like for like` counts
multiply-accumulates x b_w x b_a over all layers, those left out above in float32. `deployed` is what this project's
tensorrt-rtx engine does: placement's formats layer by layer, four-bit codes as the eight bits that kernels multiply,
attention's products and all else in float16, and the bytes of the file (`benchmarks.size`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.figures import publish
from benchmarks.shapes import ARCHS, network
from benchmarks.size import FILES, GRAPH, HALF, decide, deployed_bytes, module_layers, parameters_of
from quaver.runtime.measure.bops import bit_operations

SHAPE = "ldm4-imagenet-cin256-v2"
FLOAT = 32
LEFT_OUT = ("conv_shortcut", "downsamplers")  # diffusers' names of what stays float in the paper's code
CLASSES, EMBEDDING = 1001, 512
SCHEDULE = 12 * 1000  # tables of LatentDiffusion's schedule that its checkpoint holds
AUTOENCODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [128, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 3,
}
# bits of weights and activations -> T bit operations and MiB, as published
PUBLISHED = {(32, 32): (102.20, 1742.72), (8, 8): (8.76, 436.79), (4, 8): (4.38, 219.12)}
DEPLOYED = {(32, 32): "", (8, 8): "W8", (4, 8): "W4"}  # files of `benchmarks.size`


@dataclass(frozen=True)
class Module:
    """A convolution or linear layer: weights, how often each multiplies, and outputs at each position."""

    name: str
    conv: bool
    weights: int
    positions: int
    width: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.weights * self.positions


def main(argv: Sequence[str] | None = None) -> None:
    """Print both modes and what is published."""
    parser = argparse.ArgumentParser(prog="benchmarks.paper_cost")
    parser.add_argument("--shape", default=SHAPE)
    given = parser.parse_args(argv)
    arch = json.loads((ARCHS / f"{given.shape}.json").read_text(encoding="utf-8"))
    modules, normed = count(arch)
    named, rest = checkpoint(arch)
    rows: list[dict[str, Any]] = []
    for bits, (tera, mebibytes) in PUBLISHED.items():
        rows.append(
            {
                "bits": "/".join(map(str, bits)),
                "T BOPs, published": tera,
                "paper": paper_bops(modules, normed, *bits) / 1e12,
                "like for like": honest_bops(modules, *bits) / 1e12,
                "deployed": deployed_bops(arch, modules, DEPLOYED[bits]) / 1e12,
                "MiB, published": mebibytes,
                "paper MiB": paper_bytes(named, rest, bits[0]) / 2**20,
                "deployed MiB": unet_bytes(arch, DEPLOYED[bits]) / 2**20,
            }
        )
    reached = {}
    for row in rows:
        tera, mebibytes = row["T BOPs, published"], row["MiB, published"]
        reached[f"{row['bits']}: paper mode gives {tera} T"] = abs(row["paper"] - tera) < 0.005
        # what a checkpoint's container adds
        reached[f"{row['bits']}: paper mode gives {mebibytes} MiB within 0.4"] = abs(row["paper MiB"] - mebibytes) < 0.4
    publish("paper_cost", rows, figures={row["bits"]: row for row in rows}, reached=reached)


def count(arch: dict[str, Any]) -> tuple[list[Module], int]:
    """The layers of a U-Net as one call runs them, and how many elements its LayerNorms see; no weight is made."""
    import torch

    found: list[Module] = []
    normed: list[int] = []

    def watch(name: str, module: Any) -> None:
        conv = isinstance(module, torch.nn.Conv2d)

        def note(module: Any, given: Any, out: Any) -> None:
            places = out.shape[2:] if conv else out.shape[1:-1]
            found.append(Module(name, conv, math.prod(module.weight.shape), math.prod(places), module.weight.shape[0]))

        module.register_forward_hook(note)

    with torch.device("meta"):
        unet = network(arch)
        for name, module in unet.named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                watch(name, module)
            elif isinstance(module, torch.nn.LayerNorm):
                module.register_forward_hook(lambda module, given, out: normed.append(out.numel()))
        fed: dict[str, Any] = {key: torch.zeros(1, *size) for key, size in arch["conditioning"].items()}
        if arch["class"] == "UNet2DConditionModel":
            fed.setdefault("encoder_hidden_states", None)  # AudioLDM's attention has none
        unet(torch.zeros(1, *arch["latent"]), torch.zeros(1).long(), **fed)
    return found, sum(normed)


def checkpoint(arch: dict[str, Any]) -> tuple[int, int]:
    """Elements of the checkpoint's tensors called "weight", and of all others."""
    import diffusers
    import torch

    with torch.device("meta"):
        networks = network(arch), diffusers.VQModel(**AUTOENCODER)
    sizes = [(name, p.numel()) for part in networks for name, p in part.named_parameters()]
    named = sum(size for name, size in sizes if name.endswith("weight"))
    return named + CLASSES * EMBEDDING, sum(size for _, size in sizes) - named + SCHEDULE


def left_out(module: Module) -> bool:
    """Whether the paper's code leaves a layer float."""
    return any(part in module.name for part in LEFT_OUT)


def paper_bops(modules: Iterable[Module], normed: int, weight: int, activation: int) -> int:
    """Bit operations by the rules of the paper's numbers."""
    if weight == FLOAT:
        return (sum(module.macs for module in modules) + 4 * normed) * FLOAT**2
    coded = (module.macs if module.conv else module.weights for module in modules if not left_out(module))
    return 2 * sum(coded) * weight * activation


def honest_bops(modules: Iterable[Module], weight: int, activation: int) -> int:
    """Multiply-accumulates x bits of both factors over all layers; those left out stay float32."""
    return sum(module.macs * (FLOAT**2 if left_out(module) else weight * activation) for module in modules)


def paper_bytes(named: int, rest: int, bits: int) -> int:
    """Bytes of a checkpoint whose tensors called "weight" have so many bits."""
    return named * bits // 8 + rest * FLOAT // 8


def deployed_bops(arch: dict[str, Any], modules: Sequence[Module], file: str) -> int:
    """Bit operations of all products as placement codes them for a file of `benchmarks.size`; "": all float32."""
    macs, work = {module.name: module.macs for module in modules}, attention(modules)
    if not file:
        return (sum(macs.values()) + sum(work.values())) * FLOAT**2
    layers = [replace(layer, macs=macs[layer.name]) for layer in module_layers(meta(arch))]
    sites = [asdict(site) for site in decide(layers, file)]
    sites += [{"layer": "", "node": node, "role": "product", "format": "float", "compute": HALF} for node in work]
    products = [{"node": node, "macs": count} for node, count in work.items()]
    table = {"layers": [vars(layer) for layer in layers], "products": products, "sites": sites}
    return bit_operations(table, stored=False)


def attention(modules: Iterable[Module]) -> dict[str, int]:
    """Multiply-accumulates of Q K^T and softmax(S) V together, by attention."""
    found = {module.name: module for module in modules}
    queries = {name.removesuffix(".to_q"): module for name, module in found.items() if name.endswith(".to_q")}
    return {name: 2 * q.positions * found[f"{name}.to_k"].positions * q.width for name, q in queries.items()}


def unet_bytes(arch: dict[str, Any], file: str) -> int:
    """Bytes of the U-Net's file; "": all float32."""
    unet = meta(arch)
    layers, parameters = module_layers(unet), sum(p.numel() for p in unet.parameters())
    if not file:
        return 4 * parameters
    rest = parameters - sum(map(parameters_of, layers))
    return deployed_bytes(layers, decide(layers, file), rest) + GRAPH * (file != HALF and file in FILES)


def meta(arch: dict[str, Any]) -> Any:
    """The U-Net without weights."""
    import torch

    with torch.device("meta"):
        return network(arch)


if __name__ == "__main__":
    main()
