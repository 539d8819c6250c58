"""What each stage needs of memory, in the symbols of `memory`:

    stage          w                  r                   kept
    trace          TRACED             0                   torch; its few rows are in w: there is no graph yet
    capture        RUN                batch x branches    all of it times the workers
    ranges         RUN                batch x branches    values of the histograms; all of it times the workers
    reconstruct    LEARNED            3 batch             torch; of all rows, twice, what is alive between two layers
    export         EXPORTED           0                   weights go through one at a time
    build          BUILT              0                   the builder; w of the coded graph's bytes, not of W

The numbers bound what `benchmarks.full_size` measures, by at most 2 (docs/models.md has both). Those of reconstruct
follow from its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quaver.calib.fanout import Fanout
from quaver.calib.graph import LAYER_OPS, activation_edges, read_model
from quaver.calib.records import load_records
from quaver.exporter.build import plan_targets
from quaver.exporter.checkpoints.layout import find_checkpoint
from quaver.exporter.checkpoints.signs import UNET
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.exporter.memory import FLOAT, GIGA, Need, alive, weights
from quaver.exporter.model.source import model_folder
from quaver.runtime.bundle import Bundle

if TYPE_CHECKING:
    from quaver.exporter.recipe import Recipe

LIBRARIES, TORCH, BUILDER = GIGA // 4, GIGA // 2, GIGA // 2
TRACED, RUN, LEARNED, EXPORTED, BUILT = 4.0, 1.75, 4.0, 0.75, 5.0
UNETS = (UNET, "unet.")  # what the keys of a checkpoint's U-Net begin with
Foretell = Callable[[Bundle, "Recipe", Fanout], Need | None]  # None: it cannot be told here


def of_trace(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """Of the U-Net, by far the largest network."""
    size = source_weights(recipe.model.source)
    return Need(LIBRARIES + TORCH + int(TRACED * size)) if size else None


def of_capture(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """A float engine a worker."""
    return _running(bundle, recipe, fanout, "capture", recipe.capture.batch)


def of_ranges(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """A float engine a worker, and the values that its histograms look at."""
    settings = recipe.ranges
    values = FLOAT * settings.values * len(activation_edges(read_model(bundle.float_unet)))
    return _running(bundle, recipe, fanout, "ranges", settings.batch, min(values, int(settings.memory * 2**20)))


def of_reconstruct(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """The graph in torch, and what both models know of all records between two layers."""
    settings = recipe.reconstruct
    if settings.method == "none" or settings.device != "cpu":
        return None
    model, branches = read_model(bundle.float_unet), _branches(recipe)
    constants, held = {tensor.name for tensor in model.graph.initializer}, alive(model)
    layer = [node.op_type in LAYER_OPS and node.input[1] in constants for node in model.graph.node]
    between = max((size for size, is_layer in zip(held, layer, strict=True) if is_layer), default=0)
    records = len(load_records(bundle.samples).t)
    rows = branches * (min(settings.records, records) or records)
    kept = 2 * rows * between + 3 * settings.batch * max(held, default=0)
    fewer = f"set reconstruct.records below {rows // branches} or reconstruct.batch below {settings.batch}"
    return Need(LIBRARIES + TORCH + int(LEARNED * weights(model)) + kept, fewer)


def of_export(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """The graph, one weight at a time, and a load of the result in onnxruntime."""
    return Need(LIBRARIES + int(EXPORTED * weights(read_model(bundle.float_unet))))


def of_build(bundle: Bundle, recipe: Recipe, fanout: Fanout) -> Need | None:
    """TensorRT's builder on the largest of the graphs."""
    graphs = [path for name in plan_targets(recipe.export.targets) if (path := bundle.qdq(name)).exists()]
    return Need(LIBRARIES + BUILDER + int(BUILT * max(map(file_bytes, graphs)))) if graphs else None


def source_weights(source: str) -> int:
    """Bytes in fp32 of the U-Net that a folder or checkpoint holds; 0 for a hub id or an ONNX file."""
    if source.endswith(".onnx"):
        return 0
    if source != "demo" and (checkpoint := find_checkpoint(source)):
        tensors = read_tensors(checkpoint.weights)
        return FLOAT * sum(value.numel() for key, value in tensors.items() if key.startswith(UNETS))
    folder = (model_folder(source) if source == "demo" else Path(source).expanduser()) / "unet"
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    plain = [path for path in files if path.name.count(".") == 1]  # no "fp16" before the suffix
    return FLOAT * sum(value.numel() for path in plain for value in read_tensors(path).values())


def file_bytes(path: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.exists())


def _running(bundle: Bundle, recipe: Recipe, fanout: Fanout, stage: str, batch: int, kept: int = 0) -> Need | None:
    """The float graph in onnxruntime, `batch` samples at a time; of a cluster's nodes nothing is known here."""
    if fanout.ray:
        return None
    model = read_model(bundle.float_unet)
    rows = batch * _branches(recipe)
    one = LIBRARIES + int(RUN * weights(model)) + rows * max(alive(model), default=0) + kept
    ways = [f"set {stage}.batch below {batch}"] * (batch > 1)
    ways += [f"take fewer --workers than {fanout.workers}"] * (fanout.workers > 1)
    return Need(fanout.workers * one, " or ".join(ways))


def _branches(recipe: Recipe) -> int:
    return 1 if recipe.sampling.guidance == 1 else 2


NEEDS: Mapping[str, Foretell] = {
    "trace": of_trace,
    "capture": of_capture,
    "ranges": of_ranges,
    "reconstruct": of_reconstruct,
    "export": of_export,
    "build": of_build,
}
