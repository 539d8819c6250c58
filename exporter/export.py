"""From the float graph and calibrated ranges to one quantized graph per target.

    unet.float.onnx + ranges -> place (decide) -> insert (write) -> check -> unet.<target>.onnx +
    unet.<target>.sites.json

Weights go from file to file, one at a time (modelfile): memory holds a graph, never a model.
Weights are rounded to nearest, or as weights.safetensors has learned it (`rounding`) when the stamp names that file
among those this graph is made from. The site file lists every decision with its reason, quantized or not, how much
of the work they cover, and the digest of the graph, so that an edited one is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quaver.calib.graph import Layer, layers, without_weights
from quaver.calib.rules import Rule, preset
from quaver.exporter.modelfile import load_model, open_weights
from quaver.exporter.passes import fused_attention, half
from quaver.exporter.placement import Placement, Ranges, Site, place, quantized_layers
from quaver.exporter.qdq import insert
from quaver.exporter.rounding import load_weights, usable
from quaver.exporter.targets import Target, find_target
from quaver.exporter.topology import product_macs, read_topology
from quaver.runtime.artifact import Stamp, digest_file, load_tensors, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import EngineError, RecipeError, first_line
from quaver.runtime.lazy import need
from quaver.runtime.progress import Bar, Progress

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ExportSettings:
    """The table [export] of a recipe."""

    preset: str = "8w8a"  # the rules to start from, one of calib.rules.PRESETS
    targets: tuple[str, ...] = ("ort-cpu", "tensorrt-rtx")
    rules: tuple[Rule, ...] = ()  # tried before the preset's: [[export.rules]] match, weight, activation, reason, block
    isa: str = "portable"  # CPUs that weights are coded for: one of targets.ISAS, or "native" for this machine's
    floats: Literal["float32", "float16"] = "float32"  # what stays float, on targets that have float16 kernels
    concat: Literal["shared", "split"] = "shared"  # whether the parts of a skip Concat share a scale
    residual: Literal["target", "float", "coded"] = "target"  # what coded outputs are added to; the target's own way
    attention: Literal["float", "int8", "float8"] = "float"  # the products of attention: Q K^T and softmax(S) V

    def __post_init__(self) -> None:
        preset(self.preset)
        for name in self.targets:
            find_target(name, isa=self.isa)
            if self.targets.count(name) > 1:
                raise RecipeError(f"export.targets names {name!r} {self.targets.count(name)} times, expected once")


def export(bundle: Bundle, settings: ExportSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write unet.<target>.onnx and its sites for every target; returns the last graph written.

    Raises: RecipeError for rules or targets that cannot be meant, ArtifactError for unusable ranges, EngineError when a
    runtime refuses the result.
    """
    if not settings.targets:
        raise RecipeError("export.targets is empty: name 'ort-cpu', 'tensorrt-rtx' or both")
    targets = [find_target(name, isa=settings.isa) for name in settings.targets]
    rules, ranges = (*settings.rules, *preset(settings.preset)), read_ranges(bundle)
    learned = load_weights(bundle) if bundle.weights.name in stamp.inputs else None
    for target in targets:
        model = load_model(bundle.float_unet, weights=False)
        found, topology = layers(model), read_topology(model)
        with progress.bar(len(found), f"export {target.name}, layers") as bar:
            work = product_macs(model, topology.products)
            sites = place(found, rules, target, ranges, topology=topology, options=placement(settings))
            codes = usable(learned, found, sites, target) if learned else {}
            moved = {**ranges, **(learned.ranges if learned and learned.target == target.name else {})}
            with open_weights(bundle.qdq(target.name)) as weights:
                read, keep = weights.read, weights.keep
                whole = target.half and settings.floats == "float16"
                halves = half.choose(model, sites, target, moved, whole=whole, read=read)
                sites = half.settle(sites, halves, model)
                each = counted(found, bar)
                insert(model, each, sites, moved, target, learned=codes, read=read, keep=keep, say=progress.say)
                half.run(model, halves, read=read, keep=keep)
                if target.attention:
                    fused_attention.run(model, read=read)
                check(model, target)
                weights.save(model, stamp, accept=load_once if target.name == "ort-cpu" else lambda path: None)
            table = site_table(found, work, sites, target) | {"digest": digest_file(bundle.qdq(target.name))}
            save_json(bundle.sites(target.name), table, stamp)
        progress.say(summary(found, sites, target) + f", {len(codes)} with learned rounding" * bool(codes))
        for remark in remarks(sites, target, settings):
            progress.say(f"{target.name}: {remark}")
    return bundle.qdq(targets[-1].name)


def counted(found: Sequence[Layer], bar: Bar) -> Iterator[Layer]:
    """The layers, each counted when the next one is asked for."""
    for layer in found:
        yield layer
        bar.step()


def placement(settings: ExportSettings) -> Placement:
    """What the recipe decides about placement, beside its rules."""
    return Placement(settings.floats == "float16", settings.concat, settings.residual, settings.attention)


def read_ranges(bundle: Bundle) -> Ranges:
    """amin and amax of every calibrated edge. Raises: ArtifactError when the file is not there or damaged."""
    tensors, meta = load_tensors(bundle.ranges, "ranges")
    limits = zip(tensors["amin"].tolist(), tensors["amax"].tolist(), strict=True)
    return dict(zip(meta["edges"], limits, strict=True))


def check(model: onnx.ModelProto, target: Target) -> None:
    """Hold a graph against the ONNX specification. Raises: EngineError with the checker's words."""
    try:
        need("onnx", extra="export").checker.check_model(without_weights(model))
    except Exception as error:  # the checker's class lies in its C++ module
        raise EngineError(
            f"the graph for {target.name} is not valid ONNX ({first_line(error)}): report it as a bug"
        ) from error


def load_once(path: Path) -> None:
    """Let onnxruntime load a graph, as whoever runs it will. Raises: EngineError with its words."""
    open_engine(path).close()


def site_table(
    found: Sequence[Layer], products: Mapping[str, int | None], sites: Sequence[Site], target: Target
) -> dict[str, Any]:
    """The content of a site file: target, coverage, the layers and products with their work, every site."""
    return {
        "target": target.name,
        "coverage": coverage(found, quantized_layers(sites)),
        "layers": [{"name": x.name, "node": x.node, "op": x.op, "macs": x.macs} for x in found],
        "products": [{"node": node, "macs": macs} for node, macs in products.items()],
        "sites": [*map(asdict, sites)],
    }


def coverage(found: Sequence[Layer], covered: Sequence[str]) -> dict[str, float]:
    """Which share of layers, and of their multiply-accumulates, `covered` names hold."""
    names, macs = set(covered), sum(layer.macs or 0 for layer in found)
    inside = [layer for layer in found if layer.name in names]
    return {
        "layers": len(inside),
        "of_layers": len(found),
        "by_count": len(inside) / max(len(found), 1),
        "by_macs": sum(layer.macs or 0 for layer in inside) / max(macs, 1),
    }


def summary(found: Sequence[Layer], sites: Sequence[Site], target: Target) -> str:
    """One line for the log."""
    share = coverage(found, quantized_layers(sites))
    return (
        f"{target.name}: {share['layers']} of {share['of_layers']} layers in integers, "
        f"{share['by_macs']:.0%} of the multiply-accumulates"
    )


def remarks(sites: Sequence[Site], target: Target, settings: ExportSettings) -> list[str]:
    """What whoever asked for this should know."""
    found = []
    if wide := sum(site.role == "input" and site.format == "uint16" for site in sites):
        found.append(f"{wide} layers read 16-bit codes: nearly exact, and no faster than float, whose kernels run them")
    if settings.floats == "float16" and not target.half:
        found.append("it has no float16 kernels, so what stays float is float32")
    if islands := sum(site.role == "island" for site in sites):
        found.append(f"{islands} nodes stay float32 amid float16; their sites say why")
    return found
