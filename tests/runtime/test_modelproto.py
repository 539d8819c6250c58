import pytest

from quaver.runtime.modelproto import read_metadata


def entry(key: bytes, value: bytes) -> bytes:
    body = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(body)]) + body  # field 14, length-delimited


def test_entries_are_found_behind_fields_of_every_wire_type(tmp_path):
    before = b"\x08\x96\x01" + b"\x15abcd" + b"\x11abcdefgh" + b"\x3a\x03xyz"  # varint, 32 bit, 64 bit, bytes
    (tmp_path / "m.onnx").write_bytes(before + entry(b"a", b"1") + b"\x08\x01" + entry("é".encode(), b""))
    assert read_metadata(tmp_path / "m.onnx") == {"a": "1", "é": ""}


@pytest.mark.parametrize("content", [b"\x72\x05ab", b"\x73", b"\x72", b"\x80" * 11])
def test_what_is_no_message_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="not an ONNX model, or a truncated one"):
        read_metadata(tmp_path / "m.onnx")
