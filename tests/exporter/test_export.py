import json
import math

import numpy as np
import pytest

from benchmarks.size import deployed_bytes, parameters_of
from quaver.calib.graph import layers
from quaver.calib.quant import UINT8, scale_zero_point
from quaver.calib.rules import Rule
from quaver.exporter.export import ExportSettings, counted, export, read_ranges, remarks
from quaver.exporter.modelfile import load_model, save_model
from quaver.exporter.placement import Site
from quaver.exporter.targets import ORT_CPU, TENSORRT_RTX
from quaver.runtime.artifact import Stamp, digest_file, load_json, read_stamp, save_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.progress import Bar, quiet

onnx = pytest.importorskip("onnx")


def run(bundle: Bundle, **settings):
    return export(bundle, ExportSettings(**settings), stamp=Stamp("export", settings="s"), progress=quiet())


def answers(path, feeds):
    with open_engine(path, threads=1) as engine:
        return engine(feeds)


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    import shutil

    root = tmp_path_factory.mktemp("exported") / "bundle"
    shutil.copytree(traced.root, root)
    run(Bundle(root))
    return Bundle(root)


def test_both_graphs_stay_close_to_the_float_one(exported, feeds):
    reference = answers(exported.float_unet, feeds)
    for target in ("ort-cpu", "tensorrt-rtx"):
        error = np.linalg.norm(answers(exported.qdq(target), feeds) - reference) / np.linalg.norm(reference)
        assert error < 0.05, target


def test_every_layer_has_an_answer_with_a_reason(exported):
    for target in ("ort-cpu", "tensorrt-rtx"):
        table = load_json(exported.sites(target), "export")
        of_layers = {s["layer"] for s in table["sites"] if s["role"] != "product"}
        assert of_layers == {layer["name"] for layer in table["layers"]}
        assert all(site["reason"] for site in table["sites"])


def test_the_preset_leaves_attention_ends_and_time_embedding_float(exported):
    sites = load_json(exported.sites("ort-cpu"), "export")["sites"]
    coded = {s["layer"] for s in sites if s["role"] == "weight"}
    kept = {s["layer"] for s in sites if s["role"] == "layer"}
    assert {"conv_in", "conv_out", "class_embedding", "time_embedding.linear_1"} <= kept
    assert any(".attn2.to_out" in name for name in kept) and not any(".attn" in name for name in coded)
    assert {"mid_block.resnets.0.conv1", "mid_block.resnets.0.time_emb_proj"} <= coded
    assert any(name.endswith("ff.net.2") for name in coded)


def test_no_quantizer_touches_attention_norms_or_softmax(exported):
    graph = onnx.load(exported.qdq("ort-cpu")).graph
    readers = {"Softmax", "LayerNormalization", "InstanceNormalization"}
    coded = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    inputs = {edge for n in graph.node if n.op_type in readers for edge in n.input}
    ranged = read_ranges(exported)
    outputs_of_convs = {
        s["edge"] for s in load_json(exported.sites("ort-cpu"), "export")["sites"] if s["role"] == "output"
    }
    assert inputs & coded <= outputs_of_convs <= ranged.keys()


def test_output_of_a_coded_convolution_lies_on_its_grid(exported, feeds):
    sites = load_json(exported.sites("ort-cpu"), "export")["sites"]
    edge = next(s["edge"] for s in sites if s["role"] == "output")
    model = onnx.load(exported.qdq("ort-cpu"))
    model.graph.output.append(onnx.ValueInfoProto(name=edge))
    ort = pytest.importorskip("onnxruntime")
    values = ort.InferenceSession(model.SerializeToString()).run([edge], feeds)[0]
    scale, zero = scale_zero_point(*read_ranges(exported)[edge], UINT8)
    codes = values / scale + zero
    assert np.abs(codes - np.round(codes)).max() < 1e-2 and codes.min() > -0.01 and codes.max() < 255.01


def test_files_are_stamped_and_a_third_of_the_float_size(exported):
    for target in ("ort-cpu", "tensorrt-rtx"):
        assert read_stamp(exported.qdq(target)) == read_stamp(exported.sites(target)) == Stamp("export", settings="s")
        assert load_json(exported.sites(target), "export")["digest"] == digest_file(exported.qdq(target))
        coded = load_json(exported.sites(target), "export")["coverage"]
        assert coded["by_macs"] > 0.5
        assert exported.qdq(target).stat().st_size < 0.75 * exported.float_unet.stat().st_size


@pytest.mark.parametrize("start", ["8w8a", "4w8a-attention"])
def test_constants_have_the_bytes_that_placement_says(bundle, start):
    run(bundle, preset=start, targets=("tensorrt-rtx",), floats="float16")
    floats, coded = (load_model(path) for path in (bundle.float_unet, bundle.qdq("tensorrt-rtx")))
    found, table = layers(floats), load_json(bundle.sites("tensorrt-rtx"), "export")["sites"]
    rest = sum(math.prod(t.dims) for t in floats.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    rest -= sum(parameters_of(layer) for layer in found)
    said = deployed_bytes(found, [Site(**site) for site in table], rest)
    assert sum(len(t.raw_data) for t in coded.graph.initializer) == pytest.approx(said, rel=0.05)


def test_a_rule_of_the_recipe_goes_before_the_preset(bundle):
    run(bundle, targets=("ort-cpu",), rules=(Rule("mid_block.*", "float", "float", "mine"),))
    sites = load_json(bundle.sites("ort-cpu"), "export")["sites"]
    assert {s["reason"] for s in sites if s["layer"].startswith("mid_block")} == {"mine"}


def test_a_rule_that_matches_nothing_stops_the_export(bundle):
    with pytest.raises(RecipeError, match="'mid_blok"):
        run(bundle, rules=(Rule("mid_blok.resnets.0.conv1"),))
    assert not bundle.qdq("ort-cpu").exists()


def test_a_range_that_is_not_finite_names_the_layer(bundle):
    ranges = dict(read_ranges(bundle))
    edge = next(x.input for x in layers(onnx.load(bundle.float_unet)) if x.name == "mid_block.resnets.0.conv1")
    ranges[edge] = (0.0, float("nan"))
    limits = np.array(list(ranges.values()), np.float32)
    save_tensors(
        bundle.ranges, {"amin": limits[:, 0], "amax": limits[:, 1]}, Stamp("ranges"), meta={"edges": list(ranges)}
    )
    with pytest.raises(ArtifactError, match=r"an edge of layer mid_block\.resnets\.0\.conv1"):
        run(bundle)


def test_a_graph_that_onnxruntime_refuses_leaves_the_earlier_one(bundle, monkeypatch):
    bundle.qdq("ort-cpu").write_bytes(b"earlier")
    monkeypatch.setattr("quaver.exporter.export.insert", lambda model, *_, **__: model.graph.node[0].input.append("no"))
    monkeypatch.setattr("quaver.exporter.export.check", lambda *_: None)
    with pytest.raises(EngineError, match="onnxruntime cannot open"):
        run(bundle, targets=("ort-cpu",))
    assert bundle.qdq("ort-cpu").read_bytes() == b"earlier" and not list(bundle.root.glob(".tmp-*"))


def test_weights_beside_the_float_graph_give_the_same_bytes_as_weights_in_it(exported, bundle):
    save_model(load_model(bundle.float_unet), bundle.float_unet, Stamp("trace"), embedded=1000)
    assert bundle.float_unet.with_name("unet.float.onnx.data").exists()
    run(bundle)
    for target in ("ort-cpu", "tensorrt-rtx"):
        assert bundle.qdq(target).read_bytes() == exported.qdq(target).read_bytes()


def test_a_quantized_graph_with_its_weights_beside_answers_alike(exported, bundle, feeds, monkeypatch):
    monkeypatch.setattr("quaver.exporter.modelfile.EMBEDDED", 1000)
    run(bundle, targets=("ort-cpu",))
    assert bundle.qdq("ort-cpu").with_name("unet.ort-cpu.onnx.data").exists()
    assert np.array_equal(answers(bundle.qdq("ort-cpu"), feeds), answers(exported.qdq("ort-cpu"), feeds))


def test_no_target_is_an_error_that_says_what_to_name(bundle):
    with pytest.raises(RecipeError, match="name 'ort-cpu', 'tensorrt-rtx' or both"):
        run(bundle, targets=())


def test_site_files_are_json_that_anyone_can_read(exported):
    table = json.loads(exported.sites("tensorrt-rtx").read_text())
    assert table["target"] == "tensorrt-rtx" and {"edge", "layer", "format", "reason"} <= table["sites"][0].keys()


def test_what_is_slow_or_not_as_asked_is_said():
    half, wide = ExportSettings(floats="float16"), Site("x", "a", "a", "input", "uint16", "ranges", "test")
    assert remarks([], TENSORRT_RTX, half) == []
    assert "no float16 kernels" in remarks([], ORT_CPU, half)[0]
    assert "1 layers read 16-bit codes" in remarks([wide], ORT_CPU, ExportSettings())[0]


def test_a_float16_graph_lists_the_nodes_it_keeps_in_float32(bundle, feeds):
    reference = answers(bundle.float_unet, feeds)
    run(bundle, targets=("tensorrt-rtx",), floats="float16")
    sites = load_json(bundle.sites("tensorrt-rtx"), "export")["sites"]
    assert {s["format"] for s in sites if s["role"] == "layer"} == {"float16"}
    assert all("radians" in s["reason"] for s in sites if s["role"] == "island")
    assert np.linalg.norm(answers(bundle.qdq("tensorrt-rtx"), feeds) - reference) / np.linalg.norm(reference) < 0.05


def test_every_layer_is_counted_while_it_is_written():
    bar, seen = Bar(3, "export", show=lambda line: None), []
    for layer in counted(["a", "b", "c"], bar):
        seen.append((layer, bar.done))
    assert seen == [("a", 0), ("b", 1), ("c", 2)] and bar.done == 3
