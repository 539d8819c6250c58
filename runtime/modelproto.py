"""The metadata of an ONNX file, read without the onnx package.

An ONNX file is one protobuf message `ModelProto`. On the wire it is a row of fields, each a varint key
`(number << 3) | type` and a value; `metadata_props` is field 14, a `StringStringEntryProto` with key = field 1 and
value = field 2. Every other field (the graph, hundreds of megabytes) is stepped over by its length.
Source: the protobuf encoding and onnx.proto (ModelProto, StringStringEntryProto).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

METADATA_PROPS = 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_metadata(path: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file as a dictionary.

    Raises: ValueError when the file is no protobuf message or is truncated; OSError when it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        entries = [dict(_fields(io.BytesIO(raw), len(raw))) for _, raw in _fields(file, size, only=METADATA_PROPS)]
    return {entry.get(1, b"").decode(): entry.get(2, b"").decode() for entry in entries}


def _fields(file: BinaryIO, size: int, *, only: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message of `size` bytes, all of them or those numbered `only`."""
    while file.tell() < size:
        key = _varint(file)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _varint(file)
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire) or (_varint(file) if wire == _BYTES else -1)
        if length < 0 or file.tell() + length > size:
            raise ValueError("not an ONNX model, or a truncated one")
        if wire == _BYTES and only in (None, number):
            yield number, file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("not an ONNX model, or a truncated one")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("not an ONNX model, or a truncated one")
