import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quaver.calib.quant import (
    FLOAT8,
    INT4,
    INT8,
    UINT8,
    Format,
    common_zero_point,
    dequantize,
    fake_quant,
    half_scale,
    pack_int4,
    quantize,
    round_float8,
    scale_zero_point,
    search_scale,
)
from quaver.runtime.errors import QuaverError

formats = st.builds(
    Format, bits=st.sampled_from([2, 4, 7, 8, 16]), signed=st.booleans(), symmetric=st.booleans(), kind=st.just("int")
)
reals = st.floats(-1e4, 1e4, width=32)


@given(formats, reals, reals, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_inside_the_range_the_error_is_at_most_half_a_step(fmt, a, b, positions):
    amin, amax = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero = scale_zero_point(amin, amax, fmt)
    x = np.array([amin + p * (amax - amin) for p in positions], np.float32)
    # a rounded zero point may push either end of the range half a step outside the codes
    slack = 1.0 if not fmt.symmetric else 0.5
    tolerance = scale * slack * (1 + 1e-3) + 1e-6 * max(abs(amin), abs(amax))
    assert np.all(np.abs(fake_quant(x, scale, zero, fmt) - x) <= tolerance)


@given(formats, reals, reals)
def test_zero_is_exact_in_every_format(fmt, a, b):
    scale, zero = scale_zero_point(min(a, b), max(a, b), fmt)
    assert scale > 0 and scale.dtype == np.float32
    assert fake_quant(np.zeros(3, np.float32), scale, zero, fmt).tolist() == [0, 0, 0]


@given(
    formats, hnp.arrays(np.int32, 12, elements=st.integers(-(2**15), 2**16)), st.floats(0.0009765625, 1024, width=32)
)
def test_codes_survive_dequantize_then_quantize(fmt, codes, scale):
    q = np.clip(codes, fmt.qmin, fmt.qmax).astype(fmt.dtype)
    zero = np.int32(fmt.middle)
    assert np.array_equal(quantize(dequantize(q, scale, zero), scale, zero, fmt), q)


def test_worked_example_of_the_asymmetric_format():
    scale, zero = scale_zero_point(-1.0, 1.55, UINT8)
    assert (float(scale), int(zero)) == (np.float32(0.01), 100)
    assert quantize(np.array([-1.0, 0.0, 1.55, 9.0, -9.0], np.float32), scale, zero, UINT8).tolist() == [
        0,
        100,
        255,
        255,
        0,
    ]


def test_ties_round_to_even_as_onnx_does():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert quantize(x, np.float32(1), np.int32(0), INT8).tolist() == [0, 2, 2, 0, -2]


def test_per_channel_scales_apply_along_their_axis_only():
    x = np.array([[1.0, 2.0], [10.0, 20.0]], np.float32)
    scale, zero = scale_zero_point(x.min(1), x.max(1), INT8)
    assert quantize(x, scale, zero, INT8, axis=0).tolist() == [[64, 127], [64, 127]]


def test_an_all_zero_range_codes_zero_with_scale_one():
    assert scale_zero_point(0.0, 0.0, INT8) == (1.0, 0)


@pytest.mark.parametrize(
    ("low", "high", "words"), [(np.nan, 1.0, "not finite"), (-np.inf, 1.0, "not finite"), (2.0, 1.0, "reversed")]
)
def test_a_broken_range_is_refused(low, high, words):
    with pytest.raises(QuaverError, match=words):
        scale_zero_point(low, high, INT8)


@given(hnp.arrays(np.float32, 64, elements=st.floats(-448, 448, width=32)))
def test_float8_grid_is_that_of_ml_dtypes(x):
    assert np.array_equal(round_float8(x), x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_float8_saturates_instead_of_becoming_nan():
    assert fake_quant(np.array([1e6, -1e6], np.float32), np.float32(1), np.int32(0), FLOAT8).tolist() == [448.0, -448.0]


@settings(max_examples=50)
@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=3, max_side=5), elements=st.integers(-8, 7)))
def test_int4_codes_are_read_by_onnx_as_they_were_in_half_the_bytes(codes):
    packed = pack_int4(codes)
    assert packed.size == (codes.size + 1) // 2
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, codes.shape, packed.tobytes(), raw=True)
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_int4_low_nibble_comes_first():
    assert pack_int4(np.array([1, -8, 7, -1, 3], np.int8)).tolist() == [0x81, 0xF7, 0x03]


def test_int4_codes_out_of_range_are_refused():
    with pytest.raises(QuaverError, match=r"\[-8, 7\]"):
        pack_int4(np.array([8]))


def test_format_names_and_limits():
    assert [(f.name, f.qmin, f.qmax) for f in (INT8, UINT8, INT4, FLOAT8)] == [
        ("int8", -128, 127),
        ("uint8", 0, 255),
        ("int4", -8, 7),
        ("float8", -448, 448),
    ]


def test_the_scale_of_least_error_is_the_best_of_those_tried():
    rows = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    widest = np.abs(rows).max(axis=1) / np.float32(INT4.qmax)
    found = search_scale(rows, widest, INT4, power=2.0)

    def error(scale):
        return np.square(fake_quant(rows, scale, np.int32(0), INT4, axis=0) - rows).sum(axis=1)

    tried = np.stack([error((widest * np.float32(1 - k / 50)).astype(np.float32)) for k in range(40)])
    assert np.allclose(error(found), tried.min(axis=0), rtol=1e-5)
    assert np.all(error(found) < 0.8 * error(widest))


limits = st.tuples(st.floats(-100, 0), st.floats(0, 100)).filter(lambda r: r[1] - r[0] > 1e-3)


@given(st.lists(limits, min_size=1, max_size=3))
def test_one_zero_point_serves_every_part(ranges):
    scales, zero = common_zero_point(ranges, UINT8)
    for scale, (low, high) in zip(scales.astype(float), ranges, strict=True):
        assert (0 - int(zero)) * scale <= low + 1e-5 * scale * 255 and (
            255 - int(zero)
        ) * scale >= high - 1e-5 * scale * 255


def test_parts_of_one_shape_lose_nothing_to_the_common_zero_point():
    scales, zero = common_zero_point([(-1.0, 3.0), (-10.0, 30.0)], UINT8)
    assert int(zero) == 64 and np.allclose(scales, [3 / 191, 30 / 191])


def test_symmetric_parts_share_zero_by_nature():
    scales, zero = common_zero_point([(-1.0, 3.0), (-40.0, 3.0)], INT8)
    assert int(zero) == 0 and np.allclose(scales, [3 / 127, 40 / 127])


@given(st.floats(1e-9, 6e4))
def test_a_float16_scale_is_the_next_one_up(scale):
    rounded = float(half_scale(scale))
    assert rounded >= np.float32(scale) and np.float16(rounded) == rounded
    assert float(np.nextafter(np.float16(rounded), np.float16(0))) < np.float32(scale)
