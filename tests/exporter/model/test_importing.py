"""Other people's ONNX files: what they become."""

import json

import numpy as np
import pytest

from quaver.calib.graph import layers, read_model
from quaver.runtime.artifact import load_lines
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import EngineError
from quaver.runtime.family import family_of, read_card
from tests.exporter.model.foreign import SCHEDULER, agrees, answers, make_feeds, refused, run, scaled_by_time, simple

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def test_an_opset_13_file_with_einsum_and_instance_norms_becomes_what_the_exporter_expects(place, tmp_path):
    bundle = run(place, tmp_path)
    made = onnx.load(bundle.float_unet)
    assert made.opset_import[0].version == 21
    onnx.checker.check_model(made, full_check=True)
    kinds = {node.op_type for node in made.graph.node}
    assert not kinds & {"Einsum", "Constant", "Shape"} and "InstanceNormalization" in kinds
    assert [value.name for value in made.graph.input] == ["x", "t", "context"]
    assert [value.name for value in made.graph.output] == ["eps"]
    agrees(bundle, place)


def test_layers_are_named_as_presets_name_them(place, tmp_path):
    found = layers(read_model(run(place, tmp_path).float_unet))
    assert [layer.name for layer in found] == [
        "time_embedding.linear_1", "conv_in", "block.conv1", "block.conv2",
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "conv_out",
    ]  # fmt: skip
    assert {layer.name: layer.macs for layer in found}["attn.to_q"] == 64 * 32 * 32
    assert all(layer.weight == f"{layer.name}.weight" for layer in found)


def test_weights_beside_the_graph_are_read_and_the_bundle_stands_alone(place, tmp_path, model):
    onnx.save(model, place / "unet.onnx", save_as_external_data=True, location="w.bin", size_threshold=256)
    bundle = run(place, tmp_path)
    agrees(bundle, place)
    feeds, expected = make_feeds(2), answers(place / "unet.onnx", make_feeds(2))
    (place / "w.bin").unlink()
    np.testing.assert_allclose(answers(bundle.float_unet, feeds), expected, rtol=1e-3, atol=1e-5)


def test_large_weights_go_beside_the_new_graph(place, tmp_path, monkeypatch):
    from quaver.exporter import modelfile

    small = {**modelfile.Weights.save.__kwdefaults__, "embedded": 1000}
    monkeypatch.setattr(modelfile.Weights.save, "__kwdefaults__", small)
    bundle = run(place, tmp_path)
    assert (bundle.root / "unet.float.onnx.data").stat().st_size > 50_000 > bundle.float_unet.stat().st_size
    agrees(bundle, place)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_for_batches_of_one_size_is_freed(place, tmp_path, example, batch):
    bundle = run(place, tmp_path, example.denoiser(np.random.default_rng(0), batch=batch))
    onnx.save(example.denoiser(np.random.default_rng(0)), place / "unet.onnx")
    agrees(bundle, place)


def test_a_batch_that_is_written_into_shapes_is_freed_where_rows_stay_apart(place, tmp_path, example):
    made = example.denoiser(np.random.default_rng(0), batch=2)
    for tensor in made.graph.initializer:
        if tensor.name in ("flat", "image", "joined"):
            values = numpy_helper.to_array(tensor).copy()
            values[0] = 2
            values[values == 0] = 64 if tensor.name == "joined" else 32
            values[values == -1] = 64
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    bundle = run(place, tmp_path, made)
    onnx.save(example.denoiser(np.random.default_rng(0)), place / "unet.onnx")
    agrees(bundle, place)


def test_a_network_whose_rows_lean_on_each_other_is_refused(place, tmp_path, example):
    made = example.denoiser(np.random.default_rng(0), batch=2)
    made.graph.node[-1].output[0] = "apart"
    made.graph.node.append(helper.make_node("ReduceMean", ["apart"], ["mean"], axes=[0], keepdims=1))
    made.graph.node.append(helper.make_node("Sub", ["apart", "mean"], ["eps"]))
    refused(place, tmp_path, r"differ from the file's own answers .* export it with a free batch", made, EngineError)


def test_a_row_that_is_not_a_number_is_far_from_the_files_answer(place, tmp_path):
    nodes = [  # finite where all rows have one time, as they have when the file is asked row by row
        ("ReduceMean", ["t"], ["mean"], {"axes": [0], "keepdims": 1}),
        ("Sub", ["t", "mean"], ["apart"]),
        ("Add", ["apart", "one"], ["above"]),
        ("Sqrt", ["above"], ["root"]),
        ("Mul", ["root", "nothing"], ["none"]),
        ("Reshape", ["none", "column"], ["c"]),
        ("Add", ["x", "c"], ["out"]),
    ]
    constants = {"one": np.float32(1), "nothing": np.float32(0), "column": np.array([-1, 1, 1, 1])}
    made = simple(nodes, ("t", [2]), constants=constants)
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    refused(place, tmp_path, r"batch of 3 differ from the file's own answers by nan", made, EngineError, samples="")


@pytest.mark.parametrize(
    ("time", "before"),
    [
        (("t", []), [("Unsqueeze", ["t", "zero"], ["rows"])]),
        (("t", [1]), [("Identity", ["t"], ["rows"])]),
        (("t", ["B"]), [("Identity", ["t"], ["rows"])]),
        (("t", ["B", 1]), [("Identity", ["t"], ["rows"])]),
    ],
)
def test_every_row_has_its_own_time_however_the_file_takes_it(place, tmp_path, time, before):
    bundle = run(place, tmp_path, scaled_by_time(time, before=before), samples="", output="out")
    x, t = np.ones((3, 4, 8, 8), np.float32), np.array([0, 500, 999])
    with open_engine(bundle.float_unet) as engine:
        out = engine(family_of(bundle).feeds(x, t, {}))
    np.testing.assert_allclose(out[:, 0, 0, 0], t / 1000, rtol=1e-6)


@pytest.mark.parametrize(("opset", "scales", "settings"), [(18, 2, {}), (21, 8, {}), (21, 8, {"epsilon": 1e-3})])
def test_a_bare_group_norm_is_written_in_operators_that_have_kernels(place, tmp_path, opset, scales, settings):
    draw = np.random.default_rng(0)
    made = simple(
        [
            ("Conv", ["x", "w1"], ["h"], {"pads": [1] * 4}),
            ("GroupNormalization", ["h", "scale", "bias"], ["n"], {"num_groups": 2, **settings}),
            ("Shape", ["n"], ["like"]),
            ("Reshape", ["n", "like"], ["same"]),
            ("Reshape", ["t", "column"], ["c"]),
            ("Add", ["same", "c"], ["a"]),
            ("Conv", ["a", "w2"], ["out"], {"pads": [1] * 4}),
        ],
        ("t", ["B"]),
        constants={
            "w1": draw.standard_normal((8, 4, 3, 3), np.float32),
            "w2": draw.standard_normal((4, 8, 3, 3), np.float32),
            "scale": draw.standard_normal(scales, np.float32),
            "bias": draw.standard_normal(scales, np.float32),
            "column": np.array([-1, 1, 1, 1]),
        },
    )
    made.opset_import[0].version = opset
    bundle = run(place, tmp_path, made, samples="")
    kinds = [node.op_type for node in read_model(bundle.float_unet).graph.node]
    assert not {"GroupNormalization", "Shape"} & {*kinds} and kinds.count("InstanceNormalization") == 1
    assert [layer.macs for layer in layers(read_model(bundle.float_unet))] == [64 * 32 * 9] * 2
    feeds = {name: rows for name, rows in make_feeds(3).items() if name != "context"}
    expected = answers(place / "unet.onnx", feeds, "out")
    np.testing.assert_allclose(answers(bundle.float_unet, feeds, "out"), expected, rtol=1e-3, atol=1e-3)


def test_a_mask_may_be_filled_with_infinity(place, tmp_path):
    nodes = [
        ("Less", ["x", "one"], ["seen"]),
        ("Where", ["seen", "x", "never"], ["masked"]),
        ("Softmax", ["masked"], ["s"], {"axis": -1}),
        ("Reshape", ["t", "column"], ["c"]),
        ("Mul", ["s", "c"], ["out"]),
    ]
    constants = {"one": np.float32(1), "never": np.float32(-np.inf), "column": np.array([-1, 1, 1, 1])}
    run(place, tmp_path, simple(nodes, ("t", ["B"]), constants=constants), samples="")


def test_a_network_that_lives_on_sigma_is_fed_sigma_and_the_unscaled_sample(place, tmp_path):
    nodes = [  # the denoiser of x_0 ~ N(0, 1): D = x / (1 + sigma^2)
        ("Mul", ["sigma", "sigma"], ["s2"]),
        ("Add", ["s2", "one"], ["d"]),
        ("Reshape", ["d", "column"], ["c"]),
        ("Div", ["x", "c"], ["out"]),
    ]
    made = simple(nodes, ("sigma", ["B"]), constants={"one": np.float32(1), "column": np.array([-1, 1, 1, 1])})
    bundle = run(place, tmp_path, made, samples="", prediction="sample")
    card = read_card(bundle)
    assert card["inputs"] == {
        "sample": "x", "time": "sigma", "dtype": "float32", "column": False, "sigma": True, "scaling": "ve",
    }  # fmt: skip
    assert (card["prediction"], card["rows"], card["sampler"]["guidance"]) == ("sample", 100, 1.0)
    from quaver.runtime.denoise import denoiser
    from quaver.runtime.schedule import load_schedule

    schedule = load_schedule(bundle.scheduler)
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    with open_engine(bundle.float_unet) as engine:
        for t in (1, 400, 999):
            eps = denoiser(engine, family_of(bundle), {}, {}, schedule, 1.0)(x, t)
            np.testing.assert_allclose(eps, np.sqrt(1 - schedule.alpha_bar[t]) * x, rtol=2e-3, atol=1e-5)


def test_a_free_latent_stays_free_when_asked_and_is_pinned_else(place, tmp_path, model):
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_param = "H"
    model.graph.initializer.extend([numpy_helper.from_array(np.array([0, 32, -1, 8]), "open")])
    node = next(n for n in model.graph.node if "image" in n.input)
    node.input[1] = "open"
    pinned = run(place, tmp_path, model, latent=(4, 8, 8))
    macs = {layer.name: layer.macs for layer in layers(read_model(pinned.float_unet))}
    free = run(place, tmp_path / "free", model, latent=(4, 8, 8), length="free")
    assert {layer.name: layer.macs for layer in layers(read_model(free.float_unet))} == macs
    for height in (8, 12):
        feeds = {**make_feeds(2), "x": np.ones((2, 4, height, 8), np.float32)}
        expected = answers(place / "unet.onnx", feeds)
        np.testing.assert_allclose(answers(free.float_unet, feeds), expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        answers(pinned.float_unet, feeds)
    refused(place, tmp_path / "open", r"leaves the size of 'x' open: set model\.latent = \[C, H, W\]", model)


def test_a_newer_opset_is_read_as_far_as_its_operators_are_not(place, tmp_path, model):
    newer = onnx.version_converter.convert_version(model, 23)
    agrees(run(place, tmp_path, newer), place)
    newer.graph.node.append(helper.make_node("RMSNormalization", ["eps", "all.1"], ["z"], "norm"))
    newer.graph.output.extend([helper.make_tensor_value_info("z", 1, None)])
    refused(place, tmp_path / "b", r"RMSNormalization \(norm\) is newer than opset 21", newer, output="eps")


@pytest.mark.parametrize("external", [False, True])
def test_a_file_in_float16_is_calibrated_in_float32(place, tmp_path, model, external):
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = 10
    onnx.save(model, place / "unet.onnx", save_as_external_data=external, location="w.bin", size_threshold=256)
    bundle = run(place, tmp_path)
    made = onnx.load(bundle.float_unet)
    onnx.checker.check_model(made, full_check=True)
    assert {v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)} == {1}
    assert not [t.name for t in made.graph.initializer if t.data_type == 10]
    feeds = make_feeds(2)
    half = answers(place / "unet.onnx", {name: rows.astype(np.float16) for name, rows in feeds.items()})
    full = answers(bundle.float_unet, feeds)
    assert 0 < np.linalg.norm(full - half) < 1e-2 * np.linalg.norm(full)


def test_rows_become_prompts_and_a_fifth_of_them_is_held_back(place, tmp_path):
    bundle = run(place, tmp_path)
    rows = load_lines(bundle.prompts, "prompts")
    assert [row["text"] for row in rows] == [f"row {i}" for i in range(20)]
    assert [row["split"] for row in rows] == ["calib"] * 16 + ["validate"] * 4
    assert json.loads(bundle.scheduler.read_text()) == {"clip_sample": False, **SCHEDULER}
