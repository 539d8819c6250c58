import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quaver.calib.quant import INT4, INT8, dequantize
from quaver.exporter.weights import code_blocks, code_weight, pair_sums

weights = hnp.arrays(
    np.float32,
    st.sampled_from([(3, 4), (2, 3, 3, 3), (4, 5, 1, 1)]),
    elements=st.floats(-8, 8, width=32, allow_subnormal=False),
)


@given(weights)
def test_codes_are_within_half_a_step_of_the_weight(weight):
    coded = code_weight(weight, INT8, axis=0)
    step = coded.scale.reshape(-1, *[1] * (weight.ndim - 1))
    error = np.abs(dequantize(coded.codes, coded.scale, np.int32(0), axis=0) - weight)
    assert np.all(error <= step * 0.5001)


@settings(max_examples=50)
@given(weights)
def test_no_pair_of_neighbours_can_saturate_sixteen_bits(weight):
    codes = code_weight(weight, INT8, axis=0, pair_limit=128).codes.astype(int)
    for order in (codes.reshape(len(codes), -1), np.moveaxis(codes, 1, -1).reshape(len(codes), -1)):
        for first, second in zip(order[:, 0::2].T, order[:, 1::2].T, strict=False):
            assert (255 * (first.clip(0) + second.clip(0))).max() <= 32767
            assert (255 * (first.clip(None, 0) + second.clip(None, 0))).min() >= -32768


def test_pairs_of_opposite_sign_keep_all_eight_bits():
    weight = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    assert code_weight(weight, INT8, axis=0, pair_limit=128).codes.tolist() == [[127, -127, 127, -127]]


def test_only_the_channel_with_a_bad_pair_loses_precision():
    weight = np.array([[1.0, 1.0], [1.0, 0.0]], np.float32)
    assert code_weight(weight, INT8, axis=0, pair_limit=128).codes.tolist() == [[64, 64], [127, 0]]


def test_four_bit_codes_never_need_widening():
    weight = np.ones((1, 2), np.float32)
    assert code_weight(weight, INT4, axis=0, pair_limit=128).codes.tolist() == [[7, 7]]


def test_pair_sums_walk_a_window_by_channel_and_by_position():
    codes = np.zeros((1, 2, 1, 2), np.int8)
    codes[0, :, 0, 0] = 100  # neighbours only when channels come first
    assert pair_sums(codes).tolist() == [200]


def test_output_channels_of_a_product_lie_along_its_second_axis():
    weight = np.array([[1.0, 10.0], [2.0, 20.0]], np.float32)
    coded = code_weight(weight, INT8, axis=1)
    assert coded.codes.tolist() == [[64, 64], [127, 127]]
    assert np.allclose(coded.scale, [2 / 127, 20 / 127])


def test_bias_is_coded_on_the_scale_of_the_integer_sum():
    coded = code_weight(np.ones((1, 1), np.float32), INT8, axis=0, bias=np.array([0.5], np.float32), input_scale=0.01)
    assert coded.bias.dtype == np.int32
    assert coded.bias.tolist() == [round(0.5 / (0.01 / 127))]


def test_a_large_bias_on_small_weights_widens_the_scale_instead_of_overflowing():
    bias = np.array([1e6], np.float32)
    coded = code_weight(np.full((1, 1), 1e-6, np.float32), INT8, axis=0, bias=bias, input_scale=1e-3)
    assert abs(int(coded.bias[0])) <= 2**30
    assert coded.bias[0] * coded.bias_scale[0] == pytest.approx(1e6)


def test_a_channel_without_weights_keeps_its_bias():
    weight, bias = np.array([[0.0], [2.0]], np.float32), np.array([0.3, 0.3], np.float32)
    coded = code_weight(weight, INT8, axis=0, bias=bias, input_scale=0.01)
    assert coded.codes.tolist() == [[0], [127]]
    assert np.allclose(coded.bias * coded.bias_scale, bias, atol=1e-4)


@given(hnp.arrays(np.float32, (3, 32, 2), elements=st.floats(-8, 8, width=32, allow_subnormal=False)), st.booleans())
def test_codes_in_blocks_are_within_half_a_step_of_their_own_block(weight, half):
    coded = code_blocks(weight, INT8, axis=0, block=16, half=half)
    assert coded.scale.shape == (3, 2, 2) and coded.codes.shape == weight.shape
    step = np.repeat(coded.scale, 16, axis=1)
    assert np.all(np.abs(coded.codes * step - weight) <= step * 0.5001)


@given(weights)
def test_four_bit_scales_clip_only_where_that_leaves_less_error(weight):
    coded, rows = code_weight(weight, INT4, axis=0), weight.reshape(len(weight), -1)
    whole = np.abs(rows).max(axis=1) / np.float32(7)
    whole = np.where(whole > 0, whole, np.float32(1))[:, None]
    nearest = np.square(np.round(rows / whole) * whole - rows).sum(axis=1)
    found = np.square(coded.codes.reshape(rows.shape) * coded.scale[:, None] - rows).sum(axis=1)
    assert np.all(found <= nearest * 1.0001 + 1e-9)


def test_a_block_lies_along_the_inputs_of_a_product():
    weight = np.ones((32, 2), np.float32)
    weight[16:, 1] = 7
    coded = code_blocks(weight, INT4, axis=1, block=16)
    assert np.allclose(coded.scale, [[1 / 7, 1 / 7], [1 / 7, 1]]) and (coded.codes == 7).all()


def test_blocks_of_four_bits_are_nearer_than_channels_of_four_bits():
    weight = np.random.default_rng(0).standard_t(4, (256, 64)).astype(np.float32)
    by_channel, by_block = code_weight(weight, INT4, axis=1), code_blocks(weight, INT4, axis=1, block=32)
    channel = dequantize(by_channel.codes, by_channel.scale, np.int32(0), axis=1)
    assert (
        np.square(by_block.codes * np.repeat(by_block.scale, 32, 0) - weight).sum()
        < np.square(channel - weight).sum() / 2
    )


@given(weights)
def test_scales_for_float16_edges_are_float16_numbers(weight):
    coded = code_weight(weight, INT8, axis=0, half=True)
    assert np.array_equal(coded.scale, coded.scale.astype(np.float16).astype(np.float32)) and (coded.scale > 0).all()
    step = coded.scale.reshape(-1, *[1] * (weight.ndim - 1))
    assert np.all(np.abs(dequantize(coded.codes, coded.scale, np.int32(0), axis=0) - weight) <= step * 0.5001)


@pytest.mark.parametrize("kind", ["normal", "student"])
def test_limited_pairs_cost_less_than_seven_bits(kind):
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((64, 64, 3, 3)) if kind == "normal" else draw.standard_t(4, (64, 64, 3, 3))
    weight = weight.astype(np.float32)
    limited = code_weight(weight, INT8, axis=0, pair_limit=128)
    error = np.square(dequantize(limited.codes, limited.scale, np.int32(0), axis=0) - weight).sum()
    coarse = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 63
    seven = np.square(np.round(weight / coarse) * coarse - weight).sum()
    assert error < 0.55 * seven
