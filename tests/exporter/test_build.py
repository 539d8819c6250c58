import sys

import numpy as np
import pytest

from quaver.calib.graph import layers
from quaver.calib.rules import Rule
from quaver.exporter import build as building
from quaver.exporter.build import BuildSettings, build, run_planner
from quaver.exporter.export import ExportSettings, export
from quaver.exporter.placement import place
from quaver.exporter.planlog import Compiled
from quaver.exporter.planner import build_plan
from quaver.exporter.qdq import insert
from quaver.exporter.targets import TENSORRT_RTX
from quaver.runtime.artifact import Stamp, digest_file, load_json, read_stamp
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.progress import Progress, quiet

STAMP = Stamp("build", settings="s")


def run(bundle, *, progress=None, **settings):
    return build(bundle, BuildSettings(**settings), stamp=STAMP, progress=progress or quiet())


@pytest.mark.slow
def test_a_real_plan_runs_every_layer_meant_for_int8_in_an_int8_kernel(bundle):
    pytest.importorskip("tensorrt_rtx")
    export(bundle, ExportSettings(targets=("tensorrt-rtx",)), stamp=Stamp("export"), progress=quiet())
    plan = run(bundle, batch=(1, 2, 4))
    record = load_json(bundle.plan_sidecar("tensorrt-rtx"), "build")
    assert plan == bundle.plan("tensorrt-rtx") and record["plan"]["digest"] == digest_file(plan)
    assert record["onnx"]["digest"] == digest_file(bundle.qdq("tensorrt-rtx"))
    assert record["compute_capabilities"] == ["SM86", "SM89", "SM120"]
    assert record["coverage"]["meant"] > 15 and record["coverage"]["by_count"] == 1.0
    assert any(layer["kernel"] == "correlation" and "Int8" in layer["inputs"] for layer in record["layers"])
    assert read_stamp(plan) == STAMP
    assert not [p for p in bundle.root.iterdir() if p.name.startswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "activation"), [("int4", "int8"), ("float8", "float8"), ("int8", "int8")])
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_every_pattern_of_the_target_compiles_to_a_narrow_kernel(tmp_path, op, weight, activation):
    pytest.importorskip("tensorrt_rtx")
    onnx = pytest.importorskip("onnx")
    shape, dims = ((64, 64, 3, 3), [64, 8, 8]) if op == "Conv" else ((64, 64), [16, 64])
    value = np.random.default_rng(0).standard_normal(shape, np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", "w"], ["y"], "layer")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["batch", *dims])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(value, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    found, ranges = layers(model), {"x": (-3.0, 3.0)}
    sites = place(found, [Rule("*", weight, activation)], TENSORRT_RTX, ranges)
    insert(model, found, sites, ranges, TENSORRT_RTX)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = build_plan(tmp_path / "m.onnx", tmp_path / "m.plan", ["SM89"], [1, 2, 4])
    plan = [Compiled(**layer) for layer in made["layers"]]
    assert any(c.integer and "layer" in c.nodes for c in plan), [(c.kernel, c.inputs, c.constants) for c in plan]


def test_without_the_extra_it_says_what_was_left_out_and_how_to_get_it(traced, bundle, monkeypatch, capsys):
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    bundle.plan("tensorrt-rtx").write_bytes(b"an older plan")
    written = run(bundle, progress=Progress(stream=sys.stderr))
    assert "pip install 'quaver[trt-rtx]'" in capsys.readouterr().err
    record = load_json(written, "build")
    assert written == bundle.plan_sidecar("tensorrt-rtx") and record["built"] is False
    assert "pip install" in record["reason"] and not bundle.plan("tensorrt-rtx").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compute_capabilities": ("SM88",)}, "unknown compute capability 'SM88'"),
        ({"compute_capabilities": ()}, "one capability or more"),
        ({"batch": (4, 2, 16)}, "expected 1 <= min <= opt <= max"),
        ({"batch": (0, 2, 16)}, "expected 1 <= min <= opt <= max"),
    ],
)
def test_settings_that_cannot_be_are_refused(bundle, settings, words):
    with pytest.raises(RecipeError, match=words):
        run(bundle, **settings)


def planner(monkeypatch, code):
    """Let `code` stand in for the builder's process."""
    process = building._process
    monkeypatch.setattr(building, "_process", lambda command: process([sys.executable, "-c", code]))


def test_a_builder_that_dies_is_reported_with_its_last_words(monkeypatch):
    planner(
        monkeypatch,
        "import os; print('{\"step\": 1, \"of\": 6}'); print('Segmentation fault', flush=True); os._exit(139)",
    )
    with pytest.raises(EngineError, match=r"died \(139\): Segmentation fault"):
        run_planner({}, quiet())


def test_the_builders_own_reason_is_passed_on(monkeypatch):
    planner(monkeypatch, "import json; print(json.dumps({'error': 'cannot parse x'}))")
    with pytest.raises(EngineError, match="cannot parse x"):
        run_planner({}, quiet())


def test_an_interrupted_build_leaves_neither_files_nor_a_process(bundle, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    bundle.qdq("tensorrt-rtx").write_bytes(b"")
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


@pytest.mark.slow
def test_a_graph_tensorrt_cannot_parse_is_refused_in_its_words(bundle):
    pytest.importorskip("tensorrt_rtx")
    bundle.qdq("tensorrt-rtx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot parse unet\.tensorrt-rtx\.onnx"):
        run(bundle)
    assert not bundle.plan("tensorrt-rtx").exists()
