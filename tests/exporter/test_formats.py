"""Every format on every target, on a U-Net of one level with attention, a time embedding and a skip."""

import numpy as np
import pytest

from quaver.calib.graph import activation_edges, layers
from quaver.calib.rules import preset
from quaver.exporter.passes import half
from quaver.exporter.placement import Placement, place
from quaver.exporter.plans.log import Compiled
from quaver.exporter.qdq import insert
from quaver.exporter.targets import TARGETS
from quaver.exporter.topology import read_topology
from quaver.runtime.errors import RecipeError

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
C = 32  # channels
CHAIN = (  # module or node, operator, inputs (a number: a constant of that shape), output
    ("time.cast", "Cast", ["timestep"], "t0", {"to": 1}),
    ("time.column", "Unsqueeze", ["t0", np.array([1])], "t1", {}),
    ("time.phase", "Mul", ["t1", np.linspace(0.01, 1, C, dtype=np.float32)[None]], "t2", {}),
    ("time.sin", "Sin", ["t2"], "t3", {}),
    ("time_embedding.linear_1", "Gemm", ["t3", (C, C), (C,)], "t4", {}),
    ("down.time_emb_proj", "Gemm", ["t4", (C, C), (C,)], "t5", {}),
    ("down.time", "Unsqueeze", ["t5", np.array([2, 3])], "t6", {}),
    ("conv_in", "Conv", ["sample", (C, C, 3, 3), (C,)], "h0", {"pads": [1] * 4}),
    ("down.norm1", "InstanceNormalization", ["h0", (C,), (C,)], "d0", {}),
    ("down.gate1", "Sigmoid", ["d0"], "d1", {}),
    ("down.silu1", "Mul", ["d0", "d1"], "d2", {}),
    ("down.conv1", "Conv", ["d2", (C, C, 3, 3), (C,)], "d3", {"pads": [1] * 4}),
    ("down.shift", "Add", ["d3", "t6"], "d4", {}),
    ("down.conv2", "Conv", ["d4", (C, C, 3, 3), (C,)], "d5", {"pads": [1] * 4}),
    ("down.sum", "Add", ["d5", "h0"], "d6", {}),
    ("mid.flat", "Reshape", ["d6", np.array([0, C, 64])], "a0", {}),
    ("mid.tokens", "Transpose", ["a0"], "a1", {"perm": [0, 2, 1]}),
    ("mid.norm", "LayerNormalization", ["a1", (C,), (C,)], "a2", {"axis": -1}),
    ("mid.attn1.to_q", "MatMul", ["a2", (C, C)], "q", {}),
    ("mid.attn1.to_k", "MatMul", ["a2", (C, C)], "k0", {}),
    ("mid.attn1.to_v", "MatMul", ["a2", (C, C)], "v", {}),
    ("mid.attn1.turn", "Transpose", ["k0"], "k", {"perm": [0, 2, 1]}),
    ("mid.attn1.scores", "MatMul", ["q", "k"], "s", {}),
    ("mid.attn1.softmax", "Softmax", ["s"], "p", {"axis": -1}),
    ("mid.attn1.values", "MatMul", ["p", "v"], "a3", {}),
    ("mid.attn1.to_out.0", "MatMul", ["a3", (C, C)], "a4", {}),
    ("mid.attn1.bias", "Add", ["a4", (C,)], "a5", {}),
    ("mid.sum1", "Add", ["a5", "a1"], "a6", {}),
    ("mid.ff.net.0.proj", "MatMul", ["a6", (C, 2 * C)], "f0", {}),
    ("mid.ff.gelu", "Gelu", ["f0"], "f1", {}),
    ("mid.ff.net.2", "MatMul", ["f1", (2 * C, C)], "f2", {}),
    ("mid.sum2", "Add", ["f2", "a6"], "f3", {}),
    ("mid.untoken", "Transpose", ["f3"], "f4", {"perm": [0, 2, 1]}),
    ("mid.image", "Reshape", ["f4", np.array([0, C, 8, 8])], "m", {}),
    ("up.skip", "Concat", ["m", "h0"], "u0", {"axis": 1}),
    ("up.conv_shortcut", "Conv", ["u0", (C, 2 * C, 1, 1), (C,)], "u1", {}),
    ("up.norm1", "InstanceNormalization", ["u0", (2 * C,), (2 * C,)], "u2", {}),
    ("up.conv1", "Conv", ["u2", (C, 2 * C, 3, 3), (C,)], "u3", {"pads": [1] * 4}),
    ("up.sum", "Add", ["u3", "u1"], "u4", {}),
    ("conv_out", "Conv", ["u4", (C, C, 3, 3), (C,)], "out", {"pads": [1] * 4}),
)
INTEGERS = ("8w8a", "4w8a", "8w8a-attention", "4w8a-attention", "d2-4w8a")
EVERYTHING = (*INTEGERS, "8w16a", "8w", "8w-attention", "4w", "4w-attention", "fp8", "fp8-attention", "16w16a")
# output error against float32: of 8 and 4 bits, of E4M3 (3 mantissa bits), of float16
BOUNDS = {"8": 0.07, "4": 0.35, "d": 0.35, "f": 0.1, "1": 0.005}


def unet():
    draw, nodes, tensors = np.random.default_rng(0), [], []
    for name, op, inputs, output, attributes in CHAIN:
        edges = []
        for index, value in enumerate(inputs):
            if not isinstance(value, str):
                if isinstance(value, tuple):
                    fan = np.prod(value[1:]) if op == "Conv" else value[0]
                    norm = 1.0 if "Norm" in op and index == 1 else 0.0
                    value = norm + draw.standard_normal(value) / np.sqrt(fan if len(value) > 1 else 100)
                    value = value.astype(np.float32)
                tensors.append(numpy_helper.from_array(value, f"{name}.{index}"))
            edges.append(value if isinstance(value, str) else f"{name}.{index}")
        nodes.append(helper.make_node(op, edges, [output], name, **attributes))
    made = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info("sample", 1, ["batch", C, 8, 8]),
            helper.make_tensor_value_info("timestep", 7, ["batch"]),
        ],
        [helper.make_tensor_value_info("out", 1, ["batch", C, 8, 8])],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def run(model, names=("out",)):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    feeds = {
        "sample": np.random.default_rng(1).standard_normal((3, C, 8, 8)).astype(np.float32),
        "timestep": np.array([1, 500, 999]),
    }
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in ("out", *feeds))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [n for n in names if n not in feeds]
    return feeds | dict(zip(wanted, session.run(wanted, feeds), strict=True))


@pytest.fixture(scope="module")
def floats():
    """The float graph, the range of every edge, and the answer."""
    values = run(unet(), tuple(activation_edges(unet())))
    return {edge: (float(v.min()), float(v.max())) for edge, v in values.items()}, values["out"]


def exported(name, target, ranges, **options):
    """The quantized graph and its sites."""
    model, read = unet(), numpy_helper.to_array
    found, placement = layers(model), Placement(**options)
    sites = place(found, preset(name), target, ranges, topology=read_topology(model), options=placement)
    chosen = half.choose(model, sites, target, ranges, whole=placement.half and target.half, read=read)
    sites = half.settle(sites, chosen, model)
    insert(model, found, sites, ranges, target)
    half.run(model, chosen, read=read, keep=lambda tensor: tensor)
    onnx.checker.check_model(model, full_check=True)
    return model, sites


def error(model, answer):
    return np.linalg.norm(run(model)["out"] - answer) / np.linalg.norm(answer)


REFUSED = {("ort-cpu", name) for name in ("fp8", "fp8-attention", "16w16a")}
REFUSED |= {(t, "8w16a") for t in TARGETS if t != "ort-cpu"}
REFUSED |= {(t, name) for t in ("tensorrt-10", "tensorrt-11") for name in EVERYTHING if "4w8a" in name}


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_a_format_is_near_the_float_graph_or_refused_with_an_alternative(target, name, floats):
    ranges, answer = floats
    if (target.name, name) in REFUSED:
        with pytest.raises(RecipeError, match=r"; use .*'|float32"):
            exported(name, target, ranges, half=True)
        return
    for in_half in (False, True):
        model, _ = exported(name, target, ranges, half=in_half)
        assert error(model, answer) < BOUNDS[name[0]], in_half


@pytest.mark.parametrize("option", [{"concat": "split"}, {"residual": "coded"}, {"attention": "int8"}], ids=str)
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_what_a_recipe_decides_beside_the_rules_stays_near_the_float_graph(target, option, floats):
    ranges, answer = floats
    if "attention" in option and target.name == "ort-cpu":
        return
    model, sites = exported("8w8a", target, ranges, **option)
    assert error(model, answer) < BOUNDS["8"]
    assert {"part", "residual", "operand"} & {site.role for site in sites}


def test_only_phases_stay_float32_in_a_float16_graph(floats):
    _, sites = exported("16w16a", TARGETS["tensorrt-rtx"], floats[0], half=True)
    assert {s.node for s in sites if s.role == "island"} == {"time.cast", "time.column", "time.phase", "time.sin"}


def test_float16_and_narrow_weights_make_the_file_that_much_smaller(floats):
    sizes = {
        name: len(exported(name, TARGETS["tensorrt-rtx"], floats[0], half=True)[0].SerializeToString())
        for name in ("16w16a", "8w-attention", "4w-attention")
    }
    whole = len(unet().SerializeToString())
    assert sizes["16w16a"] < 0.55 * whole and sizes["8w-attention"] < 0.42 * whole
    assert sizes["4w-attention"] < 0.32 * whole


def plan(model, folder):
    """The layers of a plan for Ada GPUs."""
    from quaver.exporter.plans.planner import Request, build_plan

    (folder / "m.onnx").write_bytes(model.SerializeToString())
    request = Request(
        "tensorrt_rtx", "trt-rtx", "", str(folder / "m.onnx"), str(folder / "m.plan"), (1, 2, 4), capabilities=("SM89",)
    )
    return [Compiled(**layer) for layer in build_plan(request)["layers"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("8w8a", {}),
        ("8w8a-attention", {"half": True, "attention": "int8"}),
        ("4w8a-attention", {"half": True}),
        ("fp8-attention", {"half": True, "attention": "float8"}),
        ("8w8a", {"half": True, "concat": "split", "residual": "coded"}),
    ],
    ids=str,
)
def test_every_layer_meant_for_codes_gets_a_narrow_kernel_in_a_real_plan(name, options, floats, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model, sites = exported(name, TARGETS["tensorrt-rtx"], floats[0], **options)
    narrow = {node for layer in plan(model, tmp_path) if layer.integer for node in layer.nodes}
    assert {site.node for site in sites if site.role == "input"} <= narrow


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8w-attention", "4w-attention", "16w16a"])
def test_graphs_of_narrow_weights_and_float16_build(name, floats, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model, _ = exported(name, TARGETS["tensorrt-rtx"], floats[0], half=True)
    products = [x for x in plan(model, tmp_path) if x.kernel in ("gemm", "correlation", "runtime_fusion")]
    assert products and all(x.inputs[0] == "Half" for x in products)
