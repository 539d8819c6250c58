"""Before anything is built: which kernel every product of an ONNX file gets on a target, why, and what is refused.

    share of a format = multiply-accumulates of the products that multiply in it / multiply-accumulates of all products

Nothing is executed and no weight is read but those whose codes may saturate: a file of any size is read without them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quaver.exporter.lint import ort, tensorrt
from quaver.exporter.lint.edges import Index, index, values
from quaver.exporter.lint.kernels import Kernel
from quaver.exporter.lint.products import Product, products
from quaver.exporter.lint.refusals import gathered, refusals
from quaver.exporter.model.onnxfile import open_graph
from quaver.exporter.targets import Target, find_target
from quaver.exporter.weights import pair_sums
from quaver.runtime.errors import RecipeError, unknown

INLINE = 1 << 31  # bytes that a protobuf message can have
FORMATS = ("INT8", "FP8", "16 bit", "32 bit")
FOUR = ("int4", "uint4")


@dataclass(frozen=True)
class Row:
    """One product: its layer, ONNX node and operator, what its weight is stored in ("" for none), its kernel."""

    layer: str
    node: str
    op: str
    macs: int | None
    stored: str
    kernel: Kernel


@dataclass(frozen=True)
class Report:
    """What lint found. refused, warnings: one line each."""

    file: str
    target: str
    capabilities: tuple[str, ...]
    rows: tuple[Row, ...]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def counted(self) -> bool:
        """Whether the multiply-accumulates of every product are known."""
        return all(row.macs is not None for row in self.rows)

    def share(self, chosen: Callable[[Row], bool]) -> float:
        """The share of the chosen rows in all multiply-accumulates, or in all rows where those are not known."""
        weights = [(row.macs or 0) if self.counted else 1 for row in self.rows]
        mine = sum(weight for weight, row in zip(weights, self.rows, strict=True) if chosen(row))
        return mine / max(sum(weights), 1)

    @property
    def shares(self) -> dict[str, float]:
        """The share that multiplies in each format, and beside it the share by weights stored in 4 bits."""
        formats = {name: self.share(partial(_multiplies_in, name)) for name in FORMATS}
        return {**formats, "INT4 stored": self.share(lambda row: row.stored in FOUR)}

    @property
    def predicted(self) -> list[tuple[str, str, str]]:
        """(node, layer, kernel type) of every product, for `kernels.disagreements`."""
        return [(row.node, row.layer, row.kernel.type) for row in self.rows]


def lint(path: Path, target: str, *, capabilities: Sequence[str] = (), isa: str = "portable") -> Report:
    """Predict every kernel of an ONNX file on a target, in a plan for these compute capabilities (none: for new GPUs).

    Raises: RecipeError when the file is missing, damaged or refers to weights that are not there, and for a target, an
    instruction set or a capability that is not known.
    """
    known = find_target(target, isa=isa)
    for name in capabilities:
        if name not in known.capabilities:
            raise RecipeError(unknown(f"compute capability of {target}", name, known.capabilities))
    model = open_graph(path)
    graph = index(model, path.resolve().parent)
    found = products(graph)
    rows = tuple(_row(product, predict(product, known, capabilities)) for product in found)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    refused = [*_too_large(path), *refusals(graph, opset, known)]
    refused += gathered((row.layer, row.kernel.refused) for row in rows if row.kernel.refused)
    warnings = [*gathered((row.layer, row.kernel.warning) for row in rows if row.kernel.warning)]
    warnings += _saturating(graph, found, rows, known)
    return Report(path.name, target, tuple(capabilities), rows, tuple(refused), tuple(warnings))


def predict(product: Product, target: Target, capabilities: Sequence[str] = ()) -> Kernel:
    """The kernel of a product on a target."""
    if target.name == "ort-cpu":
        return ort.predict(product)
    return tensorrt.predict(product, target, capabilities)


def describe(report: Report) -> str:
    """A report as text: a line a product, then what is refused, warnings, and the verdict."""
    total = sum(row.macs or 0 for row in report.rows)
    width = max([len(row.layer) for row in report.rows] + [5])
    lines = [f"{'MACs':>6}  {'kernel':<22}{'layer':<{width}}  why not INT8"]
    for row in report.rows:
        part = f"{(row.macs or 0) / max(total, 1):6.1%}" if report.counted else f"{'-':>6}"
        lines.append(f"{part}  {row.kernel.type:<22}{row.layer:<{width}}  {row.kernel.why}".rstrip())
    lines += [f"refused: {line}" for line in report.refused]
    lines += [f"warning: {line}" for line in report.warnings]
    return "\n".join((*lines, verdict(report)))


def verdict(report: Report) -> str:
    """One line: what runs in which format, and whether the target runs it at all."""
    shares, types = report.shares, Counter(row.kernel.type for row in report.rows)
    where = " ".join((report.target, *report.capabilities))
    parts = (
        f"{'MACs' if report.counted else 'layers'} " + ", ".join(f"{shares[name]:.1%} {name}" for name in FORMATS),
        f"{shares['INT4 stored']:.1%} by weights stored in 4 bits",
        ", ".join(f"{count} {kind}" for kind, count in types.most_common()) or "nothing multiplies",
        f"REFUSED by {where}, for {len(report.refused)} reason(s)" if report.refused else f"{where} runs it",
    )
    return f"{report.file}: {'; '.join(parts)}"


def as_json(report: Report) -> str:
    """A report as JSON."""
    return json.dumps({**asdict(report), "shares": report.shares, "verdict": verdict(report)}, indent=1)


def _multiplies_in(name: str, row: Row) -> bool:
    return row.kernel.multiplies == name


def _row(product: Product, kernel: Kernel) -> Row:
    stored = product.weight.stored if product.weight is not None else ""
    return Row(product.name, product.node, product.op, product.macs, stored, kernel)


def _too_large(path: Path) -> Iterator[str]:
    if path.stat().st_size >= INLINE:
        yield (
            f"{path.name} is {path.stat().st_size / 1e9:.1f} GB with its weights inside, and protobuf ends at 2 GB: "
            "save it with external data"
        )


def _saturating(graph: Index, found: Sequence[Product], rows: Sequence[Row], target: Target) -> Iterator[str]:
    """A line about layers whose 8-bit products can saturate on x86 without VNNI, the worst first."""
    if target.pair_limit is None:
        return
    risky = [(p, r) for p, r in zip(found, rows, strict=True) if r.kernel.multiplies == "INT8" and _unsigned(p)]
    pairs = [(_largest_pair(graph, product), row.layer) for product, row in risky]
    if worst := [pair for pair in pairs if pair[0] > target.pair_limit]:
        pair, layer = max(worst)
        yield (
            f"{len(worst)} of {len(rows)} layers can saturate on x86 without VNNI: neighbouring weight codes sum to "
            f"{pair} in {layer}, above {target.pair_limit}; export with export.isa = 'portable', or use 7-bit weights"
        )


def _unsigned(product: Product) -> bool:
    """Whether its activations are unsigned codes, from the graph or made on the fly."""
    return product.left.codes is None or product.left.codes.format == "uint8"


def _largest_pair(graph: Index, product: Product) -> int:
    """Largest sum of neighbouring int8 weight codes of one sign, 0 for what cannot saturate."""
    weight = product.right
    if weight.source == "" or weight.codes is None or weight.codes.format != "int8" or weight.stored in FOUR:
        return 0
    codes = values(graph, weight.source)
    if codes is None or codes.ndim < 2:
        return 0
    if codes.dtype.kind == "f":
        codes = _coded(graph, product, codes)
    along = 0 if "Conv" in product.op else ort.output_axis(product, codes.shape)
    return int(pair_sums(np.moveaxis(codes, along, 0)).max())


def _coded(graph: Index, product: Product, weight: np.ndarray) -> np.ndarray:
    """The codes that a weight quantized in the graph gets."""
    codes = product.right.codes
    scale = values(graph, codes.scale) if codes is not None else None
    if codes is None or scale is None:
        return np.zeros_like(weight, np.int8)
    axis = codes.axis % weight.ndim
    if codes.scales == "channel":
        scale = scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    if codes.scales == "block":
        scale = np.repeat(scale, codes.block, axis).take(range(weight.shape[axis]), axis)
    return np.clip(np.round(weight / scale), -128, 127).astype(np.int8)
