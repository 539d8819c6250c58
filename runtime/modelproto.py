"""An ONNX file read without the onnx package, and without its weights.

An ONNX file is one protobuf message `ModelProto`. On the wire it is a row of fields, each a varint key
`(number << 3) | type` and a value; a field that is not read (a weight, hundreds of megabytes) is stepped over by its
length.

    ModelProto   7 graph   14 metadata_props: StringStringEntryProto, 1 key, 2 value
    GraphProto   5 initializer: TensorProto
    TensorProto  9 raw_data   13 external_data: StringStringEntryProto   14 data_location (1: EXTERNAL)

ONNX lets a tensor's bytes lie in another file at an offset. That other file may as well be the model's own, so a graph
can be taken out of a file of any size with its weights left where they are, and runtimes map them from there.
Source: the protobuf encoding and onnx.proto.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

GRAPH, METADATA_PROPS = 7, 14
INITIALIZER = 5
RAW_DATA, EXTERNAL_DATA, DATA_LOCATION, EXTERNAL = 9, 13, 14, 1
LEAST = 1024  # bytes of a tensor that is worth leaving out: shapes and axes must stay in the graph
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Span(NamedTuple):
    """Where a field lies: it begins at `first`, its value at `start`, and what follows at `stop`."""

    number: int
    first: int
    start: int
    stop: int


Rewrite = Callable[[BinaryIO, Span], bytes]  # a field, its key included, in the place of one that was there


def read_metadata(path: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file as a dictionary.

    Raises: ValueError when the file is no protobuf message or is truncated; OSError when it cannot be read.
    """
    with path.open("rb") as file:
        spans = _spans(file, path.stat().st_size)
        entries = [_entry(_value(file, span)) for span in spans if span.number == METADATA_PROPS]
    return {entry.get(1, b"").decode(): entry.get(2, b"").decode() for entry in entries}


def read_weightless(path: Path) -> bytes:
    """An ONNX file as bytes of a model that refers to the weights of LEAST bytes and more by their place in the file.

    References are relative to the file's folder. Raises: as `read_metadata`.
    """

    def tensor(file: BinaryIO, span: Span) -> bytes:
        return _message(file, span, {RAW_DATA: raw})

    def raw(file: BinaryIO, span: Span) -> bytes:
        if (length := span.stop - span.start) < LEAST:
            return _bytes(file, span)
        entries = {"location": path.name, "offset": str(span.start), "length": str(length)}
        return b"".join(_field(EXTERNAL_DATA, _string(1, k) + _string(2, v)) for k, v in entries.items()) + bytes(
            (DATA_LOCATION << 3, EXTERNAL)
        )

    def graph(file: BinaryIO, span: Span) -> bytes:
        return _message(file, span, {INITIALIZER: tensor})

    with path.open("rb") as file:
        return _rewritten(file, 0, path.stat().st_size, {GRAPH: graph})


def varint(value: int) -> bytes:
    """A number >= 0 as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def head(number: int, length: int) -> bytes:
    """What stands before a length-delimited field of `length` bytes."""
    return varint(number << 3 | _BYTES) + varint(length)


def _field(number: int, value: bytes) -> bytes:
    return head(number, len(value)) + value


def _string(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _message(file: BinaryIO, span: Span, rewrites: Mapping[int, Rewrite]) -> bytes:
    return _field(span.number, _rewritten(file, span.start, span.stop, rewrites))


def _rewritten(file: BinaryIO, start: int, stop: int, rewrites: Mapping[int, Rewrite]) -> bytes:
    """The fields between two places, those of some numbers rewritten."""
    file.seek(start)
    return b"".join(rewrites.get(span.number, _bytes)(file, span) for span in _spans(file, stop))


def _spans(file: BinaryIO, stop: int) -> Iterator[Span]:
    """The fields from where the file stands up to `stop`."""
    place = file.tell()
    while place < stop:
        file.seek(place)
        key = _varint(file)
        wire, number = key & 7, key >> 3
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire in (_VARINT, _BYTES):
            value = _varint(file)
            length = value if wire == _BYTES else 0
        elif not length:
            length = stop  # groups and worse are in no ONNX file
        start, first, place = file.tell(), place, file.tell() + length
        if place > stop:
            raise ValueError("not an ONNX model, or a truncated one")
        yield Span(number, first, start, place)


def _bytes(file: BinaryIO, span: Span) -> bytes:
    """A field as it stands."""
    file.seek(span.first)
    return file.read(span.stop - span.first)


def _value(file: BinaryIO, span: Span) -> bytes:
    file.seek(span.start)
    return file.read(span.stop - span.start)


def _entry(raw: bytes) -> dict[int, bytes]:
    file = io.BytesIO(raw)
    return {span.number: _value(file, span) for span in _spans(file, len(raw))}


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
