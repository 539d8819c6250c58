import json
import math

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

import onnx
from onnx import helper

from benchmarks.ort_coverage import optimized_layers
from quaver.exporter.cli import main
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.lint import as_json, describe, lint, verdict
from quaver.exporter.lint.kernels import disagreements
from quaver.runtime.artifact import Stamp
from quaver.runtime.errors import QuaverError
from quaver.runtime.modelproto import GRAPH, INITIALIZER, RAW_DATA, head
from quaver.runtime.progress import quiet
from tests.exporter.lint.zoo import Graph, attention, conv, product

CONV_MACS = 16 * 16 * 9 * 64


def save(model, folder, **how):
    path = folder / "m.onnx"
    onnx.save(model, path, **how)
    return path


def network():
    """conv, SiLU, conv with a sum around it, attention's linear layers and their products: one of everything."""
    g = Graph()
    x = g.input(1, 16, 8, 8)
    first = g.node("Conv", x, g.floats(16, 16, 3, 3), g.floats(16), name="first", pads=[1] * 4)
    soft = g.node("Mul", first, g.node("Sigmoid", first))
    edge = g.node("Add", x, g.node("Conv", soft, g.floats(16, 16, 3, 3), g.floats(16), name="second", pads=[1] * 4))
    rows = g.node("Transpose", g.node("Reshape", edge, g.constant(np.array([1, 16, 64]))), perm=[0, 2, 1])
    q, k, v = (g.node("MatMul", rows, g.floats(16, 16), name=name) for name in ("q", "k", "v"))
    scores = g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 1]), name="scores")
    mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), v, name="mixed")
    out = g.node("Add", g.node("MatMul", mixed, g.floats(16, 16), name="out"), g.floats(16))
    flat = g.node(
        "Gemm", g.node("ReduceMean", out, g.constant(np.array([1])), keepdims=0), g.floats(16, 8), g.floats(8)
    )
    return g.model(flat)


class Samples:
    """Calibration data as onnxruntime's quantizers ask for it."""

    def __init__(self):
        draw = np.random.default_rng(1)
        self.rows = iter([{"x": draw.standard_normal((1, 16, 8, 8), np.float32)} for _ in range(2)])

    def get_next(self):
        return next(self.rows, None)


@pytest.mark.parametrize("how", ["qdq", "qdq per channel", "qdq signed", "operators", "dynamic"])
def test_files_of_onnxruntimes_quantizers_get_the_predicted_kernels(how, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    source, made = save(network(), tmp_path), tmp_path / "quantized.onnx"
    if how == "dynamic":
        quantization.quantize_dynamic(source, made, weight_type=quantization.QuantType.QInt8)
    else:
        form = quantization.QuantFormat.QOperator if how == "operators" else quantization.QuantFormat.QDQ
        kind = quantization.QuantType.QInt8 if "signed" in how else quantization.QuantType.QUInt8
        quantization.quantize_static(
            source,
            made,
            Samples(),
            quant_format=form,
            per_channel="channel" in how,
            activation_type=kind,
            weight_type=quantization.QuantType.QInt8,
        )
    report = lint(made, "ort-cpu")
    found = optimized_layers(made)
    assert disagreements(report.predicted, found) == []
    assert report.share(lambda row: row.kernel.multiplies == "INT8") > (
        0.5 if "signed" in how or how == "dynamic" else 0.9
    )
    assert lint(made, "tensorrt-rtx").refused


def total(report):
    return sum(row.macs for row in report.rows)


@pytest.mark.parametrize("preset", ["8w8a", "4w8a", "8w8a-attention"])
def test_an_exported_graph_gets_the_predicted_kernels(preset, bundle):
    settings = ExportSettings(preset=preset, targets=("ort-cpu",))
    path = export(bundle, settings, stamp=Stamp("export"), progress=quiet())
    report = lint(path, "ort-cpu")
    found = optimized_layers(path)
    assert len(report.rows) == 92  # of 16 products of attention, 8 operators
    assert disagreements(report.predicted, found) == []
    before = lint(bundle.float_unet, "ort-cpu")
    assert (len(before.rows), total(report)) == (100, total(before))
    assert (report.refused, report.warnings) == ((), ())
    assert (report.share(lambda row: row.stored == "int4") > 0.8) == (preset == "4w8a")


def test_shares_are_of_multiply_accumulates(tmp_path):
    g = Graph()
    x = g.coded(g.input(1, 16, 8, 8), "int8")
    one = g.node("Conv", x, g.weight("int8", (16, 16, 3, 3)), name="one", pads=[1] * 4)
    two = g.node("Conv", one, g.floats(48, 16, 3, 3), name="two", pads=[1] * 4)
    report = lint(save(g.model(two), tmp_path), "tensorrt-rtx", capabilities=["SM89"])
    assert [row.macs for row in report.rows] == [CONV_MACS, 3 * CONV_MACS]
    shares = json.loads(as_json(report))["shares"]
    assert shares == pytest.approx({"INT8": 0.25, "FP8": 0, "16 bit": 0, "32 bit": 0.75, "INT4 stored": 0})
    assert "25.0% INT8" in verdict(report) and "SM89 runs it" in verdict(report)


def test_multiply_accumulates_of_every_operator(tmp_path):
    macs = {row.layer: row.macs for row in lint(save(network(), tmp_path), "ort-cpu").rows}
    rows = {"q": 64 * 16 * 16, "scores": 64 * 64 * 16, "mixed": 64 * 64 * 16, "first": CONV_MACS}
    assert {name: macs[name] for name in rows} == rows
    assert sum(macs.values()) == 2 * CONV_MACS + 4 * 64 * 16 * 16 + 2 * 64 * 64 * 16 + 16 * 8
    g = Graph()
    edge = g.node("Einsum", g.input(2, 4, 8, 16), g.input(2, 4, 6, 16, name="y"), equation="bhid,bhjd->bhij")
    (row,) = lint(save(g.model(edge), tmp_path), "ort-cpu").rows
    assert row.macs == math.prod((2, 4, 8, 6, 16))


@pytest.mark.parametrize(
    ("make", "target", "why"),
    [
        (conv(""), "ort-cpu", "no Q/DQ on its input"),
        (conv(y=""), "ort-cpu", "its output is not quantized (read by an output of the graph)"),
        (conv(w="int4"), "ort-cpu", "put Cast(int8) before its DequantizeLinear"),
        (conv(half=True), "ort-cpu", "scales of its input are float16"),
        (conv("uint16", y="uint16"), "ort-cpu", "its input has uint16 codes"),
        (product(w=""), "ort-cpu", "no DQ on its weight"),
        (product(after=lambda g, e: g.node("Add", e, g.floats(32))), "ort-cpu", "merged with the Add behind"),
        (conv("int8", "", ""), "tensorrt-rtx", "no Q/DQ on its weight"),
        (conv("int8", y="", how={"channels": 16}), "tensorrt-rtx", "its input has a scale per channel"),
        (conv("int8", y="", axis=1), "tensorrt-rtx", "its weight has a scale per input channel"),
        (attention("int8"), "tensorrt-rtx", ""),
        (
            conv("int8", y="", before=lambda g, e: g.node("Softmax", e)),
            "tensorrt-rtx",
            "no Q/DQ on its input: Softmax stands between it and the Q/DQ",
        ),
    ],
)
def test_the_reason_for_a_float_kernel_is_told(make, target, why, tmp_path):
    report = lint(save(make(), tmp_path), target)
    assert why in report.rows[0].kernel.why
    assert bool(why) == bool(report.rows[0].kernel.why)
    assert report.rows[0].kernel.why in describe(report)


@pytest.mark.parametrize(
    ("make", "target", "capabilities", "why"),
    [
        (conv("uint8", y=""), "tensorrt-rtx", [], "asymmetric zero point"),
        (product(x="int16"), "tensorrt-10", [], "TensorRT has no int16"),
        (conv("uint8", y="", how={"zero": 0}), "tensorrt-11", [], "TensorRT wants int8"),
        (product(x="int8", w="int4", axis=0, block=32), "tensorrt-rtx", [], "use one scale per output channel"),
        (product(x="int8", w="int4"), "tensorrt-10", [], "TensorRT's INT4 is for weights alone"),
        (conv("int8", "int4", ""), "tensorrt-rtx", [], "DequantizeLinear(scale 1) -> Cast(int8)"),
        (conv("float8", "float8", ""), "tensorrt-rtx", ["SM86", "SM89"], "SM86 has no float8"),
        (product(x="int8"), "tensorrt-rtx", ["SM75"], "SM75 has no float32 products"),
        (conv(how={"channels": 16}), "ort-cpu", [], "activations take one scale"),
        (conv(axis=1), "ort-cpu", [], "quantize along that axis"),
        (conv("uint16", y="uint16", opset=13), "ort-cpu", [], "uint16 in Q/DQ needs opset 21, this is 13"),
        (conv(half=True, opset=13), "ort-cpu", [], "float16 in Q/DQ needs opset 19, this is 13"),
    ],
)
def test_what_a_target_refuses_is_told_with_the_fix(make, target, capabilities, why, tmp_path):
    report = lint(save(make(), tmp_path), target, capabilities=capabilities)
    assert why in "\n".join(report.refused)
    assert "REFUSED" in verdict(report)


def test_turing_takes_int8_convolutions_of_a_float32_graph_to_float(tmp_path):
    path = save(conv("int8", y="")(), tmp_path)
    row = lint(path, "tensorrt-rtx", capabilities=["SM75", "SM89"]).rows[0]
    assert row.kernel.type == "FP32 after dequantize" and "SM75" in row.kernel.why
    assert lint(path, "tensorrt-rtx", capabilities=["SM89"]).rows[0].kernel.type == "INT8"


def test_weights_that_can_saturate_are_warned_of_where_the_cpu_can(tmp_path):
    model = product(per="tensor")()
    codes = next(t for t in model.graph.initializer if t.dims == [64, 32])
    numbers = np.full((64, 32), 60, np.int8)
    numbers[10:12, 3] = 120, 9
    codes.CopyFrom(onnx.numpy_helper.from_array(numbers, codes.name))
    (warning,) = lint(save(model, tmp_path), "ort-cpu").warnings
    assert "1 of 1 layers can saturate" in warning and "sum to 129 in layer, above 128" in warning
    assert lint(tmp_path / "m.onnx", "ort-cpu", isa="avx512-vnni").warnings == ()
    assert lint(save(product(w="int4", pattern="cast")(), tmp_path), "ort-cpu").warnings == ()


def test_small_layers_and_unsigned_codes_are_warned_of(tmp_path):
    few = lint(save(conv("int8", y="", channels=(4, 4))(), tmp_path), "tensorrt-rtx")
    assert few.warnings == ("layer: 4 channels: INT8 gains nothing below 16",)
    unsigned = lint(save(conv("uint8", y="", how={"zero": 0})(), tmp_path), "tensorrt-rtx")
    assert "codes above 127 do not fit" in unsigned.warnings[0] and not unsigned.refused


def test_weights_outside_the_file_are_not_read_but_found_missing(tmp_path):
    model = conv(w="int8")()
    path = save(model, tmp_path, save_as_external_data=True, location="w.bin", size_threshold=100)
    assert lint(path, "ort-cpu").rows[0].kernel.type == "QLinearConv"
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(
        QuaverError, match=r"m\.onnx: the file 'w\.bin' with the weight .* is missing: copy it beside it"
    ):
        lint(path, "ort-cpu")
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(QuaverError, match="truncated or another model's, copy it again"):
        lint(path, "ort-cpu")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(QuaverError, match="outside the model's own folder"):
        lint(path, "ort-cpu")


def test_a_file_above_2_gb_is_read_without_its_weights_and_refused(tmp_path):
    model = product(x="", w="")()
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.dims[:] = [1 << 15, 1 << 14]
    start = weight.SerializeToString() + head(RAW_DATA, 1 << 31)
    model.graph.ClearField("initializer")
    graph = model.graph.SerializeToString() + head(INITIALIZER, len(start) + (1 << 31)) + start
    model.ClearField("graph")
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.write(model.SerializeToString() + head(GRAPH, len(graph) + (1 << 31)) + graph)
        file.truncate(file.tell() + (1 << 31))  # a hole: no disk is used
    report = lint(path, "ort-cpu")
    assert report.refused == (
        "m.onnx is 2.1 GB with its weights inside, and protobuf ends at 2 GB: save it with external data",
    )
    assert report.rows[0].kernel.type == "float MatMul"


@pytest.mark.parametrize("content", [b"", b"\x08\x0a\x12", b"not an onnx file at all", None])
def test_a_file_that_is_no_model_is_one_line(content, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(conv()().SerializeToString()[:-500] if content is None else content)
    assert main(["lint", str(path), "--target", "ort-cpu"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "m.onnx" in said.err and "export" in said.err


def test_unknown_names_come_with_the_nearest(tmp_path):
    path = save(conv()(), tmp_path)
    with pytest.raises(QuaverError, match="did you mean 'tensorrt-rtx'"):
        lint(path, "tensorrt-rxt")
    with pytest.raises(QuaverError, match="did you mean 'SM89'"):
        lint(path, "tensorrt-rtx", capabilities=["SM_89"])
    with pytest.raises(QuaverError, match=r"does not exist: name an \.onnx file"):
        lint(tmp_path / "none.onnx", "ort-cpu")


def test_the_verb_prints_a_line_a_layer_and_fails_when_the_target_would(tmp_path, capsys):
    path = save(conv()(), tmp_path)
    assert main(["lint", str(path), "--target", "ort-cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["100.0%", "QLinearConv", "layer"]
    assert lines[-1] == (
        "m.onnx: MACs 100.0% INT8, 0.0% FP8, 0.0% 16 bit, 0.0% 32 bit; 0.0% by weights stored in 4 bits; "
        "1 QLinearConv; ort-cpu runs it"
    )
    assert main(["lint", str(path), "--target", "tensorrt-rtx", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["refused"] and said.err.startswith("quaver: tensorrt-rtx refuses m.onnx:")


def test_functions_and_constant_nodes_are_looked_into(tmp_path):
    model = conv()()
    held = {t.name: t for t in model.graph.initializer}
    del model.graph.initializer[:]
    nodes = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in held.items()]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (row,) = lint(save(model, tmp_path), "ort-cpu").rows
    assert (row.kernel.type, row.macs, row.stored) == ("QLinearConv", CONV_MACS, "int8")


def test_a_deep_graph_is_no_recursion(tmp_path):
    g = Graph()
    edge = g.input(1, 64)
    for _ in range(2000):
        edge = g.node("Relu", edge)
    report = lint(save(g.model(g.node("MatMul", edge, g.floats(64, 32))), tmp_path), "ort-cpu")
    assert report.rows[0].kernel.why == "no Q/DQ on its input"
