"""Writing and reading ONNX files: whole or not at all, stamped, large weights beside the graph.

Protobuf ends at 2 GB, so a model whose constants exceed EMBEDDED bytes keeps them in `<name>.onnx.data`, each at a
multiple of PAGE so that runtimes can map them.

No file passes through memory. A graph is read with references to its weights (graph.read_model); what a pass makes of
a weight goes to disk at once (Weights.keep) and a new reference takes its place; what it leaves alone is copied from
file to file. One weight is in memory at a time.

Graph and data are written and synced in a folder of their own, `accept` may try them there, and then take their places
by renaming, in this order:

    remove the old graph      rename the data      rename the graph

so no moment, and no crash, shows a graph with another model's weights; without a graph a stage has not run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from quaver.calib.graph import damaged, read_model
from quaver.runtime.artifact import STAMP_KEY, Stamp, dump_stamp, staging, sync
from quaver.runtime.errors import ArtifactError
from quaver.runtime.lazy import need
from quaver.runtime.modelproto import GRAPH, INITIALIZER, LEAST, RAW_DATA, head

if TYPE_CHECKING:
    import onnx

EMBEDDED = 1 << 30
PAGE = 4096
CHUNK = 1 << 24
PRODUCER = "quaver"


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a model, with its weights in memory or left where they are.

    Raises: ArtifactError when it is missing or damaged.
    """
    if not weights or not path.exists():
        return read_model(path)
    try:
        return need("onnx", extra="export").load(path)
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise damaged(path, error) from error


def save_model(
    model: onnx.ModelProto,
    path: Path,
    stamp: Stamp,
    *,
    embedded: int | None = None,
    accept: Callable[[Path], object] = lambda path: None,
    memory: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model with its stamp; above `embedded` bytes (EMBEDDED) its weights leave it and go to `path`.data.

    References to weights elsewhere are relative to the folder of `path`, or locations in `memory`. `accept` is called
    with the finished file before that takes its place; what it raises leaves the old one. Raises: ArtifactError when
    the place cannot be written, or a weight is not where it should be.
    """
    with open_weights(path, memory=memory) as weights:
        return weights.save(model, stamp, embedded=embedded, accept=accept)


@contextmanager
def open_weights(
    path: Path, *, source: Path | None = None, memory: Mapping[str, np.ndarray] | None = None
) -> Iterator[Weights]:
    """Room for the constants of a model to be written to `path`, from one whose weights lie in the folder `source`.

    `memory` holds those that lie in no file, by their location. Raises: ArtifactError when the place cannot be written.
    """
    with staging(path) as folder, (folder / f"{path.name}.data").open("w+b") as file:
        yield Weights(path, (source or path.parent).resolve(), memory or {}, folder.resolve(), file)


class Weights:
    """The constants of a model that is being made: read where they lie, kept on disk as they come, saved as a whole."""

    def __init__(
        self, path: Path, source: Path, memory: Mapping[str, np.ndarray], folder: Path, file: BinaryIO
    ) -> None:
        self.path, self.source, self.memory, self.file = path, source, memory, file
        self.graph, self.data = folder / path.name, folder / f"{path.name}.data"

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of a constant, wherever they lie. Raises: ArtifactError when they are not there."""
        onnx = need("onnx", extra="export")
        if tensor.external_data:
            tensor = _bare(tensor, b"".join(self._bytes(tensor)))
        try:
            return onnx.numpy_helper.to_array(tensor)
        except ValueError as error:
            raise ArtifactError(
                f"the weights of {tensor.name} have {len(tensor.raw_data)} bytes, which are not the shape "
                f"{list(tensor.dims)}: write the graph and its data file anew"
            ) from error

    def keep(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The same constant, its bytes moved to the file that this model's weights go to (unless they are few)."""
        if (size := size_of(tensor)) < LEAST or _place(tensor).get("location") == str(self.data):
            return tensor
        self.file.seek(0, os.SEEK_END)
        self.file.write(b"\0" * (-self.file.tell() % PAGE))
        offset = self.file.tell()
        self.file.writelines(self._bytes(tensor))
        tensor.ClearField("raw_data")
        refer(tensor, str(self.data), offset, size)
        return tensor

    def save(
        self,
        model: onnx.ModelProto,
        stamp: Stamp,
        *,
        embedded: int | None = None,
        accept: Callable[[Path], object] = lambda path: None,
    ) -> Path:
        """Write the model whose constants these are, as `save_model` does."""
        model.producer_name = PRODUCER
        del model.metadata_props[:]
        model.metadata_props.add(key=STAMP_KEY, value=dump_stamp(stamp))
        beside = sum(map(size_of, model.graph.initializer)) > (EMBEDDED if embedded is None else embedded)
        with self.graph.open("wb") as file:
            file.writelines(self._beside(model) if beside else self._whole(model))
        self.file.close()
        if not beside:
            self.data.unlink()
        for written in self.graph.parent.iterdir():
            sync(written)
        accept(self.graph)
        _publish(self.graph, self.data if beside else None, self.path)
        return self.path

    def _beside(self, model: onnx.ModelProto) -> Iterator[bytes]:
        """The graph of a model, after all its constants are in the data file."""
        for tensor in model.graph.initializer:
            if place := _place(self.keep(tensor)):
                refer(tensor, self.data.name, int(place["offset"]), size_of(tensor))
        yield model.SerializeToString(deterministic=True)

    def _whole(self, model: onnx.ModelProto) -> Iterator[bytes | memoryview]:
        """A model as one message; its constants, from wherever they lie, come behind the rest of its graph."""
        rest = _but(model.graph, "initializer").SerializeToString(deterministic=True)
        starts, sizes = [], []
        for tensor in model.graph.initializer:
            size = size_of(tensor)
            start = _bare(tensor).SerializeToString() + head(RAW_DATA, size) if size else tensor.SerializeToString()
            starts.append(head(INITIALIZER, len(start) + size) + start)
            sizes.append(size)
        yield _but(model, "graph").SerializeToString(deterministic=True)
        yield head(GRAPH, len(rest) + sum(map(len, starts)) + sum(sizes)) + rest
        for tensor, start in zip(model.graph.initializer, starts, strict=True):
            yield start
            yield from self._bytes(tensor)

    def _bytes(self, tensor: onnx.TensorProto) -> Iterator[bytes | memoryview]:
        """The raw bytes of a constant, in pieces when they come from a file."""
        if not (place := _place(tensor)):
            yield tensor.raw_data
            return
        if (held := self.memory.get(place["location"])) is not None:
            yield held.reshape(-1).view(np.uint8).data
            return
        path, left = self.source / place["location"], size_of(tensor)
        if path == self.data:
            self.file.flush()
        try:
            with path.open("rb") as file:
                file.seek(int(place.get("offset", 0)))
                while left and (chunk := file.read(min(left, CHUNK))):
                    left -= len(chunk)
                    yield chunk
        except FileNotFoundError:
            pass
        if left:
            raise ArtifactError(
                f"the weights of {tensor.name} should be in {path}, which ends {left} bytes too early or is not there: "
                "copy the graph with its data file, or write both anew"
            )


def size_of(tensor: onnx.TensorProto) -> int:
    """Bytes of a constant that is stored raw, here or elsewhere; 0 of one whose values are fields of their own."""
    if not (place := _place(tensor)):
        return len(tensor.raw_data)
    if "length" in place:
        return int(place["length"])
    dtype = need("onnx", extra="export").helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims) * dtype.itemsize


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say of a constant that its bytes lie in a file."""
    del tensor.external_data[:]
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))


def _publish(graph: Path, data: Path | None, path: Path) -> None:
    """Finished files take the place of those at `path`, so that no graph ever stands beside another one's weights."""
    old = path.with_name(f"{path.name}.data")
    if data or old.exists():
        path.unlink(missing_ok=True)
        sync(path.parent)
        if data:
            os.replace(data, old)
        else:
            old.unlink()
    os.replace(graph, path)
    sync(path.parent)


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where the bytes of a constant lie; nothing when they are in the tensor."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _bare(tensor: onnx.TensorProto, raw: bytes | None = None) -> onnx.TensorProto:
    """A constant of the same name, type and shape, with these bytes or none."""
    return type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)


def _but(message: Any, left_out: str) -> Any:
    """A message without one of its fields; what the field holds is not copied."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)
    return copy
