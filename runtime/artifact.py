"""Stage files: the only reader and writer of them.

A file carries a stamp: what kind it is, the digest of the settings it was made with, and the digests of the files it
was made from. A file is current when its stamp equals the stamp it would get now; there is no clock in it. Files
appear whole or not at all: they are written beside their place, synced, and renamed over it.

    digest = "sha256:" + 64 hex digits        (of the bytes; for an ONNX file, of its external `.data` too)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quaver.runtime.errors import ArtifactError
from quaver.runtime.modelproto import read_metadata

SCHEMA = 1
STAMP_KEY = "quaver.stamp"
TEMPORARY = ".tmp-"
_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "the file would be too large for this file system; write elsewhere",
    errno.EACCES: "the folder is not writable; choose another one or change its permissions",
    errno.EPERM: "the folder is not writable; choose another one or change its permissions",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EEXIST: "there is a file where a folder should be; remove it or write elsewhere",
    errno.ENOTDIR: "a part of this path is a file, not a folder; write elsewhere",
    errno.EISDIR: "there is a folder of that name; remove it or write elsewhere",
}


@dataclass(frozen=True)
class Stamp:
    """Where a file comes from: equal stamps mean equal content, up to the code that wrote it."""

    kind: str
    schema: int = SCHEMA
    settings: str = ""  # digest of the settings the stage read
    inputs: Mapping[str, str] = field(default_factory=dict)  # name in the bundle -> digest when it was read


def dump_stamp(stamp: Stamp) -> str:
    """The stamp as one line of JSON, as it stands in `metadata_props["quaver.stamp"]` of an ONNX file."""
    return json.dumps(asdict(stamp), sort_keys=True)


def parse_stamp(text: str) -> Stamp | None:
    """The stamp in a line of JSON, or None when it is not one."""
    try:
        return Stamp(**json.loads(text))
    except (TypeError, ValueError):
        return None


def digest_bytes(data: bytes) -> str:
    """The digest of some bytes, "sha256:<64 hex>"."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_json(obj: Any) -> str:
    """The digest of a JSON-able object, whatever the order of its keys."""
    return digest_bytes(json.dumps(obj, sort_keys=True, separators=(",", ":"), default=_plain).encode())


def digest_file(path: Path) -> str:
    """The digest of a file, read in pieces; of an ONNX file and its external `.data` together.

    Raises: ArtifactError when the file is missing.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    total = hashlib.sha256()
    for part in [path, data] if path.suffix == ".onnx" and data.exists() else [path]:
        with _reading(path), part.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def digest_folder(folder: Path) -> str:
    """The digest of every file below a folder, by name and content; hidden files apart."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix; it takes the place of `path` if the block succeeds.

    Raises: ArtifactError when the place cannot be written; whatever the block raises. The old file then stays.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, for files that must appear together; it is gone after the block.

    Raises: ArtifactError when the place cannot be written; whatever the block raises.
    """
    path = Path(path)
    folder = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk hold what a file, or a folder's list of names, says now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path | str, error: OSError) -> Exception:
    """The one line about a place that cannot be written, or the error itself when it says something else."""
    advice = _CANNOT_WRITE.get(error.errno or 0)
    return ArtifactError(f"cannot write {path}: {advice}") if advice else error


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below it."""
    for path in [*Path(folder).rglob(f"{TEMPORARY}*")]:  # found first: a walk does not outlive what it walks
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], stamp: Stamp, *, meta: Mapping[str, Any] | None = None
) -> Path:
    """Write arrays of any shape, a stamp and a JSON-able `meta` as one safetensors file, the same bytes every time."""
    # One metadata key: safetensors writes several in an order that changes from process to process.
    header = {"quaver": json.dumps({"stamp": asdict(stamp), "meta": dict(meta or {})}, sort_keys=True, default=_plain)}
    data = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, metadata=header)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def load_tensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read `(tensors, meta)` of a safetensors stage file.

    Raises: ArtifactError when it is missing, truncated or of another kind.
    """
    with _reading(path), safe_open(_existing(path), framework="np") as file:
        header = json.loads((file.metadata() or {}).get("quaver", "{}"))
        _check(path, kind, header.get("stamp"))
        return {name: file.get_tensor(name) for name in file.keys()}, header["meta"]  # noqa: SIM118


def save_json(path: Path, obj: Mapping[str, Any], stamp: Stamp) -> Path:
    """Write a JSON object with its stamp first; a stamp in `obj`, as `load_json` leaves one, is not kept."""
    body = {"stamp": asdict(stamp), **{key: value for key, value in obj.items() if key != "stamp"}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1, default=_plain) + "\n", encoding="utf-8")
    return Path(path)


def load_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON stage file, its stamp included.

    Raises: ArtifactError when it is missing, damaged or of another kind.
    """
    with _reading(path):
        obj = json.loads(_existing(path).read_text(encoding="utf-8"))
        _check(path, kind, obj.get("stamp"))
    return dict(obj)


def save_lines(path: Path, rows: Iterable[Mapping[str, Any]], stamp: Stamp) -> Path:
    """Write one JSON object a line, the stamp on the first."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in ({"stamp": asdict(stamp)}, *rows):
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
    return Path(path)


def load_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines stage file, without its stamp.

    Raises: ArtifactError when it is missing, damaged or of another kind.
    """
    with _reading(path):
        head, *rows = [json.loads(line) for line in _existing(path).read_text(encoding="utf-8").splitlines()] or [{}]
        _check(path, kind, head.get("stamp"))
    return rows


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of any stage file (a plan's stands in the JSON beside it), or None when it has none to read."""
    path = Path(path)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return parse_stamp(_stamp_text(path))
    return None


def _stamp_text(path: Path) -> str:
    if path.suffix == ".onnx":
        return read_metadata(path).get(STAMP_KEY, "")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return json.dumps(json.loads((file.metadata() or {})["quaver"])["stamp"])
    if path.suffix == ".plan":
        return _stamp_text(path.with_name(path.name + ".json"))
    with path.open(encoding="utf-8") as file:
        return json.dumps(json.loads(file.readline() if path.suffix == ".jsonl" else file.read()).get("stamp"))


def _check(path: Path, kind: str, found: Mapping[str, Any] | None) -> None:
    stamp = parse_stamp(json.dumps(found))
    if stamp is None:
        raise ArtifactError(
            f"{path} carries no stamp, so it is not a file of quaver: 'quaver run RECIPE' writes it anew"
        )
    if stamp.kind != kind:
        raise ArtifactError(f"{path} holds {stamp.kind}, expected {kind}: name the right file, or write it anew")
    if stamp.schema > SCHEMA:
        raise ArtifactError(
            f"{path} has schema {stamp.schema}, this quaver reads up to {SCHEMA}: pip install -U quaver"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every way in which a file cannot be read into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: 'quaver run RECIPE' writes it") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}): remove it, and 'quaver run RECIPE' writes it anew"
        ) from error


def _existing(path: Path) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(path)
    return Path(path)


def _plain(value: Any) -> Any:
    """What JSON cannot say by itself: paths, and numpy's numbers and arrays."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
