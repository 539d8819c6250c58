import pytest

from quaver.runtime.modelproto import head, read_metadata, read_weightless, varint


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


def tensor(name: bytes, raw: bytes) -> bytes:
    body = b"\x10\x01" + head(8, len(name)) + name + head(9, len(raw)) + raw  # data_type FLOAT, name, raw_data
    return head(5, len(body)) + body


def test_numbers_of_any_size_are_written_seven_bits_a_byte():
    assert [varint(n) for n in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]


def test_large_weights_become_places_in_the_file_and_all_else_stays(tmp_path):
    raw, node = bytes(range(256)) * 8, head(1, 3) + b"abc"
    graph = node + tensor(b"w", raw) + tensor(b"b", b"few.") + head(2, 1) + b"g"
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x0a" + head(7, len(graph)) + graph + entry(b"a", b"1"))
    light = read_weightless(path)
    assert raw not in light and node in light and tensor(b"b", b"few.") in light and light.endswith(entry(b"a", b"1"))
    offset = path.read_bytes().index(raw)
    for key, value in {"location": "m.onnx", "offset": str(offset), "length": "2048"}.items():
        said = head(1, len(key)) + key.encode() + head(2, len(value)) + value.encode()
        assert head(13, len(said)) + said in light


def test_a_truncated_graph_is_refused(tmp_path):
    graph = tensor(b"w", bytes(2048))
    (tmp_path / "m.onnx").write_bytes(head(7, len(graph)) + graph[:-1])
    with pytest.raises(ValueError, match="truncated"):
        read_weightless(tmp_path / "m.onnx")
