"""Learned rounding on a traced U-Net: the replay, the stage, and what the exported file holds."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, layers
from quaver.calib.ranges import RangeSettings, collect_ranges
from quaver.calib.reconstruct.replay import read_graph, run
from quaver.calib.records import Records, load_records, save_records
from quaver.calib.rules import Rule
from quaver.exporter.export import ExportSettings, export, read_ranges
from quaver.exporter.placement import place
from quaver.exporter.rounding import ReconstructSettings, code_layers, learn_weights, load_weights
from quaver.exporter.targets import find_target
from quaver.exporter.weights import pair_sums
from quaver.runtime.artifact import Stamp, digest_file, read_stamp, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import quiet

onnx, torch = pytest.importorskip("onnx"), pytest.importorskip("torch")
CHANNELS, EMBEDDING = 16, 20
STAMP = Stamp("reconstruct", settings="s")
LONG = ReconstructSettings(method="adaround", iterations=40, batch=4, records=3, rate=0.1)
FAST = ReconstructSettings(method="qdrop", iterations=12, batch=4, records=3, rate=0.1)


def learn(bundle, settings=FAST, **exported):
    return learn_weights(bundle, settings, ExportSettings(**exported), stamp=STAMP, progress=quiet())


def write(bundle, **settings):
    inputs = {bundle.weights.name: digest_file(bundle.weights)}
    export(bundle, ExportSettings(**settings), stamp=Stamp("export", inputs=inputs), progress=quiet())


def codes_in(path):
    return {
        t.name.removesuffix(".weight.codes"): onnx.numpy_helper.to_array(t).astype(np.int8)
        for t in onnx.load(path).graph.initializer
        if t.name.endswith(".weight.codes")
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A bundle of a few kilobytes: a U-Net of one residual block made by hand, its ranges, and four records."""
    bundle, rng = Bundle(tmp_path_factory.mktemp("recorded") / "bundle"), np.random.default_rng(0)
    bundle.root.mkdir()
    onnx.save(unet(rng), bundle.float_unet)
    x = rng.standard_normal((4, CHANNELS, 4, 4)).astype(np.float32)
    rows = {"class_labels": rng.standard_normal((4, EMBEDDING)).astype(np.float32)}
    none, tags = {"class_labels": np.zeros((1, EMBEDDING), np.float32)}, np.zeros(4, np.int64)
    records = Records(x, np.arange(4) * 250, rows, none, tags, tags - 1, tags, 2.0, ("p",), ("l",))
    save_records(bundle.samples, records, Stamp("samples"))
    card = {"family": "audioldm", "latent_shape": [CHANNELS, 4, 4], "sample_rate": 16000, "components": {}}
    save_json(bundle.card, card, Stamp("trace"))
    collect_ranges(bundle, RangeSettings(observer="minmax"), stamp=Stamp("ranges"), progress=quiet())
    return bundle


def unet(rng):
    """conv_in, block.resnets.0 (two convolutions, a product with the class between them), conv_out; t is not read."""

    def layer(op, module, inputs, output, weight, **attributes):
        constants.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"{module}.weight"))
        return node(op, [inputs, f"{module}.weight"], output, module, **attributes)

    def conv(module, source, output):
        made = layer("Conv", module, source, output, rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 12, pads=[1] * 4)
        constants.append(
            onnx.numpy_helper.from_array(rng.standard_normal(CHANNELS).astype(np.float32), f"{module}.bias")
        )
        made.input.append(f"{module}.bias")
        return made

    def node(op, inputs, output, module="", **attributes):
        made = onnx.helper.make_node(op, inputs, [output], name=module or output, **attributes)
        made.metadata_props.add(key=MODULE_KEY, value=module)
        return made

    constants = [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")]
    block = "block.resnets.0"
    nodes = [
        conv("conv_in", "sample", "h"),
        node("Sigmoid", ["h"], "s"),
        node("Mul", ["h", "s"], "a"),
        conv(f"{block}.conv1", "a", "c1"),
        layer("MatMul", f"{block}.emb", "class_labels", "e", rng.standard_normal((EMBEDDING, CHANNELS))),
        node("Unsqueeze", ["e", "axes"], "e4"),
        node("Add", ["c1", "e4"], "c1e"),
        node("Tanh", ["c1e"], "t"),
        conv(f"{block}.conv2", "t", "c2"),
        node("Add", ["h", "c2"], "sum"),
        conv("conv_out", "sum", "out"),
    ]
    x, labels = ["N", CHANNELS, 4, 4], ["N", EMBEDDING]
    inputs = [("sample", 1, x), ("timestep", 7, ["N"]), ("class_labels", 1, labels)]
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (*inputs, ("out", 1, x))]
    graph = onnx.helper.make_graph(nodes, "unet", ends[:3], ends[3:], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def learned(recorded, tmp_path_factory):
    """A copy with rounding learned for W4A8 and written for both targets. Shared: read only."""
    bundle = Bundle(tmp_path_factory.mktemp("learned") / "bundle")
    shutil.copytree(recorded.root, bundle.root)
    learn(bundle, preset="d2-4w8a")
    write(bundle, preset="d2-4w8a")
    return bundle


@pytest.mark.slow
def test_the_replay_of_a_traced_unet_equals_onnxruntime_node_by_node(traced, feeds):
    model = onnx.load(traced.float_unet)
    edges = [edge for node in model.graph.node for edge in node.output]
    with torch.no_grad():
        found = run(read_graph(model), {name: torch.from_numpy(x) for name, x in feeds.items()}, edges)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=edge) for edge in edges)
    ort = pytest.importorskip("onnxruntime")
    for edge, value in zip(edges, ort.InferenceSession(model.SerializeToString()).run(edges, feeds), strict=True):
        assert found[edge].shape == value.shape, edge
        assert np.allclose(found[edge].numpy(), value, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(value).max())), edge


def test_the_learned_codes_are_exactly_the_integers_in_the_exported_files(learned):
    weights = load_weights(learned)
    assert weights.formats and set(weights.formats.values()) == {"int4"}
    for target in ("ort-cpu", "tensorrt-rtx"):
        written = codes_in(learned.qdq(target))
        assert (
            written.keys() > weights.coded.keys() == {f"block.resnets.0.{name}" for name in ("conv1", "emb", "conv2")}
        )
        assert all(np.array_equal(coded.codes, written[name]) for name, coded in weights.coded.items())


def test_their_scales_are_those_of_the_file_and_the_rest_is_rounded_to_nearest(learned):
    weights = load_weights(learned)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(learned.qdq("ort-cpu")).graph.initializer}
    for name, coded in weights.coded.items():
        assert np.array_equal(values[f"{name}.weight.dq.scale"], coded.scale)
    ends = {layer.name for layer in layers(onnx.load(learned.float_unet))} - weights.coded.keys()
    assert ends == {"conv_in", "conv_out"}
    assert all(values[f"{name}.weight.codes"].dtype == np.int8 for name in ends)


def test_some_codes_were_learned_and_none_moved_further_than_one(learned):
    weights = load_weights(learned)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(learned.float_unet).graph.initializer}
    moved = 0
    for layer in layers(onnx.load(learned.float_unet)):
        if layer.name in weights.coded:
            coded = weights.coded[layer.name]
            shape = [-1 if d == layer.axis else 1 for d in range(len(layer.weight_shape))]
            ratio = np.clip(constants[layer.weight] / coded.scale.reshape(shape), -8, 7)
            assert np.abs(coded.codes - ratio).max() < 1.001
            moved += int((np.abs(coded.codes - ratio) > 0.5).sum())
    assert moved > 20


def test_the_file_is_stamped_its_parts_are_gone_and_the_graph_runs(learned):
    assert read_stamp(learned.weights) == STAMP
    assert not learned.weights_part(0).parent.exists()
    records = load_records(learned.samples)
    feeds = {"sample": records.x_t, "timestep": records.t, **records.cond}
    answers = []
    for path in (learned.float_unet, learned.qdq("ort-cpu")):
        with open_engine(path, threads=1) as engine:
            answers.append(engine(feeds))
    assert np.linalg.norm(answers[1] - answers[0]) < 0.1 * np.linalg.norm(answers[0])


def test_learned_codes_of_eight_bits_cannot_saturate_either(recorded, tmp_path):
    shutil.copytree(recorded.root, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    learn(bundle, FAST, targets=("ort-cpu",))
    write(bundle, targets=("ort-cpu",))
    axes, weights = {layer.name: layer.axis for layer in layers(onnx.load(bundle.float_unet))}, load_weights(bundle)
    written = codes_in(bundle.qdq("ort-cpu"))
    assert set(weights.formats.values()) == {"int8"}
    for name, coded in weights.coded.items():
        assert np.array_equal(coded.codes, written[name])
        assert pair_sums(np.moveaxis(coded.codes, axes[name], 0)).max() <= 128


@pytest.mark.parametrize("activation", ["int8", "float", "int16"])
def test_without_learning_codes_and_scales_are_those_of_the_exporter(recorded, tmp_path, activation):
    shutil.copytree(recorded.root, tmp_path / "bundle")
    bundle, rules = Bundle(tmp_path / "bundle"), (Rule("*", "int8", activation),)
    settings = ExportSettings(targets=("ort-cpu",), rules=rules)
    export(bundle, settings, stamp=Stamp("export"), progress=quiet())
    model, ranges, target = onnx.load(bundle.float_unet), read_ranges(bundle), find_target("ort-cpu")
    sites = place(layers(model), rules, target, ranges)
    made = code_layers(model, layers(model), sites, ranges, target, learning=False)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(bundle.qdq("ort-cpu")).graph.initializer}
    for name, codes in codes_in(bundle.qdq("ort-cpu")).items():
        assert np.array_equal(made[name].codes, codes), name
        scale = values[f"{name}.weight.{'dq.' * (activation == 'int8')}scale"]
        assert np.array_equal(made[name].scale, scale.reshape(-1)), name


@pytest.mark.parametrize("activation", ["float", "int16"])
def test_learned_codes_that_no_integer_kernel_reads_take_the_whole_range(recorded, tmp_path, activation):
    shutil.copytree(recorded.root, tmp_path / "bundle")
    bundle, rules = Bundle(tmp_path / "bundle"), (Rule("*", "int8", activation),)
    learn(bundle, FAST, targets=("ort-cpu",), rules=rules)
    write(bundle, targets=("ort-cpu",), rules=rules)
    written, weights = codes_in(bundle.qdq("ort-cpu")), load_weights(bundle)
    assert weights.coded and all(np.array_equal(coded.codes, written[name]) for name, coded in weights.coded.items())
    assert max(pair_sums(codes).max() for codes in written.values() if codes.ndim == 4) > 200


def test_an_export_whose_stamp_does_not_name_the_weights_rounds_to_nearest(learned, tmp_path):
    shutil.copytree(learned.root, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    settings = ExportSettings(preset="d2-4w8a", targets=("ort-cpu",))
    export(bundle, settings, stamp=Stamp("export"), progress=quiet())
    written, weights = codes_in(bundle.qdq("ort-cpu")), load_weights(bundle)
    assert any(not np.array_equal(weights.coded[name].codes, written[name]) for name in weights.coded)


def test_without_a_method_or_integers_there_is_nothing_to_learn(recorded):
    with pytest.raises(RecipeError, match=r"set reconstruct.method to 'adaround'"):
        learn(recorded, ReconstructSettings())
    with pytest.raises(RecipeError, match=r"the rules give ort-cpu none: change export.preset"):
        learn(recorded, preset="float")


KILLED = """
import sys
from pathlib import Path
from tests.exporter.test_rounding import LONG, learn
from quaver.runtime.bundle import Bundle

learn(Bundle(Path(sys.argv[1])), LONG, preset="d2-4w8a")
"""


@pytest.mark.slow
def test_killed_behind_a_block_the_same_command_ends_with_the_same_bytes(recorded, tmp_path):
    bundles = [Bundle(tmp_path / name) for name in ("whole", "killed")]
    for bundle in bundles:
        shutil.copytree(recorded.root, bundle.root)
    learn(bundles[0], LONG, preset="d2-4w8a")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(bundles[1].root)], env=environment) as child:
        while not bundles[1].weights_part(0).exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert bundles[1].weights_part(0).exists() and not bundles[1].weights.exists()
    learn(bundles[1], LONG, preset="d2-4w8a")
    assert bundles[0].weights.read_bytes() == bundles[1].weights.read_bytes()
