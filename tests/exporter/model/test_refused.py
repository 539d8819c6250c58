"""Other people's ONNX files: what is refused, and in which words."""

import re

import numpy as np
import pytest

from quaver.exporter.model.onnxfile import referenced_files
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from tests.exporter.model.foreign import SCHEDULER, refused, samples, scaled_by_time

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


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
@pytest.mark.parametrize("where", ["inside", "beside", "node"])
def test_weights_that_are_not_finite_are_named(place, tmp_path, model, value, where):
    tensor = next(t for t in model.graph.initializer if t.name == "block.conv1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 2, 1, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if where == "node":
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        model.graph.initializer.remove(tensor)
    onnx.save(model, place / "unet.onnx", save_as_external_data=where == "beside", location="w.bin")
    refused(place, tmp_path, r"the weight 'block\.conv1\.weight' has 1 of 9216 values that are not finite")


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
    samples(place, x_t=np.zeros((4, 4, 8, 8)), t=np.zeros((4, 2)))
    refused(place, tmp_path, r"model\.samples has t \[4, 2\], expected one number a sample")
    samples(place, x_t=np.zeros((4, 4, 8, 8)), t=np.array(["a", "b", "c", "d"]))
    refused(place, tmp_path, r"'t' is <U1, expected numbers")
    samples(place, x_t=np.zeros((4, 4, 8, 8), np.complex64), t=np.zeros(4))
    refused(place, tmp_path, r"'x_t' is complex64, expected numbers")
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


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.json", None, r"none\.json does not exist: model\.scheduler must name a sched"),
        ("", None, r"source cannot be read \(Is a directory\): model\.scheduler must name a sched"),
        ("a.json", "[1, 2]", r"a\.json holds list, expected a JSON object: model\.scheduler must"),
        ("a.json", "5", r"a\.json holds int, expected a JSON object"),
        ("a.json", "{", r"a\.json is not JSON"),
    ],
)
def test_a_scheduler_that_is_none_names_the_key_and_the_file(place, tmp_path, name, text, words):
    if text is not None:
        (place / name).write_text(text)
    refused(place, tmp_path, words, scheduler=str(place / name))


def test_a_scheduler_without_numbers_names_what_is_none(place, tmp_path):
    words = "beta_start = 'x', expected a number"
    refused(place, tmp_path, words, error=ArtifactError, scheduler={**SCHEDULER, "beta_start": "x"})


@pytest.mark.parametrize("latent", [(8, 8), (4, -8, 8), (4, 0, 8), (4, 8, 8, 1)])
def test_a_latent_that_is_none_is_said_as_it_was_written(place, tmp_path, latent):
    words = re.escape(f"model.latent is {list(latent)}, expected [C, H, W], each 1 or more")
    refused(place, tmp_path, words, latent=latent)


def test_a_time_that_is_a_timestep_and_a_noise_level_is_refused(place, tmp_path):
    refused(place, tmp_path, r"model\.timestep is 't' and model\.sigma 't': .* set one", timestep="t", sigma="t")


def test_a_network_that_predicts_variances_too_is_refused(place, tmp_path, model):
    made = scaled_by_time(("t", ["B"]), before=[("Identity", ["t"], ["rows"])])
    made.graph.node[-1].output[0] = "half"
    made.graph.node.append(helper.make_node("Concat", ["half", "half"], ["out"], axis=1))
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    refused(place, tmp_path, r"expected as much as it was asked", made, (RecipeError, EngineError), samples="")
