"""Parity on a graph of another tool's making (no module names, everything coded) with defects planted in it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from quaver.calib.records import Records, save_records
from quaver.exporter.cli import main
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.modelfile import load_model, save_model
from quaver.exporter.parity import files, measure
from quaver.exporter.parity.difference import Tolerance
from quaver.exporter.parity.table import text
from quaver.exporter.parity.verdict import judge
from quaver.exporter.targets import ISAS, detect_isa
from quaver.runtime.artifact import Stamp, digest_file
from quaver.runtime.progress import quiet

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
helper, arrays = onnx.helper, onnx.numpy_helper
FLOAT = onnx.TensorProto.FLOAT
X = (2, 8, 8, 8)


def draw(rng, *shape):
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def float_network():
    """conv_a, relu, conv_b, silu, conv_c, the skip added, gemm."""
    rng = np.random.default_rng(0)
    weights = {
        "wa": draw(rng, 16, 8, 3, 3),
        "ba": draw(rng, 16),
        "wb": draw(rng, 16, 16, 3, 3),
        "bb": draw(rng, 16),
        "wc": draw(rng, 16, 16, 1, 1),
        "bc": draw(rng, 16),
        "wd": draw(rng, 10, 1024),
        "bd": draw(rng, 10),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"], "conv_a", pads=[1] * 4),
        node("Relu", ["a"], ["ra"], "relu"),
        node("Conv", ["ra", "wb", "bb"], ["b"], "conv_b", pads=[1] * 4),
        node("Sigmoid", ["b"], ["sb"], "sigmoid"),
        node("Mul", ["b", "sb"], ["silu"], "mul"),
        node("Conv", ["silu", "wc", "bc"], ["c"], "conv_c"),
        node("Add", ["c", "ra"], ["s"], "add"),
        node("Flatten", ["s"], ["flat"], "flatten"),
        node("Gemm", ["flat", "wd", "bd"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, ["n", *X[1:]])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 10])],
        [arrays.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantize(folder, model, *, reduce_range):
    """unit.float.onnx, q.onnx by onnxruntime's own quantizer, and inputs in.npz, in `folder`."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    rng = np.random.default_rng(1)
    feeds = [{"x": np.abs(rng.standard_normal(X)).astype(np.float32)} for _ in range(3)]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(feeds)

        def get_next(self):
            return next(self.left, None)

    onnx.save(model, folder / "f.onnx")
    quantization.quantize_static(
        folder / "f.onnx",
        folder / "q.onnx",
        Reader(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )
    np.savez(folder / "in.npz", **feeds[0])
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with a float graph, its quantized form, and inputs. Shared: read only."""
    return quantize(tmp_path_factory.mktemp("clean"), float_network(), reduce_range=True)


@pytest.fixture
def folder(clean, tmp_path):
    """A copy of `clean` to plant defects into."""
    return Path(shutil.copytree(clean, tmp_path / "copy"))


def constants(folder, **changes):
    """Replace constants of q.onnx by functions of their values."""
    model = onnx.load(folder / "q.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            value = arrays.to_array(tensor)
            tensor.CopyFrom(arrays.from_array(np.asarray(changes[tensor.name](value), value.dtype), tensor.name))
    onnx.save(model, folder / "q.onnx")


def look(folder, **given):
    feeds = dict(np.load(folder / "in.npz"))
    return measure(folder / "q.onnx", folder / "f.onnx", [feeds], progress=quiet(), **given)


def found(report):
    return [(finding.kind, finding.layer) for finding in judge(report, Tolerance())]


def test_a_clean_graph_passes_with_every_integer_kernel_looked_at(clean, capsys):
    q, f, inputs = (str(clean / name) for name in ("q.onnx", "f.onnx", "in.npz"))
    assert main(["parity", q, "--float", f, "--inputs", inputs, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "good    every edge is where rounding puts it" in out
    assert "3 QLinearConv" in out
    assert "engine  10 edges, fed alike; codes move by" in out


def test_the_cost_of_a_layer_alone_is_no_more_than_what_has_piled_up(clean):
    rows = {row.edge: row for row in look(clean).rows}
    conv = rows["c_QuantizeLinear_Output"]
    assert conv.kernel == "QLinearConv"
    assert conv.engine_local.largest <= 1
    assert conv.cost.snr < conv.cost_local.snr - 1
    rounding = rows["x_QuantizeLinear_Output"].cost_local
    assert rounding.moved == 0  # nothing of the calibration inputs is clipped
    assert rounding.noise / rounding.count == pytest.approx(step_of(clean, "x") ** 2 / 12, rel=0.05)


def step_of(folder, edge):
    model = onnx.load(folder / "q.onnx")
    return float(next(arrays.to_array(t) for t in model.graph.initializer if t.name == f"{edge}_scale"))


def test_groups_of_any_size_say_the_same(clean):
    whole, parts = look(clean), look(clean, memory=0.05)
    assert whole.rows == parts.rows


def test_a_wrong_weight_scale_is_found_by_the_weight_and_named(folder):
    constants(folder, wb_scale=lambda scale: scale * 1.04)
    report = look(folder)
    assert found(report)[0] == ("weight", "Conv conv_b")
    off = {str(w.edge): w.steps for w in report.weights}
    assert off["b"] == pytest.approx(64 * 0.04 / 1.04, rel=0.3)  # reduce_range: codes up to 64
    assert len(found(report)) == 1


def test_a_dequantizer_that_reads_another_zero_point_is_named(folder):
    model = onnx.load(folder / "q.onnx")
    for node in model.graph.node:
        if node.name == "silu_DequantizeLinear":
            node.input[2] = "sb_zero_point"
    onnx.save(model, folder / "q.onnx")
    kind, layer = found(look(folder))[0]
    assert (kind, layer) == ("grid", "DequantizeLinear silu_DequantizeLinear")


def test_zero_points_swapped_between_edges_cost_the_first_of_them(folder):
    zeros = {t.name: arrays.to_array(t) for t in onnx.load(folder / "q.onnx").graph.initializer}
    constants(folder, b_zero_point=lambda _: zeros["sb_zero_point"], sb_zero_point=lambda _: zeros["b_zero_point"])
    report = look(folder)
    assert found(report)[0] == ("cost", "Conv conv_b")
    assert "of its codes over half a step off" in judge(report, Tolerance())[0].why
    assert "exact" not in dict(found(report))  # the graph is bad, and read alike by all


def test_nan_is_found_where_it_begins(folder):
    constants(folder, wb_scale=lambda scale: np.where(np.arange(len(scale)) == 3, np.nan, scale))
    findings = judge(look(folder), Tolerance())
    assert {finding.layer for finding in findings[:2]} == {"Conv conv_b"}
    assert "weight" in {finding.kind for finding in findings}


def test_json_has_no_number_that_json_does_not_know(folder, capsys):
    constants(folder, wb_scale=lambda scale: np.where(np.arange(len(scale)) == 3, np.nan, scale))
    arguments = [str(folder / "q.onnx"), "--float", str(folder / "f.onnx"), "--inputs", str(folder / "in.npz")]
    assert main(["parity", *arguments, "--quiet", "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {weight["edge"]: weight["steps"] for weight in found["weights"]}["b"] is None


def test_nan_of_a_float_layer_is_counted(folder):
    model = float_network()
    for tensor in model.graph.initializer:
        if tensor.name == "bc":
            tensor.CopyFrom(arrays.from_array(np.full(16, np.nan, np.float32), "bc"))
    onnx.save(model, folder / "q.onnx")  # as a graph in which nothing is coded
    findings = judge(look(folder), Tolerance())
    assert (findings[0].kind, findings[0].layer) == ("not finite", "Conv conv_c")
    assert "2048 of the exact run" in findings[0].why


@pytest.mark.skipif(not ISAS[detect_isa()], reason="this CPU's 8-bit products do not saturate")
def test_a_saturating_convolution_is_the_engines_and_no_other_layer_is_blamed(tmp_path, capsys):
    model = float_network()
    for tensor in model.graph.initializer:
        if tensor.name == "wb":  # neighbours of one sign and full size: 255 (127 + 127) leaves 16 bits
            tensor.CopyFrom(arrays.from_array(np.full((16, 16, 3, 3), 0.05, np.float32), "wb"))
    folder = quantize(tmp_path, model, reduce_range=False)
    report = look(folder)
    findings = judge(report, Tolerance())
    assert (findings[0].kind, findings[0].layer) == ("engine", "Conv conv_b")
    assert "QLinearConv" in findings[0].why
    assert {finding.layer for finding in findings} <= {"Conv conv_b", "Conv conv_c", "Gemm gemm"}  # what multiplies
    assert {row.edge: row.engine for row in report.rows}["s_QuantizeLinear_Output"].snr < 60  # the add only passes on
    assert report.rows[-1].exact_local.snr > 100
    arguments = ["parity", str(folder / "q.onnx"), "--inputs", str(folder / "in.npz"), "--quiet", "--json"]
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert json.loads(out)["findings"][0]["kind"] == "engine"
    assert "first bad layer: Conv conv_b (engine)" in error


def test_weights_outside_the_file_are_read_from_where_they_are(clean, folder):
    for name in ("q.onnx", "f.onnx"):
        model = onnx.load(folder / name)
        onnx.save(model, folder / name, save_as_external_data=True, location=f"{name}.data", size_threshold=64)
    assert look(folder).rows == look(clean).rows


def test_a_graph_of_two_names_and_a_link_to_it_are_the_graph(clean, folder):
    for name in ("q.onnx", "f.onnx"):
        (folder / f"{name} again").hardlink_to(folder / name)
    assert look(folder).rows == look(clean).rows
    for name in ("q.onnx", "f.onnx"):
        (folder / name).unlink()
        (folder / name).symlink_to(clean / name)
    assert look(folder).rows == look(clean).rows


def test_without_a_float_graph_the_engine_is_still_judged(clean):
    report = measure(clean / "q.onnx", None, [dict(np.load(clean / "in.npz"))], progress=quiet())
    assert not judge(report, Tolerance())
    assert all(row.cost is None and row.engine_local is not None for row in report.rows)
    assert "float:" not in text(report, [])


def test_an_edge_of_another_shape_in_the_float_graph_is_left_out(folder):
    model = onnx.load(folder / "f.onnx")
    for node in model.graph.node:  # the same network, what was called silu moved
        node.input[:] = ["silu_before" if name == "silu" else name for name in node.input]
        node.output[:] = ["silu_before" if name == "silu" else name for name in node.output]
    model.graph.node.insert(5, helper.make_node("Flatten", ["silu_before"], ["silu"], "other"))
    onnx.save(model, folder / "f.onnx")
    report = look(folder)
    assert not judge(report, Tolerance())
    rows = {row.edge: row for row in report.rows}
    assert rows["silu_QuantizeLinear_Output"].cost is None
    assert rows["c_QuantizeLinear_Output"].cost_local.snr > 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q.onnx", "--float", "f.onnx"], r"nothing to feed .*q.onnx: --inputs FILE.npz with arrays x"),
        (["q.onnx", "--float", "other.onnx", "--inputs", "in.npz"], r"do not belong together: outputs are y .* and z "),
        (["q.onnx", "--float", "none.onnx", "--inputs", "in.npz"], r"none.onnx does not exist: name the float graph"),
        (["q.onnx", "--inputs", "wrong.npz"], r"wrong.npz: x is float32 \[2, 3\], the graph takes x float32 \[\?, 8"),
        (["q.onnx", "--inputs", "empty.npz"], r"empty.npz has no x, which the graph takes"),
        (["q.onnx", "--inputs", "f.onnx"], r"cannot be read as inputs"),
        (["q.onnx", "--target", "ort-cpu"], r"is one graph already: leave --target ort-cpu out"),
        (
            ["q.onnx", "--inputs", "in.npz", "--tolerance", "stepz=2"],
            r"unknown tolerance 'stepz'; did you mean 'steps'",
        ),
        (["q.onnx", "--inputs", "in.npz", "--tolerance", "steps=x"], r"'x' is not a number; write steps=1.5"),
        (["q.onnx", "--inputs", "in.npz", "--tolerance", "steps=nan"], r"'nan' is not a number; write steps=1.5"),
        (["q.onnx", "--float", ".", "--inputs", "in.npz"], r"\. is not a file: name the float graph that q.onnx was"),
        (["none", "--inputs", "in.npz"], r"none does not exist: name a bundle or a quantized .onnx file"),
        ([".", "--inputs", "in.npz"], r"holds no quantized graph: name a bundle"),
        (["text.onnx", "--inputs", "in.npz"], r"text.onnx is no ONNX file.*: copy or export it again"),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(folder, monkeypatch, capsys, arguments, message):
    other = onnx.load(folder / "f.onnx")
    other.graph.node[-1].output[0] = other.graph.output[0].name = "z"
    onnx.save(other, folder / "other.onnx")
    np.savez(folder / "wrong.npz", x=np.zeros((2, 3), np.float32))
    np.savez(folder / "empty.npz")
    (folder / "text.onnx").write_text("not a model")
    monkeypatch.chdir(folder)
    assert main(["parity", *arguments, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


@pytest.fixture
def exported(bundle, feeds):
    """A bundle exported for both targets, with records."""
    export(bundle, ExportSettings(), stamp=Stamp("export"), progress=quiet())
    rows, tags = {"class_labels": feeds["class_labels"]}, np.zeros(3, int)
    none = {"class_labels": np.zeros((1, feeds["class_labels"].shape[1]), np.float32)}
    records = Records(feeds["sample"], feeds["timestep"], rows, none, tags, tags - 1, tags, 2.0, ("p",), ())
    save_records(bundle.samples, records, Stamp("samples"))
    return bundle


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx"])
def test_what_quaver_exports_is_where_rounding_puts_it(exported, capsys, target):
    assert main(["parity", str(exported.root), "--target", target, "--records", "2", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] == 2
    assert len(found["weights"]) > 10
    assert all(weight["steps"] < 0.51 for weight in found["weights"])
    if target == "ort-cpu":
        looked = [edge for edge in found["edges"] if edge["engine_local"]]
        assert len(looked) > 0.8 * len(found["edges"])
        assert any(edge["kernel"] == "QLinearConv" and edge["module"] for edge in looked)
    else:  # onnxruntime does not deploy it
        assert not any(edge["engine_local"] for edge in found["edges"])
    assert sum(edge["cost_local"] is not None for edge in found["edges"]) > 0.8 * len(found["edges"])


def test_a_float_graph_is_read_once_to_see_whether_it_is_the_one(exported, monkeypatch):
    read = []
    monkeypatch.setattr(files, "digest_file", lambda path: read.append(path) or digest_file(path))
    assert files.find_files(exported.root) == (exported.qdq("ort-cpu"), exported.float_unet)
    stamp = Stamp("export", inputs={exported.float_unet.name: digest_file(exported.float_unet)})
    save_model(load_model(exported.qdq("ort-cpu")), exported.qdq("ort-cpu"), stamp)
    assert files.find_files(exported.root) == (exported.qdq("ort-cpu"), exported.float_unet)
    assert read == [exported.float_unet]


def test_a_graph_made_from_another_float_graph_is_refused(exported, capsys):
    stamp = Stamp("export", inputs={exported.float_unet.name: "sha256:other"})
    save_model(load_model(exported.qdq("ort-cpu")), exported.qdq("ort-cpu"), stamp)
    assert main(["parity", str(exported.root), "--quiet"]) == 1
    assert "was made from another unet.float.onnx than lies there: run 'quaver export' again" in capsys.readouterr().err
    assert main(["parity", str(exported.root), "--target", "tensorrt", "--quiet"]) == 1
    assert "has no graph for 'tensorrt': use one of ort-cpu, tensorrt-rtx" in capsys.readouterr().err
    assert main(["parity", str(exported.root), "--target", "tensorrt-rtx", "--records", "0", "--quiet"]) == 1
    assert "--records 0: at least 1 is needed" in capsys.readouterr().err
