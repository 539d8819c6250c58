import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.rules import Rule
from quaver.exporter import build as building
from quaver.exporter.build import BuildSettings, build, build_target, check_settings, expected_plans, findings
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.placement import place
from quaver.exporter.plans import process
from quaver.exporter.plans.log import Compiled
from quaver.exporter.plans.planner import Request, build_plan
from quaver.exporter.plans.process import ask
from quaver.exporter.qdq import insert
from quaver.exporter.targets import TENSORRT_RTX
from quaver.runtime.artifact import Stamp, digest_file, load_json, read_stamp
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.progress import Progress, quiet

RTX = "tensorrt-rtx"
STAMP = Stamp("build", settings="s", inputs={"unet.tensorrt-rtx.onnx": "d"})


def run(bundle, *, progress=None, stamp=STAMP, **settings):
    return build(bundle, BuildSettings(**settings), stamp=stamp, progress=progress or quiet())


def exported(bundle, **settings):
    export(bundle, ExportSettings(targets=(RTX,), **settings), stamp=Stamp("export"), progress=quiet())


def layer_model(op, weight, activation, *, axes=("batch",)):
    """x -> op -> y with the weight and activation formats of one rule; the axes of x by name."""
    onnx = pytest.importorskip("onnx")
    shape, dims = ((64, 64, 3, 3), [64, 8, 8]) if op == "Conv" else ((64, 64), [16, 64])
    value = np.random.default_rng(0).standard_normal(shape, np.float32)
    pads = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", "w"], ["y"], "layer", **pads)],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["batch", *dims[: len(dims) - len(axes) + 1], *axes[1:]])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(value, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    found, ranges = layers(model), {"x": (-3.0, 3.0)}
    return insert(
        model, found, place(found, [Rule("*", weight, activation)], TENSORRT_RTX, ranges), ranges, TENSORRT_RTX
    )


def compiled(model, folder, **changes):
    """The layers of its plan, and the builder's whole answer."""
    pytest.importorskip("tensorrt_rtx")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    wanted = {"capabilities": ["SM89"], **changes}
    request = Request(
        "tensorrt_rtx", "trt-rtx", "", str(folder / "m.onnx"), str(folder / "m.plan"), [1, 2, 4], **wanted
    )
    answer = build_plan(request)
    return [Compiled(**layer) for layer in answer["layers"]], answer


@pytest.mark.slow
def test_a_real_plan_runs_every_layer_meant_for_int8_in_an_int8_kernel(bundle, capsys):
    pytest.importorskip("tensorrt_rtx")
    exported(bundle)
    plan = run(bundle, batch=(1, 2, 4), progress=Progress(stream=sys.stderr))
    record = load_json(bundle.plan_sidecar(RTX), "build")
    assert plan == bundle.plan(RTX) and record["plan"]["digest"] == digest_file(plan)
    assert record["onnx"]["digest"] == digest_file(bundle.qdq(RTX))
    assert record["compute_capabilities"] == ["SM86", "SM89", "SM120"]
    assert record["coverage"]["meant"] > 15 and record["coverage"]["by_count"] == 1.0
    assert any(layer["kernel"] == "correlation" and "Int8" in layer["inputs"] for layer in record["layers"])
    assert record["shapes"]["sample"] == [[1, 4, 8, 8], [2, 4, 8, 8], [4, 4, 8, 8]]
    assert record["memory"]["weights"] > 0
    assert record["lint"]["products"] > 30 and record["lint"]["disagreements"] == []
    assert read_stamp(plan) == STAMP and "100.0%" in capsys.readouterr().err
    assert not [p for p in bundle.root.iterdir() if p.name.startswith(".tmp")]
    # what the preset keeps in floats between integer layers is the attention, named by its module
    assert record["islands"] and all("transformer_blocks.0" in island["within"] for island in record["islands"])
    modules = {name for layer in record["layers"] for name in layer["modules"]}
    assert {layer["name"] for layer in load_json(bundle.sites(RTX), "export")["layers"]} <= modules


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "activation"), [("int4", "int8"), ("float8", "float8"), ("int8", "int8")])
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_every_pattern_of_the_target_compiles_to_a_narrow_kernel(tmp_path, op, weight, activation):
    plan, _ = compiled(layer_model(op, weight, activation), tmp_path)
    assert any(c.integer and "layer" in c.nodes for c in plan), list(map(str, plan))


@pytest.mark.slow
def test_a_weight_that_its_own_kernel_unpacks_is_named(tmp_path):
    plan, _ = compiled(layer_model("Conv", "int8", "float"), tmp_path)
    sites = {"layers": [{"name": "layer", "node": "layer", "macs": 1}], "sites": [{"layer": "layer", "role": "weight"}]}
    found = findings(plan, sites, tmp_path / "m.onnx", building.lint(tmp_path / "m.onnx", RTX))
    assert found["unpacked"] == [{"layer": "layer.weight.dq", "from": "Int8", "to": "Float"}]
    assert found["coverage"]["meant"] == 0 and found["islands"] == [] and found["lint"]["disagreements"] == []


@pytest.mark.slow
def test_a_capability_without_int8_would_take_it_from_the_others(tmp_path):
    model = layer_model("Conv", "int8", "int8")
    alone, _ = compiled(model, tmp_path)
    together, _ = compiled(model, tmp_path, capabilities=["SM75", "SM89"])
    assert [any(c.integer for c in plan) for plan in (alone, together)] == [True, False]


@pytest.mark.slow
def test_a_dynamic_length_gets_its_own_sizes(tmp_path):
    model = layer_model("Conv", "int8", "int8", axes=("batch", "length", "8"))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    plan, answer = compiled(model, tmp_path, axes={"length": [4, 8, 32]})
    assert answer["profile"] == {"x": [[1, 64, 4, 8], [2, 64, 8, 8], [4, 64, 32, 8]]}
    assert any(c.integer for c in plan)
    with pytest.raises(EngineError, match=r"dynamic axis 'length': set build\.axes\.length"):
        compiled(model, tmp_path)


@pytest.mark.slow
def test_stripping_weights_without_a_gpu_says_what_it_needs(tmp_path):
    flags = ["STRIP_PLAN", "REFIT_IDENTICAL"]
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match=r"build\.weights = 'stripped' and build\.refit compile kernels on a GPU"):
        compiled(layer_model("MatMul", "int8", "int8"), tmp_path, flags=flags)


def test_without_the_extra_it_says_what_was_left_out_and_how_to_get_it(bundle, monkeypatch, capsys):
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    bundle.plan(RTX).write_bytes(b"an older plan")
    written = run(bundle, progress=Progress(stream=sys.stderr))
    assert "pip install 'quaver[trt-rtx]'" in capsys.readouterr().err
    record = load_json(written, "build")
    assert written == bundle.plan_sidecar(RTX) and record["built"] is False
    assert "pip install" in record["reason"] and not bundle.plan(RTX).exists()
    assert expected_plans(["ort-cpu", RTX, "tensorrt-10"]) == ["tensorrt-10", RTX]  # asked for again until installed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compute_capabilities": ("SM88",)}, "unknown compute capability of tensorrt-rtx 'SM88'"),
        ({"compute_capabilities": ()}, r"compute_capabilities is empty: name one"),
        ({"batch": (4, 2, 16)}, "expected 1 <= min <= opt <= max"),
        ({"batch": (0, 2, 16)}, "expected 1 <= min <= opt <= max"),
        ({"axes": {"length": (8, 4, 2)}}, r"build\.axes\.length = \[8, 4, 2\]: expected"),
        ({"hardware": "ampere-plus"}, r"build\.hardware does nothing for tensorrt-rtx: remove it"),
        ({"timing_cache": "t"}, r"build\.timing_cache does nothing for tensorrt-rtx"),
        ({"weights": "stripped"}, r"needs build\.refit = 'identical'"),
    ],
)
def test_settings_that_cannot_be_are_refused(bundle, settings, words):
    with pytest.raises(RecipeError, match=words):
        run(bundle, **settings)


def test_capabilities_are_for_the_one_target_that_takes_them():
    asked = BuildSettings(compute_capabilities=("SM90",))
    for target in ("tensorrt-10", "tensorrt-11"):
        words = rf"compute_capabilities does nothing for {target}: remove it, or export for tensorrt-rtx"
        with pytest.raises(RecipeError, match=words):
            check_settings(asked, [target])
        check_settings(BuildSettings(), [target])
    with pytest.raises(RecipeError, match="unknown compute capability of tensorrt-rtx 'SM90'"):
        check_settings(asked, ["tensorrt-10", RTX])
    check_settings(BuildSettings(compute_capabilities=TENSORRT_RTX.capabilities), ["tensorrt-10", RTX])


def test_a_recipe_without_tensorrt_targets_has_nothing_to_build(bundle):
    with pytest.raises(RecipeError, match=r"add one of tensorrt-10, tensorrt-11, tensorrt-rtx to export\.targets"):
        run(bundle, stamp=Stamp("build"))


@pytest.mark.parametrize(
    ("capability", "formats", "words"),
    [
        ("SM75", ("int8", "int8"), "SM75 cannot run int8 .*leave SM75 out of build.compute_capabilities"),
        ("SM86", ("float8", "float8"), "SM86 cannot run float8 .*use 'int8' in the rules, or leave SM86 out"),
    ],
)
def test_a_format_that_a_capability_lacks_is_refused_before_the_build(bundle, capability, formats, words, monkeypatch):
    exported(bundle, preset="float", rules=(Rule("mid_block.resnets.0.conv1", *formats),))
    monkeypatch.setattr(building, "find_spec", lambda name: True)
    monkeypatch.setattr(building, "ask", lambda *_: pytest.fail("it was built"))
    with pytest.raises(RecipeError, match=words):
        run(bundle, compute_capabilities=(capability, "SM89"))


def planner(monkeypatch, code):
    """Let `code` stand in for the builder's process."""
    started = process._process
    monkeypatch.setattr(process, "_process", lambda command: started([sys.executable, "-c", code]))


def asked(**changes):
    return ask(Request("tensorrt_rtx", "trt-rtx", "", "x.onnx", "x.plan", (1, 1, 1), **changes), quiet())


def test_a_builder_that_dies_is_reported_with_its_last_words(monkeypatch):
    planner(
        monkeypatch,
        "import os; print('{\"step\": 1, \"of\": 6}'); print('Segmentation fault', flush=True); os._exit(139)",
    )
    with pytest.raises(EngineError, match=r"tensorrt_rtx's builder died \(139\): Segmentation fault"):
        asked()


@pytest.mark.parametrize(("number", "words"), [(9, "killed, most likely for lack of memory"), (11, "died of SIGSEGV")])
def test_a_builder_that_a_signal_ends_says_which(monkeypatch, number, words):
    planner(monkeypatch, f"import os; os.kill(os.getpid(), {number})")
    assert signal.Signals(number)
    with pytest.raises(EngineError, match=words):
        asked()


def test_the_builders_own_reason_is_passed_on(monkeypatch):
    planner(monkeypatch, "import json; print(json.dumps({'error': 'cannot parse x'}))")
    with pytest.raises(EngineError, match="cannot parse x"):
        asked()


def test_a_full_disk_is_one_line_and_leaves_nothing(bundle, monkeypatch):
    exported(bundle)
    monkeypatch.setattr(building, "find_spec", lambda name: True)
    planner(monkeypatch, f"import json; print(json.dumps({{'errno': {errno.ENOSPC}, 'error': 'no space'}}))")
    before = set(bundle.root.iterdir())
    with pytest.raises(ArtifactError, match=r"cannot write .*unet\.tensorrt-rtx\.plan: the disk is full"):
        run(bundle)
    assert set(bundle.root.iterdir()) == before


def test_an_interrupted_build_leaves_neither_files_nor_a_process(bundle, monkeypatch):
    exported(bundle)
    monkeypatch.setattr(building, "find_spec", lambda name: True)
    planner(monkeypatch, 'import time; print(\'{"step": 1, "of": 6}\', flush=True); time.sleep(60)')
    children = []

    class Interrupted(Progress):
        def bar(self, total, label):
            children.append(sys._getframe(1).f_locals["child"])
            raise KeyboardInterrupt

    before = set(bundle.root.iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(bundle, progress=Interrupted(stream=None))
    assert set(bundle.root.iterdir()) == before and children[0].poll() is not None


def test_a_file_that_is_no_graph_is_refused_before_the_builder_starts(bundle, monkeypatch):
    exported(bundle)
    monkeypatch.setattr(building, "find_spec", lambda name: True)
    bundle.qdq(RTX).write_bytes(b"no graph")
    with pytest.raises(RecipeError, match=r"unet\.tensorrt-rtx\.onnx is no ONNX file"):
        run(bundle)
    assert not bundle.plan(RTX).exists()


@pytest.mark.slow
def test_a_graph_tensorrt_cannot_parse_is_refused_in_its_words(tmp_path):
    model = layer_model("Conv", "int8", "int8")
    model.graph.node[-1].op_type = "Convolution"
    with pytest.raises(EngineError, match=r"tensorrt_rtx cannot parse m\.onnx: "):
        compiled(model, tmp_path)


def test_what_lint_knew_is_said_when_the_builder_refuses(bundle, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    exported(bundle)
    report = building.lint(bundle.qdq(RTX), RTX)
    monkeypatch.setattr(building, "lint", lambda *_, **__: replace(report, refused=("conv: blocks do not build",)))
    planner(monkeypatch, "import json; print(json.dumps({'error': 'Internal error 10'}))")
    with pytest.raises(EngineError, match=r"Internal error 10; 'quaver lint' says: conv: blocks do not build"):
        run(bundle)


@pytest.fixture
def tensorrt(bundle, tmp_path, monkeypatch):
    """A bundle with graphs for TensorRT 10 and 11, and a function that builds one with a stand-in for the library."""
    exported(bundle)
    for target in ("tensorrt-10", "tensorrt-11"):
        bundle.qdq(target).write_bytes(bundle.qdq(RTX).read_bytes())
        bundle.sites(target).write_bytes(bundle.sites(RTX).read_bytes())

    def make(version, target, **settings):
        folder = tmp_path / f"site-{version}"
        (folder / f"tensorrt-{version}.dist-info").mkdir(parents=True, exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n"
        (folder / f"tensorrt-{version}.dist-info" / "METADATA").write_text(metadata)
        (folder / f"tensorrt-{version}.dist-info" / "top_level.txt").write_text("tensorrt\n")
        (folder / "tensorrt.py").write_text((Path(__file__).parent / "fake_tensorrt.py").read_text())
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        monkeypatch.setenv("FAKE_TENSORRT", version)
        made = build_target(bundle, target, BuildSettings(**settings), stamp=STAMP, progress=quiet())
        return made, load_json(bundle.plan_sidecar(target), "build")

    return make


@pytest.mark.parametrize("version", ["10.13.2.6", "11.0.1.2"])
def test_tensorrt_is_asked_for_what_the_recipe_says_and_its_own_log_is_read(tensorrt, version, tmp_path):
    settings = {"weights": "stripped", "refit": "identical", "streaming": True, "version_compatible": True}
    target, cache = f"tensorrt-{version[:2]}", tmp_path / "times"
    made, record = tensorrt(version, target, hardware="ampere-plus", timing_cache=str(cache), **settings)
    asked = json.loads(made.read_bytes())
    assert asked["flags"] == ["STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"]
    assert (asked["hardware"], asked["typed"], asked["verbosity"]) == ("AMPERE_PLUS", 1 << 1, "DETAILED")
    assert asked["shapes"]["timestep"] == [[1], [2], [16]]
    assert record["tensorrt"] == version and record["compute_capabilities"] == []
    assert record["memory"] == {"activation": 4096} and record["options"] == [*asked["flags"], "AMPERE_PLUS"]
    assert record["coverage"]["meant"] > 15 and record["coverage"]["by_macs"] == 1.0
    kernels = {(layer["kernel"], *layer["inputs"][:1]) for layer in record["layers"]}
    assert kernels == {("CaskConvolution", "Int8"), ("CaskConvolution", "Float"), ("gemm", "Int8"), ("gemm", "Float")}
    assert cache.read_bytes() == b"+times"


def test_a_plan_of_tensorrt_is_for_the_gpu_that_built_it(tensorrt, monkeypatch):
    monkeypatch.setattr(building, "gpu_capability", lambda: ("SM87",))
    _, record = tensorrt("10.13.2.6", "tensorrt-10")
    assert record["compute_capabilities"] == ["SM87"]


def test_a_timing_cache_of_another_gpu_is_replaced(tensorrt, tmp_path):
    cache = tmp_path / "times"
    cache.write_bytes(b"of another GPU")
    tensorrt("10.13.2.6", "tensorrt-10", timing_cache=str(cache))
    assert cache.read_bytes() == b"+times"


def test_another_major_version_of_tensorrt_is_left_out_by_name(tensorrt):
    _, record = tensorrt("11.0.1.2", "tensorrt-10")
    assert not record["built"] and "needs tensorrt 10.x and 11.0.1.2 is installed" in record["reason"]


def test_an_option_that_a_version_lacks_is_named(tensorrt, monkeypatch):
    monkeypatch.setattr(building, "Request", lambda *a: Request(*a[:8], ["STRIP_ALL"], *a[9:]))
    with pytest.raises(EngineError, match=r"tensorrt 10\.13\.2\.6 has no BuilderFlag\.STRIP_ALL: leave that setting"):
        tensorrt("10.13.2.6", "tensorrt-10")


def test_tensorrt_without_a_gpu_names_what_builds_without_one(tensorrt, monkeypatch):
    with pytest.raises(EngineError, match=r"no GPU here .*export for 'tensorrt-rtx', which builds without one"):
        monkeypatch.setattr(building, "library_version", lambda module: "")
        tensorrt("none", "tensorrt-10")
