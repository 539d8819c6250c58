"""What a file of quaver, or a whole bundle, holds: in words, without loading more than its head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quaver.calib.explained import columns
from quaver.exporter.plans.text import describe_plan
from quaver.runtime.artifact import load_tensors, read_stamp
from quaver.runtime.bundle import sampling_name
from quaver.runtime.error_law import KIND as STATS
from quaver.runtime.error_law import Binding, load_stats
from quaver.runtime.errors import ArtifactError
from quaver.runtime.modelproto import read_metadata

ROWS = 5


def describe(path: Path) -> str:
    """Kind, origin and content of a file; of a folder, its files.

    Raises: ArtifactError when it is not there or cannot be read.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: name a file or a bundle, for example engines/demo-w8a8")
    try:
        return "\n".join(folder_lines(path) if path.is_dir() else file_lines(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be shown ({error}): it is damaged, or no file of quaver") from error


def folder_lines(folder: Path) -> Iterator[str]:
    """One line a file: bytes, kind, name; of error statistics also the sampling they are of."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        stamp = read_stamp(path)
        name = path.relative_to(folder).as_posix()
        bound = head(path).get("binding") if stamp and stamp.kind == STATS else None
        of = f"  of {sampling_name(Binding(**bound))}" if bound else ""
        yield f"{path.stat().st_size:>13,}  {stamp.kind if stamp else '-':<9}  {name}{of}"


def file_lines(path: Path) -> Iterator[str]:
    """The stamp, then what its format has to say."""
    yield f"{path.name}  {path.stat().st_size:,} bytes"
    if stamp := read_stamp(path):
        yield f"kind {stamp.kind}, schema {stamp.schema}, settings {short(stamp.settings)}"
        yield from (f"made from {name} {short(digest)}" for name, digest in stamp.inputs.items())
    else:
        yield "no stamp"
    yield from (CONTENTS.get("".join(path.suffixes[-2:])) or CONTENTS.get(path.suffix, no_lines))(path)


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def tensor_lines(path: Path) -> Iterator[str]:
    """Name, type and shape of every tensor, and the meta beside them."""
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            part = file.get_slice(name)
            yield f"  {name}  {part.get_dtype()} {part.get_shape()}"
    yield from json_items(head(path))
    if (stamp := read_stamp(path)) and stamp.kind == STATS:
        yield from stats_lines(path)


def head(path: Path) -> dict[str, Any]:
    """What a safetensors file of quaver says of itself, beside its stamp."""
    with safe_open(path, framework="np") as file:
        return dict(json.loads((file.metadata() or {}).get("quaver", "{}")).get("meta", {}))


def stats_lines(path: Path) -> Iterator[str]:
    """Error statistics timestep by timestep: the deployed engine beside the simulated one, and what laws took off."""
    table = columns(load_stats(path), load_tensors(path, STATS)[1].get("held_out"))
    rows = [list(table), *([f"{value:.4g}" for value in row] for row in zip(*table.values(), strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  " + "  ".join(map(str.rjust, row, widths)) for row in rows)


def row_lines(path: Path) -> Iterator[str]:
    """The number of rows and the first of them."""
    with path.open(encoding="utf-8") as file:
        rows = [row.rstrip("\n") for row in file if '"stamp"' not in row[:10]]
    yield f"{len(rows)} rows"
    yield from (f"  {row[:200]}" for row in islice(rows, ROWS))


def json_lines(path: Path) -> Iterator[str]:
    """Key and value of an object."""
    yield from json_items(json.loads(path.read_text(encoding="utf-8")))


def json_items(obj: object) -> Iterator[str]:
    """One line a key of an object, its value cut."""
    items = obj.items() if isinstance(obj, dict) else enumerate(obj if isinstance(obj, list) else [obj])
    yield from (f"  {key} = {cut(json.dumps(value, ensure_ascii=False))}" for key, value in items if key != "stamp")


def plan_lines(path: Path) -> Iterator[str]:
    """A plan's sidecar in words."""
    yield from describe_plan(json.loads(path.read_text(encoding="utf-8")))


def graph_lines(path: Path) -> Iterator[str]:
    """The metadata of an ONNX file."""
    metadata = read_metadata(path).items()
    yield from (f"  {key} = {cut(value)}" for key, value in metadata if key != "quaver.stamp")


def text_lines(path: Path) -> Iterator[str]:
    """A text file as it stands."""
    yield from path.read_text(encoding="utf-8").splitlines()


def no_lines(path: Path) -> Iterator[str]:
    """Nothing to say of a format."""
    yield from ()


def cut(text: str, width: int = 160) -> str:
    """A long text cut with its length."""
    return text if len(text) <= width else f"{text[:width]}… ({len(text):,} characters)"


CONTENTS = {
    ".safetensors": tensor_lines,
    ".jsonl": row_lines,
    ".json": json_lines,
    ".plan.json": plan_lines,
    ".plan": lambda path: plan_lines(path.with_name(f"{path.name}.json")),
    ".onnx": graph_lines,
    ".toml": text_lines,
}
