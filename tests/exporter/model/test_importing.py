"""Other people's ONNX files: what they become, and what is refused."""

import json

import numpy as np
import pytest

from quaver.calib.graph import layers, read_model
from quaver.exporter.model.onnxfile import referenced_files
from quaver.exporter.trace import ModelSettings, trace
from quaver.runtime.artifact import Stamp, load_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.family import family_of, read_card
from quaver.runtime.progress import quiet

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}


@pytest.fixture
def model(example):
    """A fresh copy of its model, to be spoiled."""
    return example.denoiser(np.random.default_rng(0))


@pytest.fixture
def place(example, tmp_path):
    """A folder with samples for it."""
    example.main([str(tmp_path / "source")])
    return tmp_path / "source"


def run(place, tmp_path, model=None, **settings):
    if model is not None:
        onnx.save(model, place / "unet.onnx")
    bundle = Bundle(tmp_path / "bundle")
    given = {"samples": str(place / "samples.npz"), "scheduler": SCHEDULER, **settings}
    trace(
        bundle,
        ModelSettings(family="onnx", source=str(place / "unet.onnx"), **given),
        stamp=Stamp("trace"),
        progress=quiet(),
    )
    return bundle


def refused(place, tmp_path, match, model=None, error=RecipeError, **settings):
    with pytest.raises(error, match=match):
        run(place, tmp_path, model, **settings)
    left = [path.name for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert left == []


def answers(path, feeds, output="eps"):
    return ort.InferenceSession(str(path)).run([output], feeds)[0]


def make_feeds(batch, seed=0):
    draw = np.random.default_rng(seed)
    return {
        "x": draw.standard_normal((batch, 4, 8, 8), np.float32),
        "t": np.linspace(1, 999, batch).astype(np.float32),
        "context": draw.standard_normal((batch, 6, 16), np.float32),
    }


def agrees(bundle, place, batches=(1, 3)):
    for batch in batches:
        feeds = make_feeds(batch, batch)
        expected = answers(place / "unet.onnx", feeds)
        found = answers(bundle.float_unet, feeds)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


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


def simple(nodes, time, *, constants=None, output=(4, 8, 8)):
    """x [B, 4, 8, 8] and a time -> out, of a few nodes."""
    infos = [("x", ["B", 4, 8, 8]), time, ("out", ["B", *output])]
    values = [helper.make_tensor_value_info(name, 1, dims) for name, dims in infos]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3:] or ({},))[0]) for n in nodes], "g", values[:2], values[2:], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scaled_by_time(time, *, before=()):
    """out = x * t / 1000 for each row."""
    return simple(
        [
            *before,
            ("Div", ["rows", "thousand"], ["u"]),
            ("Reshape", ["u", "column"], ["c"]),
            ("Mul", ["x", "c"], ["out"]),
        ],
        time,
        constants={"thousand": np.float32(1000), "column": np.array([-1, 1, 1, 1]), "zero": np.array([0])},
    )


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


# what is refused


def test_a_truncated_file_and_one_that_is_no_onnx(place, tmp_path):
    whole = (place / "unet.onnx").read_bytes()
    for data in (whole[: len(whole) // 2], b"hello", b"", whole[:-1]):
        (place / "unet.onnx").write_bytes(data)
        refused(place, tmp_path, r"unet\.onnx (is no ONNX file|holds no ONNX graph)")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", ""])
def test_a_reference_out_of_the_models_folder_is_not_followed(place, tmp_path, model, location):
    onnx.save(model, place / "unet.onnx", save_as_external_data=True, location="w.bin", size_threshold=256)
    (place / "w.bin").rename(place.parent / "secret.bin")
    (place / "link.bin").symlink_to(place.parent / "secret.bin")
    held = onnx.load(place / "unet.onnx", load_external_data=False)
    for tensor in held.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (place / "unet.onnx").write_bytes(held.SerializeToString())
    refused(place, tmp_path, r"the weight '[\w.:]+' refers to '.*', outside the model's own folder: that is not opened")
    with pytest.raises(RecipeError, match="outside the model's own folder"):
        referenced_files(place / "unet.onnx")


def test_weights_that_are_missing_or_cut_are_named(place, tmp_path, model):
    onnx.save(model, place / "unet.onnx", save_as_external_data=True, location="w.bin", size_threshold=256)
    data = (place / "w.bin").read_bytes()
    (place / "w.bin").write_bytes(data[:-8])
    refused(place, tmp_path, r"the weight 'conv_out\.weight' is said to be \d+ bytes at \d+ of 'w\.bin' .* truncated")
    (place / "w.bin").unlink()
    refused(place, tmp_path, r"the file 'w\.bin' with the weight '[\w.:]+' is missing: copy it beside it")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("external", [False, True])
def test_weights_that_are_not_finite_are_named(place, tmp_path, model, value, external):
    tensor = next(t for t in model.graph.initializer if t.name == "block.conv1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 2, 1, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, place / "unet.onnx", save_as_external_data=external, location="w.bin")
    refused(place, tmp_path, r"the weight 'block\.conv1\.weight' has 1 of 9216 values that are not finite")


def spoil(change):
    def spoiled(model):
        change(model)
        return model

    return spoiled


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.opset_import[0].__setattr__("version", 11), r"has opset 11, expected 13 or later"),
        (
            lambda m: m.graph.node[5].__setattr__("domain", "com.microsoft"),
            r"operators that are no standard ONNX \(com\.microsoft\.Unsqueeze\)",
        ),
        (
            lambda m: m.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s"], ["d"])),
            r"is quantized already \(1 such nodes\)",
        ),
        (
            lambda m: m.graph.input.append(helper.make_tensor_value_info("mask", 1, ["N", 6])),
            r"nothing feeds the input 'mask': put rows",
        ),
    ],
)
def test_a_graph_that_cannot_be_read_says_why(place, tmp_path, model, change, match):
    change(model)
    refused(place, tmp_path, match, model, timestep="t")


def samples(place, **arrays):
    found = {"context": np.zeros((4, 6, 16), np.float32), **arrays}
    np.savez(place / "samples.npz", **{k: v for k, v in found.items() if v is not None})


def test_samples_that_do_not_fit_are_named(place, tmp_path):
    samples(place, contxt=np.zeros((4, 6, 16)))
    refused(place, tmp_path, r"unknown input 'contxt'; did you mean 'context'")
    samples(place, context=np.zeros((4, 5, 16)))
    refused(place, tmp_path, r"the rows of 'context' are \[4, 5, 16\], the graph takes float32 \[\?, 6, 16\]")
    samples(place, x_t=np.zeros((4, 4, 8, 8)))
    refused(place, tmp_path, r"holds one of x and t: give both")
    samples(place, x_t=np.zeros((3, 4, 8, 8)), t=np.zeros(3))
    refused(place, tmp_path, r"has rows .*: give every input as many")
    samples(place, x_t=np.zeros((4, 4, 8, 8)), t=np.full(4, 1000))
    refused(place, tmp_path, r"timesteps 1000 to 1000, the schedule has 0 to 999")
    samples(place, context=np.full((4, 6, 16), np.nan))
    refused(place, tmp_path, r"'context' is not finite")
    samples(place, uncond_context=np.zeros((4, 6, 16)))
    refused(place, tmp_path, r"uncond_context is \[4, 6, 16\], expected \[1, 6, 16\]")
    np.savez(place / "samples.npz", context=np.array([{}], object))
    refused(place, tmp_path, r"cannot be read \(Object arrays cannot be loaded")
    refused(place, tmp_path, r"is neither \.npz nor \.safetensors", samples=str(place / "samples.pt"))
    refused(place, tmp_path, r"none\.npz does not exist", samples=str(place / "none.npz"))


def test_an_ambiguous_or_wrong_name_lists_what_there_is(place, tmp_path, model):
    refused(place, tmp_path, r"model\.sample: unknown sample 'y'; valid: context, t, x", sample="y")
    model.graph.input.append(helper.make_tensor_value_info("mask", 1, ["N", 1, 8, 8]))
    refused(place, tmp_path, r"2 of x float32 \[\?, 4, 8, 8\]; .* could be meant: set model\.sample", model)


def test_settings_that_are_missing_say_what_to_write(place, tmp_path):
    refused(place, tmp_path, r"model\.scheduler is not set: .* scheduler = \{", scheduler="")
    refused(place, tmp_path, r"latent \[C, H, W\] differs in dimension 2: .*9 in model\.latent", latent=(4, 8, 9))
    (place / "unet.onnx").unlink()
    refused(place, tmp_path, r"unet\.onnx does not exist: name an \.onnx file")


def test_a_network_that_predicts_variances_too_is_refused(place, tmp_path, model):
    made = scaled_by_time(("t", ["B"]), before=[("Identity", ["t"], ["rows"])])
    made.graph.node[-1].output[0] = "half"
    made.graph.node.append(helper.make_node("Concat", ["half", "half"], ["out"], axis=1))
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    refused(place, tmp_path, r"expected as much as it was asked", made, (RecipeError, EngineError), samples="")
