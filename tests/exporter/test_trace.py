import json
import shutil

import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, layers
from quaver.exporter.model import tracing
from quaver.exporter.model.source import load_unet
from quaver.exporter.model.source import model_folder as source_folder
from quaver.exporter.model.tracing import Traced, check, trace_parts
from quaver.exporter.trace import ModelSettings, latent_shape, trace
from quaver.runtime.artifact import Stamp, digest_file, read_stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import open_engine
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.family import read_card
from quaver.runtime.progress import quiet

onnx, torch = pytest.importorskip("onnx"), pytest.importorskip("torch")


def test_the_graph_answers_as_torch_does_for_any_batch(traced, model_folder):
    unet, draw = load_unet(model_folder), np.random.default_rng(3)
    with open_engine(traced.float_unet, threads=1) as engine, torch.no_grad():
        assert engine.inputs == ("sample", "timestep", "class_labels")
        for batch in (1, 5):
            x, c = draw.standard_normal((batch, 4, 8, 8), np.float32), draw.standard_normal((batch, 16), np.float32)
            t = np.arange(batch, dtype=np.int64) * 200
            expected = unet(torch.tensor(x), torch.tensor(t), None, class_labels=torch.tensor(c)).sample.numpy()
            answer = engine({"sample": x, "timestep": t, "class_labels": c})
            assert np.linalg.norm(answer - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_file_leaks_no_path_of_this_machine(traced):
    data = traced.float_unet.read_bytes()
    for word in (b".py", b"site-packages", b"/home", b"/tmp", b"stack_trace", b"File "):
        assert word not in data, word


def test_every_layer_is_named_by_its_module(traced, model_folder):
    modules = dict(load_unet(model_folder).named_modules())
    found = layers(onnx.load(traced.float_unet))
    assert {layer.name for layer in found} == {
        n for n, m in modules.items() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    }
    for layer in found:
        assert layer.weight.startswith(layer.name) and layer.node == layer.name


def test_only_the_module_path_stays_in_the_metadata(traced):
    model = onnx.load(traced.float_unet)
    assert {p.key for node in model.graph.node for p in node.metadata_props} == {MODULE_KEY}
    assert {p.key for p in model.metadata_props} == {"quaver.stamp"}


def test_weights_are_stored_once(traced, model_folder):
    stored = sum(len(t.raw_data) for t in onnx.load(traced.float_unet).graph.initializer)
    parameters = 4 * sum(p.numel() for p in load_unet(model_folder).parameters())
    assert parameters <= stored < 1.05 * parameters


def test_macs_equal_those_counted_in_torch(traced, model_folder):
    unet, counted = load_unet(model_folder), []

    def count(module, inputs, output):
        positions = output[0].numel() // module.weight.shape[0]
        counted.append(positions * module.weight.numel())

    for module in unet.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), torch.zeros(1).long(), None, class_labels=torch.zeros(1, 16))
    assert sum(layer.macs for layer in layers(onnx.load(traced.float_unet))) == sum(counted)


def test_the_card_says_what_the_runtime_needs(traced, model_folder):
    card = read_card(traced)
    assert card["latent_shape"] == [4, 8, 8] and card["embedding"] == 16 and card["prediction"] == "v_prediction"
    assert card["components"] == {} and card["source"] == model_folder.name
    assert card["parameters"] == sum(p.numel() for p in load_unet(model_folder).parameters())
    assert card["digests"]["unet.float.onnx"] == digest_file(traced.float_unet)
    assert read_stamp(traced.card) == read_stamp(traced.float_unet) == Stamp("trace")


def test_components_are_traced_in_a_row_each_fed_by_the_one_before():
    class Decoder(torch.nn.Module):
        def forward(self, latents):
            return latents.mean(1, keepdim=True).repeat_interleave(2, 2) * 3

    class Vocoder(torch.nn.Module):
        def forward(self, mel):
            return torch.tanh(mel).flatten(1)

    class Encoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return (input_ids * attention_mask).sum(1, keepdim=True).float()

    parts = {"text_encoder": Encoder(), "vae_decoder": Decoder(), "vocoder": Vocoder()}
    made = dict(trace_parts(parts, (4, 8, 8)))
    shapes = {name: [v.name for v in check(t, name).model.graph.output] for name, t in made.items()}
    assert shapes == {"text_encoder": ["text_embeds"], "vae_decoder": ["mel"], "vocoder": ["waveform"]}
    ids = made["text_encoder"].model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in ids] == ["batch", "length"]
    assert made["vocoder"].expected[0].shape == (2, 16 * 8)


def test_a_graph_that_differs_from_torch_is_refused():
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["b", 2])], [value("y", 1, ["b", 2])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.ones((2, 2), np.float32)
    with pytest.raises(EngineError, match=r"unet: ONNX differs from torch by .* allowed 1e-03"):
        check(Traced(model, {"x": x}, (x * 1.01,)), "unet")


def test_one_answer_of_several_that_is_not_a_number_is_refused():
    nodes = [onnx.helper.make_node(op, ["x"], [out]) for op, out in (("Identity", "y"), ("Log", "z"), ("Abs", "w"))]
    x, *answers = (onnx.helper.make_tensor_value_info(name, 1, ["b", 2]) for name in "xyzw")
    graph = onnx.helper.make_graph(nodes, "g", [x], answers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.full((2, 2), -1, np.float32)
    with pytest.raises(EngineError, match=r"unet: ONNX differs from torch by nan relative"):
        check(Traced(model, {"x": x}, (x, x, -x)), "unet")


def test_a_chaotic_network_may_differ_as_much_as_rounding_moves_it():
    class Chaos(torch.nn.Module):
        def forward(self, latents):
            for _ in range(4):
                latents = torch.sin(50 * latents)
            return latents

    made = dict(trace_parts({"vae_decoder": Chaos()}, (4, 8, 8)))["vae_decoder"]
    assert made.unrest > 0.01
    check(made, "vae_decoder")


def test_latent_length_comes_from_the_recipe_before_the_model():
    config = {"in_channels": 8, "sample_size": 128}
    assert latent_shape(config, ModelSettings()) == (8, 128, 16)
    assert latent_shape(config, ModelSettings(frames=256)) == (8, 256, 16)
    assert latent_shape(config | {"sample_size": [64, 16]}, ModelSettings()) == (8, 64, 16)
    with pytest.raises(RecipeError, match=r"set model\.frames"):
        latent_shape(config | {"sample_size": None}, ModelSettings())


def run(source, tmp_path, **settings):
    bundle = Bundle(tmp_path / "bundle")
    return trace(bundle, ModelSettings(source=str(source), **settings), stamp=Stamp("trace"), progress=quiet())


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"model\.source must name a diffusers folder"):
        run(tmp_path, tmp_path)


def test_another_network_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet3DConditionModel"}))
    with pytest.raises(RecipeError, match="is a UNet3DConditionModel, expected UNet2DConditionModel"):
        run(tmp_path, tmp_path)


def test_damaged_weights_are_refused_and_nothing_is_written(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RecipeError, match=r"unet/diffusion_pytorch_model.safetensors is damaged or ends early"):
        run(tmp_path / "model", tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_a_scheduler_of_another_process_is_refused_before_the_trace(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(flow))
    with pytest.raises(ArtifactError, match="is a FlowMatchEulerDiscreteScheduler and has no betas"):
        run(tmp_path / "model", tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_is_not_there_says_what_can_be_named(tmp_path):
    with pytest.raises(RecipeError, match=r"model\.source '.*gone' does not exist: name a diffusers folder, a check"):
        run(tmp_path / "gone", tmp_path)


def test_an_unknown_family_names_the_nearest(model_folder, tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'audioldm'"):
        run(model_folder, tmp_path, family="audioldm3")


def test_the_embedded_model_is_found_by_name():
    assert source_folder("demo").parts[-2:] == ("demo", "model")


def test_quiet_export_gives_the_log_level_back():
    import logging

    before = logging.root.manager.disable
    with tracing.quietly():
        pass
    assert logging.root.manager.disable == before
