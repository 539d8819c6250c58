from __future__ import annotations

from pathlib import Path

from quaver.runtime.measure import cost


def test_a_file_is_as_large_as_itself_and_its_external_data(tmp_path: Path):
    (tmp_path / "unet.onnx").write_bytes(b"0123456789")
    assert cost.file_bytes(tmp_path / "unet.onnx") == 10
    (tmp_path / "unet.onnx.data").write_bytes(b"0123456")
    (tmp_path / "other.onnx.data").write_bytes(b"0123")
    assert cost.file_bytes(tmp_path / "unet.onnx") == 17
