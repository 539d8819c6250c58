from pathlib import Path

import pytest

from quaver.exporter.targets import (
    OPS,
    ORT_CPU,
    PRODUCT,
    TARGETS,
    TENSORRT_10,
    TENSORRT_11,
    TENSORRT_RTX,
    Way,
    detect_isa,
    find_target,
    find_way,
)
from quaver.runtime.errors import RecipeError


def test_number_formats_differ_by_target():
    formats = {name: find_way(target, "int8", "int8", "Conv").activation.name for name, target in TARGETS.items()}
    assert formats == {"ort-cpu": "uint8", "tensorrt-rtx": "int8", "tensorrt-10": "int8", "tensorrt-11": "int8"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_gpu_targets_are_symmetric_and_leave_biases_and_outputs_float(target):
    for way in target.ways.values():
        if target is not ORT_CPU:
            assert not way.bias and not way.coded_output
            assert all(fmt is None or fmt.symmetric for fmt in (way.weight, way.activation))


@pytest.mark.parametrize(
    ("target", "weight", "activation", "op", "pattern"),
    [
        (ORT_CPU, "int8", "int8", "Conv", "dequantize"),
        (ORT_CPU, "int4", "int8", "Conv", "cast-dequantize"),
        (ORT_CPU, "int4", "float", "MatMul", "cast-multiply"),
        (ORT_CPU, "int8", "int16", "Conv", "cast-multiply"),
        (ORT_CPU, "float16", "float", "Gemm", "cast"),
        (TENSORRT_RTX, "int4", "int8", "Conv", "dequantize-cast-dequantize"),
        (TENSORRT_RTX, "int4", "int8", "MatMul", "dequantize"),
        (TENSORRT_RTX, "int4", "float16", "MatMul", "dequantize"),
        (TENSORRT_11, "float8", "float8", "Conv", "dequantize"),
    ],
)
def test_a_pair_of_formats_has_the_pattern_that_its_kernel_reads(target, weight, activation, op, pattern):
    assert find_way(target, weight, activation, op).pattern == pattern


@pytest.mark.parametrize(
    ("target", "weight", "activation", "instead"),
    [
        (TENSORRT_RTX, "int8", "int16", "use weight = 'int8' with activation = 'float16'"),
        (TENSORRT_10, "int4", "int8", "use activation = 'float16', weight = 'int8', or the target tensorrt-rtx"),
        (TENSORRT_11, "int8", "float8", "set both to 'float8' or to 'int8'"),
        (ORT_CPU, "float8", "float8", "use 'int8'"),
        (ORT_CPU, "int8", "float16", "use 'float'"),
        (ORT_CPU, "float16", "float16", "use 'float'"),
    ],
)
def test_what_does_not_run_is_refused_with_the_alternative(target, weight, activation, instead):
    for op in OPS:
        why = find_way(target, weight, activation, op)
        assert isinstance(why, str) and instead in why


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_every_pair_of_formats_has_an_answer_on_every_target(target):
    for weight in ("float16", "int8", "int4", "float8"):
        for activation in ("float", "float16", "int16", "int8", "float8"):
            for op in OPS:
                found = find_way(target, weight, activation, op)
                assert isinstance(found, Way) or len(found) > 20


def test_attention_products_are_coded_on_gpus_alone():
    assert isinstance(find_way(TENSORRT_RTX, "int8", "int8", PRODUCT), Way)
    assert "export.attention" in find_way(ORT_CPU, "int8", "int8", PRODUCT)


def test_portable_weights_are_safe_on_any_cpu():
    assert find_target("ort-cpu").pair_limit == 128


@pytest.mark.parametrize(
    ("isa", "limit"), [("avx2", 128), ("avx-vnni", None), ("avx512-vnni", None), ("arm", None), ("portable", 128)]
)
def test_weights_are_limited_where_the_named_instruction_set_saturates(isa, limit):
    assert find_target("ort-cpu", isa=isa).pair_limit == limit


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse avx2", "avx2"),
        ("avx2 avx_vnni", "avx-vnni"),
        ("avx512f avx512_vnni avx_vnni", "avx512-vnni"),
        ("", "avx2"),
    ],
)
def test_the_instruction_set_follows_the_cpu_flags(tmp_path: Path, monkeypatch, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert detect_isa(tmp_path / "cpuinfo") == expected


def test_an_x86_that_says_nothing_is_taken_for_one_that_saturates(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert detect_isa(tmp_path / "none") == "avx2"


def test_arm_never_saturates(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert detect_isa() == "arm"
    assert find_target("ort-cpu", isa="native").pair_limit is None


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'tensorrt-rtx'"):
        find_target("tensorrt-rt")
    with pytest.raises(RecipeError, match="did you mean 'native'"):
        find_target("ort-cpu", isa="nativ")
