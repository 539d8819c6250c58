"""Which files are compared, on which inputs, and whether they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quaver.calib.records import branches, load_records
from quaver.exporter.model.onnxfile import open_graph, require_file
from quaver.runtime.artifact import digest_file, read_stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.family import family_of
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

Feeds = dict[str, np.ndarray]
Signature = Mapping[str, tuple[np.dtype, tuple[int | None, ...]]]  # name -> dtype, shape (None: any size)


def find_files(source: Path, *, target: str = "", floats: Path | None = None) -> tuple[Path, Path | None]:
    """The quantized and the float graph of a bundle, or of a quantized file; None when there is no float one.

    Raises: RecipeError when one is missing or no ONNX file, or for a target without a graph; ArtifactError when they do
    not belong together.
    """
    if not source.is_dir():
        require_file(source, "a bundle or a quantized .onnx file")
        if target:
            raise RecipeError(f"{source} is one graph already: leave --target {target} out, or name its bundle")
    quantized = find_target_file(source, target) if source.is_dir() else source
    own = Bundle(quantized.parent).float_unet
    floats = floats or (own if own.exists() and own != quantized else None)
    if floats is None:
        return quantized, None
    require_file(floats, f"the float graph that {quantized.name} was made from")
    stamp = read_stamp(quantized)
    made_from = stamp.inputs.get(own.name) if stamp and floats == own else None
    if made_from and made_from != digest_file(own):
        raise ArtifactError(f"{quantized} was made from another {own.name} than lies there: run 'quaver export' again")
    require_same(quantized, floats)
    return quantized, floats


def find_target_file(folder: Path, target: str) -> Path:
    """The quantized graph for a target, by default "ort-cpu" or the only one. Raises: as `find_files`."""
    bundle = Bundle(folder)
    there = {path.name.removeprefix("unet.").removesuffix(".onnx") for path in folder.glob("unet.*.onnx")} - {"float"}
    if not there:
        raise ArtifactError(f"{folder} holds no quantized graph: name a bundle that 'quaver export' wrote, or a file")
    chosen = target or ("ort-cpu" if "ort-cpu" in there else min(there))
    if chosen not in there:
        raise RecipeError(f"{folder} has no graph for {chosen!r}: use one of {', '.join(sorted(there))}")
    return bundle.qdq(chosen)


def find_calls(quantized: Path, *, inputs: Path | None, records: int) -> list[Feeds]:
    """What the graph is fed: the arrays of a file in one call, or `records` of its bundle, spread over timesteps.

    Raises: ArtifactError when there are none, or they do not fit.
    """
    bundle = Bundle(quantized.parent)
    wanted, _ = signatures(open_graph(quantized))
    if inputs is None and not bundle.samples.exists():
        raise ArtifactError(f"nothing to feed {quantized}: --inputs FILE.npz with arrays {', '.join(wanted)}")
    origin = inputs or bundle.samples
    calls = [read_arrays(inputs)] if inputs is not None else record_calls(bundle, records)
    for feeds in calls:
        require_fit(origin, feeds, wanted)
    return [{name: feeds[name] for name in wanted} for feeds in calls]


def record_calls(bundle: Bundle, count: int) -> list[Feeds]:
    """Both branches of `count` records of a bundle, evenly spread over its timesteps, a call each."""
    if count < 1:
        raise RecipeError(f"--records {count}: at least 1 is needed")
    records, family = load_records(bundle.samples), family_of(bundle)
    order = np.argsort(records.t, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    return [branches(records, chosen[i : i + 1], family.feeds) for i in range(len(chosen))]


def read_arrays(path: Path) -> Feeds:
    """The arrays of an .npz or .safetensors file. Raises: ArtifactError when it is not one."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        return dict(need("safetensors.numpy", extra="export").load_file(path))
    except Exception as error:  # zipfile, numpy and safetensors have a class each
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ArtifactError(f"{path} cannot be read as inputs ({line}): save them with numpy.savez") from error


def signatures(model: onnx.ModelProto) -> tuple[Signature, Signature]:
    """Inputs and outputs of a graph."""
    dtype = need("onnx", extra="export").helper.tensor_dtype_to_np_dtype
    constants = {tensor.name for tensor in model.graph.initializer}

    def read(values: Sequence[onnx.ValueInfoProto]) -> Signature:
        typed = {value.name: value.type.tensor_type for value in values if value.name not in constants}
        return {
            name: (
                np.dtype(dtype(kind.elem_type)),
                tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim),
            )
            for name, kind in typed.items()
        }

    return read(model.graph.input), read(model.graph.output)


def require_same(quantized: Path, floats: Path) -> None:
    """Raises: ArtifactError when two graphs differ in what goes in or comes out."""
    ours, theirs = (signatures(open_graph(path)) for path in (quantized, floats))
    for what, mine, other in zip(("inputs", "outputs"), ours, theirs, strict=True):
        if mine.keys() != other.keys() or any(not agree(mine[name], other[name]) for name in mine):
            raise ArtifactError(
                f"{quantized.name} and {floats.name} do not belong together: {what} are {spell(mine)} and "
                f"{spell(other)}; name the float graph that it was made from with --float"
            )


def require_fit(origin: Path, feeds: Feeds, wanted: Signature) -> None:
    """Raises: ArtifactError when arrays are not what a graph takes."""
    if missing := wanted.keys() - feeds.keys():
        raise ArtifactError(f"{origin} has no {', '.join(sorted(missing))}, which the graph takes: {spell(wanted)}")
    for name, kind in wanted.items():
        array = feeds[name]
        if not agree(kind, (array.dtype, array.shape)):
            raise ArtifactError(
                f"{origin}: {name} is {array.dtype} {list(array.shape)}, the graph takes {spell({name: kind})}"
            )


def agree(a: tuple[np.dtype, Sequence[int | None]], b: tuple[np.dtype, Sequence[int | None]]) -> bool:
    """Whether two tensors can be the same one."""
    sizes = zip(a[1], b[1], strict=False)
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(x == y or None in (x, y) for x, y in sizes)


def spell(signature: Signature) -> str:
    """A signature in words."""
    shapes = {name: ", ".join("?" if d is None else str(d) for d in shape) for name, (_, shape) in signature.items()}
    return ", ".join(f"{name} {dtype} [{shapes[name]}]" for name, (dtype, _) in signature.items())
