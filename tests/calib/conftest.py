"""A bundle of a few kilobytes: a two-layer denoiser made by hand, with all that a session reads around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from quaver.runtime.artifact import Stamp, digest_file, save_json, save_lines
from quaver.runtime.bundle import Bundle

C, T, F, D, HIDDEN = 3, 4, 5, 6, 8
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def unet(*, offset: float = 0.0, gain: float = 1.0) -> onnx.ModelProto:
    """conv_in, an embedding of (t, class) added, tanh, conv_out; `offset` and `gain` spoil it for a stand-in engine.

    out = gain * conv_out(tanh(conv_in(x) + W_t t / 1000 + W_c c)) + offset
    """
    rng = np.random.default_rng(7)
    weights = {
        "w_in": rng.standard_normal((HIDDEN, C, 3, 3)) * 0.3,
        "w_time": rng.standard_normal((1, HIDDEN)),
        "w_class": rng.standard_normal((D, HIDDEN)) * 0.5,
        "w_out": rng.standard_normal((C, HIDDEN, 3, 3)) * 0.2,
        "thousand": np.array(1000.0),
        "gain": np.array(gain),
        "offset": np.array(offset),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["sample", "w_in"], ["h"], "conv_in", pads=[1, 1, 1, 1]),
        node("Cast", ["timestep"], ["t_float"], to=TensorProto.FLOAT),
        node("Div", ["t_float", "thousand"], ["t_unit"]),
        node("Unsqueeze", ["t_unit", "axis_1"], ["t_row"]),
        node("MatMul", ["t_row", "w_time"], ["t_emb"], "time"),
        node("MatMul", ["class_labels", "w_class"], ["c_emb"], "class"),
        node("Add", ["t_emb", "c_emb"], ["emb"]),
        node("Unsqueeze", ["emb", "axes_23"], ["emb_4d"]),
        node("Add", ["h", "emb_4d"], ["h_emb"]),
        node("Tanh", ["h_emb"], ["h_act"]),
        node("Conv", ["h_act", "w_out"], ["raw"], "conv_out", pads=[1, 1, 1, 1]),
        node("Mul", ["raw", "gain"], ["scaled"]),
        node("Add", ["scaled", "offset"], ["out"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in weights.items()]
    constants += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("axis_1", [1]), ("axes_23", [2, 3]))]
    inputs = [("sample", 1, ["B", C, T, F]), ("timestep", 7, ["B"]), ("class_labels", 1, ["B", D])]
    return model(nodes, inputs, [("out", 1, ["B", C, T, F])], constants)


def model(nodes: list, inputs: list, outputs: list, constants: list | None = None) -> onnx.ModelProto:
    """A checked model from nodes, (name, type, shape) of its ends, and initializers."""
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "tiny", *ends, constants or [])
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(built, full_check=True)
    return built


def text_encoder() -> onnx.ModelProto:
    """The mean of one random row per token."""
    table = np.random.default_rng(1).standard_normal((16, D)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis_1"], ["text_embeds"], keepdims=0),
        helper.make_node("Identity", ["attention_mask"], ["unused"]),
    ]
    inputs = [("input_ids", 7, ["B", "L"]), ("attention_mask", 7, ["B", "L"])]
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis_1")]
    return model(nodes, inputs, [("text_embeds", 1, ["B", D])], constants)


def same(name: str, output: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [name], [output])]
    return model(nodes, [(name, 1, ["B", C, T, F])], [(output, 1, ["B", C, T, F])])


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A traced bundle with eight calibration prompts, and an "ort-cpu" engine that is off by a gain and an offset."""
    made = Bundle(tmp_path / "tiny")
    for path in (made.tokenizer, made.scheduler):
        path.parent.mkdir(parents=True)
    onnx.save(unet(), made.float_unet)
    onnx.save(unet(offset=0.01, gain=0.9), made.qdq("ort-cpu"))
    parts = {"text_encoder": text_encoder(), "vae_decoder": same("latents", "mel"), "vocoder": same("mel", "waveform")}
    for name, part in parts.items():
        onnx.save(part, made.component(name))
    made.scheduler.write_text(json.dumps(SCHEDULER))
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c", "d", "e", "f"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=4)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(made.tokenizer))
    card = {"family": "audioldm", "latent_shape": [C, T, F], "sample_rate": 16000, "embedding": D}
    card["components"] = {name: digest_file(made.component(name)) for name in parts}
    save_json(made.card, card, Stamp("trace"))
    rows = [{"id": f"p{i}", "text": " ".join("abcdef"[i % 6 :] or "a"), "split": "calib"} for i in range(8)]
    save_lines(made.prompts, [*rows, {"id": "v0", "text": "f e", "split": "validate"}], Stamp("prompts"))
    return made
