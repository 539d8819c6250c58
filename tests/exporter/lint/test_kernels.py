"""Predictions held against what onnxruntime and TensorRT-RTX really make of the same graphs."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

import onnx

from benchmarks.ort_coverage import optimized_layers
from quaver.exporter.lint import lint
from quaver.exporter.lint.kernels import compiled_type, disagreements
from quaver.exporter.plans.log import Compiled
from tests.exporter.lint import zoo
from tests.exporter.lint.zoo import add, attention, concat, conv, native, pair, product, through

RELU, MOVED = through("Relu"), through("Transpose", perm=[0, 1, 3, 2])
NEAREST = lambda g, e: g.node("Resize", e, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")  # noqa: E731

ORT = {
    "QLinearConv": {
        "plain": conv(),
        "bias in floats": conv(bias=True),
        "weight unsigned": conv(w="uint8"),
        "weight in floats": conv(w=""),
        "weight quantized in the graph": conv(pattern="float"),
        "weight per tensor": conv(per="tensor"),
        "signed": conv("int8", y="int8"),
        "opset 13": conv(opset=13),
        "int4 cast": conv(w="int4", pattern="cast"),
        "int4 unscaled": conv(w="int4", pattern="unscaled"),
        "depthwise": conv(group=16),
        "relu that Q clips": conv(after=RELU, out={"zero": 0}),
        "moves before": conv(before=MOVED),
        "moves after": conv(after=MOVED),
        "native": native("QLinearConv"),
    },
    "float Conv": {
        "float": conv("", "", ""),
        "weight alone": conv("", "int8", ""),
        "output float": conv(y=""),
        "input float": conv(""),
        "int4": conv(w="int4"),
        "16-bit activations": conv("uint16", y="uint16"),
        "float8": conv("float8", "float8", ""),
        "half": conv(half=True),
        "relu that Q does not clip": conv(after=RELU, out={"zero": 128}),
        "softmax before": conv(before=through("Softmax")),
        "resize before": conv(before=NEAREST),
        "output read twice": conv(after=lambda g, e: g.node("Mul", e, g.node("Sigmoid", e))),
        "weight reshaped": conv(before=MOVED, w="int8", y=""),
        "concat": concat(equal=True),
    },
    "MatMulIntegerToFloat": {
        "plain": product(),
        "three axes": product(rows=(2, 8)),
        "signed": product(x="int8"),
        "int4 cast": product(w="int4", pattern="cast"),
        "reshaped": product(before=through("Reshape", [8, 64])),
        "scalar added": product(after=add(1)),
        "batch unknown, bias added": product(rows=("batch", 8), after=add(32)),
        "activations": pair("uint8", "uint8"),
    },
    "QLinearMatMul": {
        "output coded": product(y="uint8"),
        "output coded, bias added behind": product(y="uint8", after=through("Identity")),
        "activations": pair("uint8", "uint8", "uint8"),
        "native": native("QLinearMatMul"),
    },
    "QGemm": {
        "plain": product("Gemm"),
        "coded bias": product("Gemm", bias="int32", attributes={"transB": 1}, axis=0),
        "float bias, coded output": product("Gemm", bias="float", y="uint8"),
        "native": native("QGemm"),
    },
    "MatMulNBits": {
        "int8": product(x=""),
        "int4": product(x="", w="int4"),
        "int4 blocks": product(x="", w="int4", axis=0, block=32),
        "uint4 blocks": product(x="", w="uint4", axis=0, block=16),
        "gemm": product("Gemm", x="", bias="float"),
        "bias added": product(x="", after=add(32)),
        "16-bit activations": product(x="uint16"),
        "half": product(x="", w="int4", axis=0, block=32, half=True),
    },
    "float MatMul": {
        "float": product(x="", w=""),
        "bias added to a coded product": product(after=add(32)),
        "bias added, three axes": product(rows=(2, 8), after=add(32)),
        "gemm with a float bias": product("Gemm", bias="float"),
        "gemm transposed, weight alone": product("Gemm", x="", attributes={"transB": 1}, axis=0),
        "beta": product("Gemm", bias="int32", attributes={"beta": 0.5}),
        "int4": product(w="int4"),
        "weight in floats": product(w=""),
        "blocks of 8": product(x="", w="int4", axis=0, block=8),
        "blocks along the output": product(x="", w="int4", axis=1, block=16),
        "weight alone, scales per input": product(x="", axis=0),
        "one operand": pair("uint8", ""),
        "activations": pair("", ""),
        "attention": attention(),
    },
    "float Einsum": {"coded": pair("uint8", "uint8", op="Einsum", equation="bhid,bhjd->bhij")},
    "DynamicQuantizeMatMul": {"dynamic": native("MatMulInteger")},
    "ConvInteger": {"dynamic": native("ConvInteger")},
}
RTX = {
    "INT8": {
        "conv": conv("int8", y=""),
        "conv, few channels": conv("int8", y="", channels=(4, 4), bias=True),
        "conv, output coded": conv("int8", y="int8"),
        "conv, half": conv("int8", y="", half=True),
        "conv, int4 unscaled": conv("int8", "int4", "", pattern="unscaled"),
        "conv, weight quantized in the graph": conv("int8", y="", pattern="float"),
        "conv, opset 13": conv("int8", y="", opset=13),
        "conv, maxpool before": conv("int8", y="", before=through("MaxPool", kernel_shape=[2, 2])),
        "conv, concat of one scale": concat(equal=True),
        "product": product(x="int8"),
        "product, bias": product(x="int8", rows=(2, 8), after=add(32)),
        "product, int4": product(x="int8", w="int4"),
        "gemm": product("Gemm", x="int8", bias="float", attributes={"transB": 1}, axis=0),
        "activations": pair("int8", "int8"),
        "einsum": pair("int8", "int8", op="Einsum", equation="bhid,bhjd->bhij"),
        "attention": attention("int8", half=True),
    },
    "FP8": {"conv": conv("float8", "float8", ""), "product": product(x="float8", w="float8")},
    "FP32": {
        "conv": conv("", "", ""),
        "conv, weight float": conv("int8", "", ""),
        "product": product(x="", w=""),
        "one operand": pair("int8", ""),
        "attention": attention(),
    },
    "FP32 after dequantize": {
        "conv, weight alone": conv("", "int8", ""),
        "conv, int4 alone": conv("", "int4", ""),
        "conv, scale per input": conv("int8", y="", axis=1),
        "conv, activations per channel": conv("int8", y="", how={"channels": 16}),
        "conv, relu before": conv("int8", y="", before=RELU),
        "conv, resize before": conv("int8", y="", before=NEAREST),
        "conv, concat of two scales": concat(equal=False),
        "int4 alone per channel": product(x="", w="int4"),
        "int4 alone in one block": product(x="", w="int4", axis=0, block=64),
        "int8 alone in blocks": product(x="", axis=0, block=32),
    },
    "FP16": {"attention": attention(half=True), "conv": conv("", "", "", half=True)},
    "FP16 x INT4": {"blocks": product(x="", w="int4", axis=0, block=32, half=True)},
    "FP16 x INT8": {"alone": product(x="", half=True)},
    "FP32 x INT8": {
        "scale per input": product(x="int8", axis=0),
        "activations per channel": product(x="int8", how={"channels": 64}),
        "weight float": product(x="int8", w=""),
    },
}
REFUSED = {
    "asymmetric activations": conv("uint8", y=""),
    "asymmetric weights": conv("int8", y="", zero=3),
    "16-bit activations": product(x="int16"),
    "uint8 weights": conv("int8", "uint8", "", zero=0),
    "uint4": product(x="", w="uint4", axis=0, block=32),
    "int4 to a convolution": conv("int8", "int4", ""),
    "int4 cast before DQ": conv("int8", "int4", "", pattern="cast"),
    "int4 in blocks": product(x="int8", w="int4", rows=(2, 8), axis=0, block=32),
    "int4 per tensor": product(x="int8", w="int4", per="tensor"),
    "coded bias": product("Gemm", x="int8", bias="int32"),
    "two formats": product(x="float8", w="int8"),
    "QLinearConv": native("QLinearConv"),
    "ConvInteger": native("ConvInteger"),
}


def cases(graphs):
    return [
        pytest.param(kind, make, id=f"{kind}: {name}") for kind, all in graphs.items() for name, make in all.items()
    ]


@pytest.mark.parametrize(("kind", "make"), cases(ORT))
def test_onnxruntime_runs_the_predicted_kernel(kind, make, tmp_path):
    path = save(make(), tmp_path)
    report = lint(path, "ort-cpu")
    found = optimized_layers(path)
    assert [(row.layer, row.kernel.type) for row in report.rows][:1] == [("layer", kind)]
    assert disagreements(report.predicted, found) == []
    assert not report.refused


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(conv(how={"channels": 16}), id="activations per channel"),
        pytest.param(conv(axis=1, channels=(32, 16)), id="weights per input channel"),
        pytest.param(product(axis=0, block=32), id="blocks"),
        pytest.param(conv(half=True, opset=13), id="half before opset 19"),
        pytest.param(conv("uint16", y="uint16", opset=13), id="16 bits before opset 21"),
    ],
)
def test_what_onnxruntime_fails_on_is_refused(make, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    path = save(make(), tmp_path)
    assert lint(path, "ort-cpu").refused
    with pytest.raises(Exception, match=r"invalid|INVALID|Per-column|not valid|was false|should be"):
        session = ort.InferenceSession(str(path), options)
        session.run(None, {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()})


def test_a_bias_code_of_another_scale_is_wrong_in_qgemm_and_refused(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    path = save(product("Gemm", bias="int32, wrong")(), tmp_path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {"x": np.zeros((8, 64), np.float32)}
    right = ort.InferenceSession(str(path), options).run(None, feed)[0]
    fused = ort.InferenceSession(str(path)).run(None, feed)[0]
    assert np.allclose(right, 50 * fused, rtol=1e-4)
    (why,) = lint(path, "ort-cpu").refused
    assert "input scale * weight scale" in why


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The compiled layers of every graph above, or the builder's refusal, by one process that builds them all."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("plans")
    graphs = {
        f"{kind}: {name}": make for kind, all in {**RTX, "refused": REFUSED}.items() for name, make in all.items()
    }
    for number, make in enumerate(graphs.values()):
        onnx.save(make(), folder / f"{number}.onnx")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder), str(len(graphs))], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("#")]
    return {name: (folder / f"{i}.onnx", answers[i]) for i, name in enumerate(graphs)}


BUILD = """
import json, sys
from pathlib import Path
from quaver.exporter.plans.planner import Request, build_plan
from quaver.runtime.errors import EngineError
folder = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    graph, plan = str(folder / f"{number}.onnx"), str(folder / "plan")
    request = Request("tensorrt_rtx", "trt-rtx", "", graph, plan, (1, 1, 1), capabilities=("SM89", "SM120"))
    try:
        print("#" + json.dumps(build_plan(request)["layers"]), flush=True)
    except EngineError as error:
        print("#" + json.dumps(str(error)), flush=True)
"""


@pytest.mark.slow
def test_tensorrt_compiles_the_predicted_kernels(plans):
    wrong, count = [], 0
    for kind, all in RTX.items():
        for name in all:
            path, answer = plans[f"{kind}: {name}"]
            report = lint(path, "tensorrt-rtx", capabilities=["SM89", "SM120"])
            assert report.rows[0].kernel.type == kind, name
            assert not report.refused, name
            assert isinstance(answer, list), (name, answer)
            found = disagreements(report.predicted, [Compiled(**layer) for layer in answer])
            wrong += [(name, *found)] if found else []
            count += len(report.rows)
    assert wrong == []
    assert count >= 40


@pytest.mark.slow
def test_tensorrt_refuses_what_is_predicted_to_be_refused(plans):
    built = [name for name in REFUSED if isinstance(plans[f"refused: {name}"][1], list)]
    passed = [name for name in REFUSED if not lint(plans[f"refused: {name}"][0], "tensorrt-rtx").refused]
    assert (built, passed) == ([], [])


def test_disagreements_name_layer_node_and_both_kernels():
    layers = [
        Compiled("a", "gemm", ("Int8",), ("Int8", "Float"), ("Float",), ("a",)),
        Compiled("b", "gemm", ("Half", "Half"), ("Float",), ("Half",), ("b",)),
        Compiled("b0", "kgen", (), ("Int4",), ("Half",), ("b",)),
        Compiled("c", "kgen", ("Half", "Half", "Half"), (), ("Half",), ("c", "d")),
        Compiled("e", "runtime_fusion", ("Half",), ("Half", "Int8"), ("Half",), ("e",)),
    ]
    kinds = {"a": "INT8", "b": "INT8", "c": "FP16", "d": "FP16", "e": "FP16 x INT8", "f": "INT8"}
    predicted = [(node, f"layer {node}", kind) for node, kind in kinds.items()]
    assert disagreements(predicted, layers) == [
        {"layer": "layer b", "node": "b", "predicted": "INT8", "compiled": "FP16"},
        {"layer": "layer f", "node": "f", "predicted": "INT8", "compiled": ""},
    ]
    assert disagreements([("b", "b", "FP16 after dequantize")], layers) == []
    assert compiled_type("zzz", layers) == ""
    assert asdict(layers[0])["kernel"] == "gemm"


def test_a_prediction_needs_no_names_no_shapes_and_no_module_paths(tmp_path):
    model = conv()()
    for node in model.graph.node:
        node.name = ""
    del model.graph.value_info[:]
    report = lint(save(model, tmp_path), "ort-cpu")
    assert [(row.layer, row.node, row.kernel.type) for row in report.rows] == [
        ("layer_out", "layer_out", "QLinearConv")
    ]
    assert report.rows[0].macs == 16 * 16 * 9 * 64
    found = optimized_layers(tmp_path / "m.onnx")
    assert disagreements(report.predicted, found) == []


def save(model, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


assert zoo  # the graphs live there
