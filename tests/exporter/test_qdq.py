import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.quant import (
    INT4,
    INT8,
    UINT8,
    UINT16,
    common_zero_point,
    dequantize,
    fake_quant,
    quantize,
    scale_zero_point,
)
from quaver.calib.rules import Rule
from quaver.exporter.placement import Placement, place
from quaver.exporter.qdq import insert
from quaver.exporter.targets import ORT_CPU, TENSORRT_RTX
from quaver.exporter.topology import read_topology
from quaver.exporter.weights import code_blocks, code_weight
from quaver.runtime.errors import ArtifactError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def graph(op, x, weight, bias=None, **attributes):
    """x -> op -> y, one layer."""
    names = ["x", "w"] + (["b"] if bias is not None else [])
    weights = [numpy_helper.from_array(weight, "w")]
    weights += [numpy_helper.from_array(bias, "b")] if bias is not None else []
    made = helper.make_graph(
        [helper.make_node(op, names, ["y"], "layer", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model, x, *, optimized=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def quantized(model, x, target, *, weight="int8", activation="int8", block=0, **options):
    ranges = {"x": (float(x.min()), float(x.max()))}
    y = run(model, x)
    ranges["y"] = (float(y.min()), float(y.max()))
    found = layers(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rules, topology = [Rule("*", weight, activation, block=block)], read_topology(model)
    sites = place(found, rules, target, ranges, topology=topology, options=Placement(**options))
    return insert(copy, found, sites, ranges, target), ranges


@pytest.fixture
def conv():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 16, 6, 6), np.float32)
    weight, bias = draw.standard_normal((16, 16, 3, 3), np.float32), draw.standard_normal(16, np.float32)
    return x, weight, bias, graph("Conv", x, weight, bias, pads=[1, 1, 1, 1])


def convolve(x, weight):
    """Integer convolution with zero padding 1, exact in int64."""
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weight.astype(np.int64))


def test_a_convolution_in_onnxruntime_is_exact_integer_arithmetic(conv, tmp_path):
    x, weight, bias, model = conv
    made, ranges = quantized(model, x, ORT_CPU)
    answer = run(made, x, optimized=tmp_path / "optimized.onnx")
    (sx, zx), (sy, zy) = (scale_zero_point(*ranges[e], UINT8) for e in "xy")
    coded = code_weight(weight, INT8, axis=0, bias=bias, input_scale=float(sx), pair_limit=128)
    sums = convolve(quantize(x, sx, zx, UINT8).astype(np.int64) - zx, coded.codes) + coded.bias.reshape(1, -1, 1, 1)
    real = sums * (float(sx) * coded.scale.astype(np.float64)).reshape(1, -1, 1, 1)
    codes = np.clip(np.round(real / sy) + zy, 0, 255)
    steps = np.abs(answer / sy + zy - codes)
    assert steps.max() < 1.01 and (steps > 0.5).mean() < 1e-3  # a tie may round the other way, nothing else differs
    assert "QLinearConv" in {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}


def test_the_worst_case_does_not_saturate():
    x = np.full((1, 64, 4, 4), 2.0, np.float32)
    x[0, 0, 0, 0] = 0.0
    weight = np.ones((16, 64, 3, 3), np.float32)
    model = graph("Conv", x, weight, np.zeros(16, np.float32), pads=[1, 1, 1, 1])
    made, ranges = quantized(model, x, ORT_CPU)
    step = float(scale_zero_point(*ranges["y"], UINT8)[0])
    assert np.abs(run(made, x) - run(model, x)).max() <= step


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_equals_fake_quant_and_keeps_its_float_output(op, tmp_path):
    draw = np.random.default_rng(1)
    x, weight = draw.standard_normal((8, 32), np.float32), draw.standard_normal((32, 16), np.float32)
    bias = draw.standard_normal(16, np.float32) if op == "Gemm" else None
    model = graph(op, x, weight, bias)
    made, ranges = quantized(model, x, ORT_CPU)
    scale, zero = scale_zero_point(*ranges["x"], UINT8)
    coded = code_weight(weight, INT8, axis=1, pair_limit=128)
    expected = fake_quant(x, scale, zero, UINT8) @ dequantize(coded.codes, coded.scale, np.int32(0), axis=1)
    expected = expected + (0 if bias is None else bias)
    assert np.allclose(run(made, x, optimized=tmp_path / "o.onnx"), expected, atol=2e-3)
    fused = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert fused & {"QGemm", "MatMulIntegerToFloat"}


def test_tensorrt_graph_is_symmetric_float_biased_and_equal_to_fake_quant(conv):
    x, weight, bias, model = conv
    made, ranges = quantized(model, x, TENSORRT_RTX)
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    zeros = [v for name, v in constants.items() if name.startswith("zero.")]
    assert zeros and all(v.dtype == np.int8 and not v.any() for v in zeros)
    conv_node = next(n for n in made.graph.node if n.op_type == "Conv")
    assert constants[conv_node.input[2]].dtype == np.float32 and conv_node.output[0] == "y"
    coded = code_weight(weight, INT8, axis=0)
    float_model = graph("Conv", x, dequantize(coded.codes, coded.scale, np.int32(0), axis=0), bias, pads=[1, 1, 1, 1])
    scale, zero = scale_zero_point(*ranges["x"], INT8)
    assert np.allclose(run(made, x), run(float_model, fake_quant(x, scale, zero, INT8)), atol=1e-3)


def test_weights_are_stored_once_at_their_real_width(conv):
    _, weight, _, _ = conv
    for fmt, width in (("int8", 1.0), ("int4", 0.5)):
        made, _ = quantized(conv[3], conv[0], ORT_CPU, weight=fmt)
        codes = next(t for t in made.graph.initializer if t.name == "layer.weight.codes")
        assert len(codes.raw_data) == weight.size * width
        assert not any(t.name == "w" for t in made.graph.initializer)


def test_four_bit_convolution_runs_in_the_integer_kernel_of_onnxruntime(conv, tmp_path):
    made, _ = quantized(conv[3], conv[0], ORT_CPU, weight="int4")
    run(made, conv[0], optimized=tmp_path / "o.onnx")
    assert "QLinearConv" in {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}


def test_four_bit_patterns_of_tensorrt(conv):
    made, _ = quantized(conv[3], conv[0], TENSORRT_RTX, weight="int4")
    assert [n.op_type for n in made.graph.node if "weight" in n.name] == [
        "DequantizeLinear",
        "Cast",
        "DequantizeLinear",
    ]
    x, weight = np.ones((4, 32), np.float32), np.ones((32, 16), np.float32)
    made, _ = quantized(graph("MatMul", x, weight), x, TENSORRT_RTX, weight="int4")
    assert [n.op_type for n in made.graph.node if "weight" in n.name] == ["DequantizeLinear"]


def test_float8_graph_is_valid_onnx(conv):
    made, _ = quantized(conv[3], conv[0], TENSORRT_RTX, weight="float8", activation="float8")
    onnx.checker.check_model(made)
    kinds = {t.data_type for t in made.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds and onnx.TensorProto.INT8 not in kinds


def test_two_layers_that_read_one_edge_share_its_quantizer():
    x, weight = np.random.default_rng(0).standard_normal((4, 32), np.float32), np.eye(32, dtype=np.float32)
    model = graph("MatMul", x, weight)
    model.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["second"], "second"))
    model.graph.output.append(helper.make_tensor_value_info("second", 1, x.shape))
    found, ranges = layers(model), {"x": (-3.0, 3.0)}
    insert(model, found, place(found, [Rule("*")], ORT_CPU, ranges), ranges, ORT_CPU)
    assert [n.op_type for n in model.graph.node].count("QuantizeLinear") == 1
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm"])
@pytest.mark.parametrize(("weight", "block"), [("int8", 0), ("int4", 0), ("int4", 16), ("int8", 16)])
def test_weights_alone_are_multiplied_out_at_load_and_leave_a_float_layer(op, weight, block, tmp_path):
    draw, fmt, axis = np.random.default_rng(0), INT8 if weight == "int8" else INT4, 0 if op == "Conv" else 1
    shape = (16, 32, 3, 3) if op == "Conv" else (32, 16)
    value, x = draw.standard_normal(shape, np.float32), draw.standard_normal((2, 32, 5, 5) if op == "Conv" else (8, 32))
    x, model = x.astype(np.float32), graph(op, x, value)
    made, _ = quantized(model, x, ORT_CPU, weight=weight, activation="float", block=block)
    coded = code_blocks(value, fmt, axis=axis, block=16) if block else code_weight(value, fmt, axis=axis)
    if block:
        real = coded.codes * np.repeat(coded.scale, 16, axis=1 - axis)
    else:
        real = dequantize(coded.codes, coded.scale, np.int32(0), axis=axis)
    assert np.allclose(run(made, x, optimized=tmp_path / "o.onnx"), run(graph(op, x, real), x), atol=1e-4)
    ops = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert op in ops and not ops & {"Cast", "Mul", "DequantizeLinear", "MatMulNBits"}


def test_float16_weights_take_half_the_space_and_run_in_float32(conv):
    x, weight, bias, model = conv
    made, _ = quantized(model, x, ORT_CPU, weight="float16", activation="float")
    stored = next(t for t in made.graph.initializer if t.name == "layer.weight.float16")
    assert len(stored.raw_data) == 2 * weight.size
    rounded = weight.astype(np.float16).astype(np.float32)
    assert np.allclose(run(made, x), run(graph("Conv", x, rounded, bias, pads=[1, 1, 1, 1]), x), atol=1e-4)


def test_sixteen_bit_activations_are_as_exact_as_their_codes():
    draw = np.random.default_rng(2)
    x, weight = draw.standard_normal((8, 32), np.float32), draw.standard_normal((32, 16), np.float32)
    made, ranges = quantized(graph("MatMul", x, weight), x, ORT_CPU, activation="int16")
    scale, zero = scale_zero_point(*ranges["x"], UINT16)
    coded = code_weight(weight, INT8, axis=1)
    expected = fake_quant(x, scale, zero, UINT16) @ dequantize(coded.codes, coded.scale, np.int32(0), axis=1)
    assert np.allclose(run(made, x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "fmt"), [(ORT_CPU, UINT8), (TENSORRT_RTX, INT8)], ids=lambda v: getattr(v, "name", "")
)
def test_split_halves_of_a_concat_each_use_their_whole_grid(target, fmt, tmp_path):
    draw = np.random.default_rng(3)
    x, weight = draw.uniform(-1, 1, (2, 16, 4, 4)).astype(np.float32), draw.standard_normal((16, 32, 1, 1), np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["b"], "b"),
        helper.make_node("Concat", ["x", "b"], ["c"], "c", axis=1),
        helper.make_node("Conv", ["c", "w"], ["y"], "layer"),
    ]
    tensors = [numpy_helper.from_array(np.float32(50), "large"), numpy_helper.from_array(weight, "w")]
    value = [helper.make_tensor_value_info("x", 1, x.shape)]
    made = helper.make_graph(nodes, "g", value, [helper.make_tensor_value_info("y", 1, None)], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    plain, found = run(model, x), layers(model)
    ranges = {"x": (-1.0, 1.0), "b": (-50.0, 50.0), "c": (-50.0, 50.0), "y": (float(plain.min()), float(plain.max()))}
    answers = {}
    for concat in ("shared", "split"):
        sites = place(
            found, [Rule("*")], target, ranges, topology=read_topology(model), options=Placement(concat=concat)
        )
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        answers[concat] = run(insert(copy, found, sites, ranges, target), x, optimized=tmp_path / f"{concat}.onnx")
    scales, zero = common_zero_point([ranges["x"], ranges["b"]], fmt)
    parts = [fake_quant(part, s, zero, fmt) for part, s in zip((x, 50 * x), scales, strict=True)]
    ratio = np.repeat(scales / scales.max(), 16).reshape(1, -1, 1, 1)
    coded = code_weight(weight * ratio, INT8, axis=0, pair_limit=target.pair_limit)
    real = dequantize(coded.codes, coded.scale, np.int32(0), axis=0) / ratio
    expected = run(graph("Conv", np.concatenate(parts, 1), real), np.concatenate(parts, 1))
    step = float(scale_zero_point(*ranges["y"], UINT8)[0]) if target is ORT_CPU else 1e-3
    assert np.abs(answers["split"] - expected).max() <= step
    if target is ORT_CPU:
        ops = [n.op_type for n in onnx.load(tmp_path / "split.onnx").graph.node]
        assert "QLinearConv" in ops and ops.count("QuantizeLinear") == 2


def test_two_formats_of_one_edge_stand_behind_whatever_writes_it():
    x, weight = np.ones((1, 16, 4, 4), np.float32), np.ones((16, 16, 1, 1), np.float32)
    model = graph("Conv", x, weight)
    model.graph.node.append(helper.make_node("Conv", ["y", "w"], ["z"], "second"))
    model.graph.output[0].name = "z"
    found, ranges = layers(model), {"x": (0.0, 1.0), "y": (0.0, 16.0), "z": (0.0, 256.0)}
    sites = place(found, [Rule("layer"), Rule("second", "int8", "int16")], ORT_CPU, ranges)
    made = insert(model, found, sites, ranges, ORT_CPU)
    assert np.allclose(run(made, x), 256, rtol=0.02)


def test_weights_that_are_not_finite_name_their_layer():
    x, weight = np.ones((4, 32), np.float32), np.ones((32, 16), np.float32)
    weight[3, 4] = np.nan
    with pytest.raises(ArtifactError, match="1 of 512 weights of layer layer are not finite"):
        quantized(graph("MatMul", x, weight), x, TENSORRT_RTX)


def test_channels_without_weights_are_reported():
    x, weight = np.ones((4, 32), np.float32), np.ones((32, 16), np.float32)
    weight[:, 2:5] = 0
    model, said = graph("MatMul", x, weight), []
    found, ranges = layers(model), {"x": (0.0, 1.0)}
    insert(model, found, place(found, [Rule("*")], TENSORRT_RTX, ranges), ranges, TENSORRT_RTX, say=said.append)
    assert said == ["output channels without weights: 3 of layer"]
