"""Checkpoints with known outputs: how far what is loaded of them is off, in torch and as ONNX in onnxruntime.

    python -m benchmarks.fixtures [FOLDER ...]

FOLDER holds a checkpoint in its authors' layout and `io.safetensors`, inputs with the outputs that the original
architecture gave in fp32. Left out: those of tests/data/checkpoints. An error is relative, |found - known| / |known|.
TANGO's there has no U-Net, so one of random weights takes its place and is not judged.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from quaver.exporter.checkpoints import tango
from quaver.exporter.checkpoints.layout import MAIN, TANGO, find_checkpoint
from quaver.exporter.checkpoints.original import load_original
from quaver.exporter.checkpoints.signs import likely_family
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.exporter.model.samples import Samples
from quaver.exporter.model.source import Model
from quaver.exporter.model.tracing import trace_parts, trace_unet
from quaver.exporter.modelfile import save_model
from quaver.runtime.artifact import Stamp
from quaver.runtime.engine import open_engine

OWN = Path("tests/data/checkpoints")
TORCH, ONNX = 1e-4, 1e-3
IO = "io.safetensors"
UNET = "unet"
# what the files call it -> what networks call it
INPUTS = {
    "x": "sample",
    "t": "timestep",
    "context": "encoder_hidden_states",
    "film": "class_labels",
    "latent": "latents",
}
OUTPUTS = {
    UNET: ("eps", "v"),
    "text_encoder": ("encoder_hidden_states",),
    "vae_decoder": ("mel", "decoded"),
    "image_decoder": ("decoded",),
    "vocoder": ("waveform",),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per network."""
    parser = argparse.ArgumentParser(prog="benchmarks.fixtures")
    parser.add_argument("folders", nargs="*", type=Path)
    given = parser.parse_args(argv)
    rows = list(judged(given.folders))
    publish(
        "fixtures",
        rows,
        figures={f"{row['fixture']} {row['network']}": row for row in rows},
        reached={claim: true for row in rows for claim, true in claims(row)},
    )


def claims(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What one row must show."""
    where = f"{row['fixture']}, {row['network']}"
    yield f"{where}: at most {TORCH:.0e} in torch", row["torch"] <= TORCH
    yield f"{where}: at most {ONNX:.0e} as ONNX", row["ONNX"] <= ONNX


def judged(folders: Sequence[Path] = ()) -> Iterator[dict[str, Any]]:
    """A row per network of every fixture."""
    for folder in folders or sorted(path.parent for path in OWN.glob(f"*/{IO}")):
        with tempfile.TemporaryDirectory() as place:
            yield from judge(folder, Path(place))


def judge(folder: Path, place: Path) -> Iterator[dict[str, Any]]:
    """A row per network of a fixture whose output is known."""
    from safetensors.numpy import load_file

    io = load_file(folder / IO)
    source = with_unet(folder, place / "source") if lacks_unet(folder) else folder
    checkpoint = find_checkpoint(source)
    assert checkpoint is not None
    family = likely_family(read_tensors(checkpoint.weights))
    model = load_original(checkpoint, family)
    shape = io["x"].shape[1:] if "x" in io else io["latent"].shape[1:]
    feeds = inputs(io, model)
    fed = None if model.rows is None else Samples(model.rows, {}, 2)
    unet = [(UNET, trace_unet(model.unet, shape, fed))] if source == folder else []
    networks = {UNET: model.unet, **model.parts}
    for name, traced in (*unet, *trace_parts(model.parts, shape)):
        known = next((io[key] for key in OUTPUTS.get(name, ()) if key in io), None)
        if known is not None:
            graph = save_model(traced.model, place / f"{name}.onnx", Stamp("trace"), memory=traced.memory)
            with open_engine(graph, threads=1) as engine:
                onnx = np.asarray(engine({key: feeds[key] for key in engine.inputs}))
            errors = {"torch": off(heard(networks[name], feeds), known), "ONNX": off(onnx, known)}
            yield {"fixture": folder.name, "network": name, **errors}


def inputs(io: Mapping[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    """The arrays of a fixture by the names that networks have for them; a class as what it is embedded as."""
    fed = {INPUTS.get(key, key): value for key, value in io.items()}
    if "attention_mask" in fed:
        fed["attention_mask"] = fed["encoder_attention_mask"] = fed["attention_mask"].astype(np.int64)
    if "class_label" in fed:
        fed["encoder_hidden_states"] = heard(model.parts["class_encoder"], fed)
    return fed


def heard(network: Any, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a torch network answers to those of the arrays that it takes."""
    import torch

    taken = inspect.signature(network.forward).parameters
    given = {
        name: torch.from_numpy(feeds[name]) if name in feeds else None
        for name in taken
        if wanted(taken[name], name in feeds)
    }
    with torch.no_grad():
        answer = network(**given)
    return np.asarray(getattr(answer, "sample", answer))


def wanted(parameter: inspect.Parameter, fed: bool) -> bool:
    """Whether an argument is passed: what there is an array for, and what has no default."""
    return fed or parameter.default is inspect.Parameter.empty


def off(found: np.ndarray, known: np.ndarray) -> float:
    """|found - known| / |known|, a dimension of one apart."""
    known = known.reshape(found.shape).astype(np.float64)
    return float(np.linalg.norm(found - known) / np.linalg.norm(known))


def lacks_unet(folder: Path) -> bool:
    """Whether this is TANGO without the file of its U-Net and text encoder."""
    return (folder / TANGO).is_file() and not (folder / MAIN).exists()


def with_unet(folder: Path, place: Path) -> Path:
    """A copy of that folder with a U-Net of random weights beside its text encoder."""
    import torch

    shutil.copytree(folder, place)
    config = json.loads((folder / "configs" / "diffusion_model_config.json").read_text(encoding="utf-8"))
    draw = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in tango.make_unet(config).named_parameters()}
    weights = {f"unet.{name}": torch.randn(size, generator=draw) / max(size[-1], 8) for name, size in shapes.items()}
    text = {f"text_encoder.{key}": value for key, value in read_tensors(folder / "text_encoder.safetensors").items()}
    torch.save(weights | text, place / MAIN)
    return place


if __name__ == "__main__":
    main()
