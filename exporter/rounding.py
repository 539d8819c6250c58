"""The stage that learns how weights are rounded, and what the exporter takes from it.

    unet.float.onnx, ranges, records -> place for the first target -> learn (calib.reconstruct) -> weights.safetensors

The rounding is learned on the grids of the first target of [export]: its activations, its weight scales. Every target
whose format for a layer is the same, and whose limits the codes keep, writes these very integers; where kernels can
saturate, scales leave room for the one step that a code may move.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.graph import Layer, layers
from quaver.calib.quant import Format, scale_zero_point
from quaver.calib.reconstruct import ReconstructSettings, reconstruct
from quaver.calib.reconstruct.coding import Coding, Grid
from quaver.calib.records import batches, branches, load_records
from quaver.calib.rules import preset
from quaver.exporter.modelfile import load_model
from quaver.exporter.patterns import FORMATS, pair_limit
from quaver.exporter.placement import Ranges, Site, place
from quaver.exporter.targets import Target, find_target
from quaver.exporter.weights import Coded, code_weight, pair_sums
from quaver.runtime.artifact import Stamp, load_tensors, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import family_of
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress

if TYPE_CHECKING:
    import onnx

    from quaver.exporter.export import ExportSettings

KIND = "reconstruct"
POWER = 2.4  # of the error that the scales minimise (BRECQ, D2-DPM)
STEP = 1  # how far learning moves a code from the nearest one


@dataclass(frozen=True)
class LearnedWeights:
    """Codes and scales by layer name, their formats, and the ranges of edges whose steps were learned for `target`."""

    target: str
    coded: Mapping[str, Coded]
    formats: Mapping[str, str]
    ranges: Ranges


def learn_weights(
    bundle: Bundle, settings: ReconstructSettings, exported: ExportSettings, *, stamp: Stamp, progress: Progress
) -> Path:
    """Write weights.safetensors: <layer>.codes and <layer>.scale of every learned layer.

    Raises: RecipeError when the recipe asks for no learned rounding or for what cannot be learned; whatever placement
    and learning raise. Blocks that were finished stay, and the same command goes on behind them.
    """
    from quaver.exporter.export import read_ranges  # it reads what this writes

    if settings.method == "none" or not exported.targets:
        raise RecipeError("no rounding to learn: set reconstruct.method to 'adaround', 'brecq' or 'qdrop'")
    model, target = load_model(bundle.float_unet), find_target(exported.targets[0], isa=exported.isa)
    ranges, found = read_ranges(bundle), layers(model)
    sites = place(found, (*exported.rules, *preset(exported.preset)), target, ranges)
    codings = code_layers(model, found, sites, ranges, target)
    done = reconstruct(
        model, codings, feeds_of(bundle, settings), settings, part=bundle.weights_part, stamp=stamp, progress=progress
    )
    learned = {name: coding for name, coding in done.items() if coding.learned}
    tensors = {f"{name}.codes": coding.codes for name, coding in learned.items()}
    tensors |= {f"{name}.scale": coding.scale for name, coding in learned.items()}
    meta = {
        "target": target.name,
        "formats": {name: coding.format.name for name, coding in learned.items()},
        "ranges": moved_ranges(codings, done),
    }
    save_tensors(bundle.weights, tensors, stamp, meta=meta)
    shutil.rmtree(bundle.weights_part(0).parent, ignore_errors=True)
    progress.say(f"learned by {settings.method}: the rounding of {len(learned)} of {len(done)} coded layers")
    return bundle.weights


def code_layers(
    model: onnx.ModelProto,
    found: Sequence[Layer],
    sites: Sequence[Site],
    ranges: Ranges,
    target: Target,
    *,
    learning: bool = True,
) -> dict[str, Coding]:
    """How each coded layer is coded before anything is learned, by name, in graph order.

    Where nothing is going to be learned, scales and codes are those that the exporter writes.
    Raises: RecipeError when the narrowest format is not one of integers.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    array = need("onnx", extra="export").numpy_helper.to_array
    roles: dict[str, dict[str, Site]] = {}
    for site in sites:
        roles.setdefault(site.layer, {})[site.role] = site
    coded = {name: by_role["weight"].format for name, by_role in roles.items() if "weight" in by_role}
    formats = {name: FORMATS[fmt] for name, fmt in coded.items() if fmt in FORMATS}
    if not formats or any(fmt.kind != "int" for fmt in formats.values()):
        raise RecipeError(
            f"rounding is learned for integer weights, and the rules give {target.name} "
            f"{sorted({fmt.name for fmt in formats.values()}) or 'none'}: change export.preset or export.rules"
        )
    narrowest = min(fmt.bits for fmt in formats.values())
    return {
        layer.name: _code_layer(
            layer,
            {name: array(constants[name]) for name in (layer.weight, layer.bias) if name},
            roles[layer.name],
            formats[layer.name],
            ranges,
            target,
            learned=learning and formats[layer.name].bits == narrowest,
        )
        for layer in found
        if layer.name in formats
    }


def _code_layer(
    layer: Layer,
    values: Mapping[str, np.ndarray],
    sites: Mapping[str, Site],
    fmt: Format,
    ranges: Ranges,
    target: Target,
    *,
    learned: bool,
) -> Coding:
    grids = {role: _grid(sites[role], ranges) for role in ("input", "output") if role in sites}
    room, limit = 2 * STEP if learned else 0, pair_limit(target, sites["weight"], coded_input="input" in sites)
    coded = code_weight(
        values[layer.weight],
        fmt,
        axis=layer.axis,
        bias=values[layer.bias] if "bias" in sites else None,
        input_scale=grids["input"].scale if "bias" in sites else None,
        pair_limit=None if limit is None else limit - room,
        power=POWER if learned else None,
    )
    return Coding(layer, fmt, coded.scale, coded.codes, grids.get("input"), grids.get("output"), learned)


def _grid(site: Site, ranges: Ranges) -> Grid:
    fmt = FORMATS[site.format]
    scale, zero = scale_zero_point(*ranges[site.edge], fmt)
    return Grid(float(scale), int(zero), fmt.qmin, fmt.qmax)


def feeds_of(bundle: Bundle, settings: ReconstructSettings) -> list[dict[str, np.ndarray]]:
    """Inputs of the network from the bundle's records, both guidance branches of each, in batches."""
    records, family = load_records(bundle.samples), family_of(bundle)
    chosen = np.random.default_rng(settings.seed).permutation(len(records.t))[: settings.records or None]
    return [branches(records, rows, family.feeds) for rows in batches(np.sort(chosen), settings.batch)]


def moved_ranges(before: Mapping[str, Coding], after: Mapping[str, Coding]) -> dict[str, tuple[float, float]]:
    """The ranges of edges whose step changed; a symmetric grid's ends are those of its positive codes."""
    moved = {}
    for name, coding in after.items():
        for edge, grid in coding.grids.items():
            if grid != before[name].grids[edge]:
                low = -grid.qmax if grid.zero == 0 and grid.qmin < 0 else grid.qmin - grid.zero
                moved[edge] = (low * grid.scale, (grid.qmax - grid.zero) * grid.scale)
    return moved


def load_weights(bundle: Bundle) -> LearnedWeights:
    """Read weights.safetensors. Raises: ArtifactError when it is missing, damaged or of another kind."""
    tensors, meta = load_tensors(bundle.weights, KIND)
    coded = {name: Coded(tensors[f"{name}.codes"], tensors[f"{name}.scale"]) for name in meta["formats"]}
    ranges = {edge: (low, high) for edge, (low, high) in meta["ranges"].items()}
    return LearnedWeights(meta["target"], coded, meta["formats"], ranges)


def usable(learned: LearnedWeights, found: Sequence[Layer], sites: Sequence[Site], target: Target) -> dict[str, Coded]:
    """The learned codes that a target can write: of its own format for the layer, and within its limits."""
    # the scales of a Concat's parts go into its weights: those codes are others
    split = {site.layer for site in sites if site.scale == "parts"}
    inputs = {site.layer for site in sites if site.role == "input"}
    coded = {s.layer: s for s in sites if s.role == "weight" and not s.block and s.layer not in split}

    def fits(layer: Layer) -> bool:
        name, site = layer.name, coded.get(layer.name)
        if site is None or learned.formats.get(name) != site.format:
            return False
        limit = pair_limit(target, site, coded_input=name in inputs)
        return limit is None or pair_sums(np.moveaxis(learned.coded[name].codes, layer.axis, 0)).max() <= limit

    return {layer.name: learned.coded[layer.name] for layer in found if fits(layer)}
