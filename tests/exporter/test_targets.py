from pathlib import Path

import pytest

from quaver.exporter.targets import TARGETS, find_target, saturates
from quaver.runtime.errors import RecipeError


def test_number_formats_differ_by_target():
    formats = {name: target.activations["int8"].name for name, target in TARGETS.items()}
    assert formats == {"ort-cpu": "uint8", "tensorrt-rtx": "int8"}


def test_portable_weights_are_safe_on_any_cpu():
    assert find_target("ort-cpu").pair_limit == 128


@pytest.mark.parametrize(("flags", "expected"), [("sse avx2", True), ("avx2 avx_vnni", False), ("avx512_vnni", False)])
def test_saturation_follows_the_cpu_flags(tmp_path: Path, monkeypatch, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert saturates(tmp_path / "cpuinfo") is expected


def test_arm_never_saturates(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturates()
    assert find_target("ort-cpu", isa="native").pair_limit is None


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'tensorrt-rtx'"):
        find_target("tensorrt")
    with pytest.raises(RecipeError, match="did you mean 'native'"):
        find_target("ort-cpu", isa="nativ")
