"""A bundle small enough to make in a moment: the family audioldm with random graphs of one or two layers each."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.artifact import Stamp, digest_file, save_json
from quaver.runtime.backends.onnxruntime import OnnxEngine
from quaver.runtime.bundle import Bundle

C, T, F, D = 2, 4, 4, 6  # channels, time, frequency, embedding
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "v_prediction",
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "a", "soft", "low", "cello", "note", "bright", "drum"]


def save_graph(path: Path, nodes, inputs, output, weights) -> None:
    """Write an ONNX file; inputs and output are (name, "int64" or "float32", shape)."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    info = [helper.make_tensor_value_info(n, kinds[k], s) for n, k, s in [*inputs, output]]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in nodes],
        path.stem,
        info[:-1],
        info[-1:],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def text_encoder(path: Path) -> None:
    table = np.random.default_rng(1).standard_normal((len(WORDS), D)).astype(np.float32)
    nodes = [
        ("Gather", ["table", "input_ids"], ["tokens"]),
        ("Cast", ["attention_mask"], ["mask"], {"to": 1}),
        ("Unsqueeze", ["mask", "last"], ["mask3"]),
        ("Mul", ["tokens", "mask3"], ["kept"]),
        ("ReduceSum", ["kept", "one"], ["summed"], {"keepdims": 0}),
        ("LpNormalization", ["summed"], ["text_embeds"], {"axis": -1, "p": 2}),
    ]
    inputs = [("input_ids", "int64", ["B", "L"]), ("attention_mask", "int64", ["B", "L"])]
    weights = {"table": table, "last": np.array([2]), "one": np.array([1])}
    save_graph(path, nodes, inputs, ("text_embeds", "float32", ["B", D]), weights)


def unet(path: Path, *, quantized: bool) -> None:
    rng = np.random.default_rng(2)
    weights = {
        "w1": rng.standard_normal((C, C, 3, 3)).astype(np.float32) * 0.3,
        "w2": rng.standard_normal((C, C, 3, 3)).astype(np.float32) * 0.3,
        "wc": rng.standard_normal((D, C)).astype(np.float32),
        "wt": np.full((1, C), 1e-3, dtype=np.float32),
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "image": np.array([2, 3]),
        "row": np.array([1]),
    }
    coded = [
        ("QuantizeLinear", ["sample", "scale", "zero"], ["q"]),
        ("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
    ]
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        *(coded if quantized else [("Identity", ["sample"], ["x"])]),
        ("Conv", ["x", "w1"], ["h"], same),
        ("MatMul", ["class_labels", "wc"], ["c"]),
        ("Cast", ["timestep"], ["tf"], {"to": 1}),
        ("Unsqueeze", ["tf", "row"], ["t1"]),
        ("MatMul", ["t1", "wt"], ["te"]),
        ("Add", ["c", "te"], ["ct"]),
        ("Unsqueeze", ["ct", "image"], ["bias"]),
        ("Add", ["h", "bias"], ["hb"]),
        ("Tanh", ["hb"], ["ht"]),
        ("Conv", ["ht", "w2"], ["out"], same),
    ]
    inputs = [
        ("sample", "float32", ["B", C, T, F]),
        ("timestep", "int64", ["B"]),
        ("class_labels", "float32", ["B", D]),
    ]
    save_graph(path, nodes, inputs, ("out", "float32", ["B", C, T, F]), weights)


def decoders(bundle: Bundle) -> None:
    w = np.random.default_rng(3).standard_normal((C, 1, 4, 4)).astype(np.float32) * 0.2
    up = [("ConvTranspose", ["latents", "w"], ["mel"], {"strides": [4, 4]})]
    mel = ("mel", "float32", ["B", 1, 4 * T, 4 * F])
    save_graph(bundle.component("vae_decoder"), up, [("latents", "float32", ["B", C, T, F])], mel, {"w": w})
    flat = [("Reshape", ["mel", "shape"], ["line"]), ("Tanh", ["line"], ["waveform"])]
    out = ("waveform", "float32", ["B", 16 * T * F])
    save_graph(bundle.component("vocoder"), flat, [mel], out, {"shape": np.array([0, 16 * T * F])})


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    made.enable_truncation(8)
    made.enable_padding(pad_id=0, pad_token="[PAD]")
    path.parent.mkdir(parents=True)
    made.save(str(path))


def make_bundle(root: Path) -> Bundle:
    root.mkdir(parents=True)
    bundle = Bundle(root)
    text_encoder(bundle.component("text_encoder"))
    decoders(bundle)
    unet(bundle.float_unet, quantized=False)
    unet(bundle.qdq("ort-cpu"), quantized=True)
    tokenizer(bundle.tokenizer)
    bundle.scheduler.parent.mkdir()
    bundle.scheduler.write_text(json.dumps(SCHEDULER))
    card = {
        "family": "audioldm",
        "latent_shape": [C, T, F],
        "embedding": D,
        "sample_rate": 16_000,
        "sampler": {"sampler": "ddim", "steps": 5, "eta": 0.0, "guidance": 2.0},
        "components": {n: digest_file(bundle.component(n)) for n in ("text_encoder", "vae_decoder", "vocoder")},
    }
    save_json(bundle.card, card, Stamp("trace"))
    return bundle


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory) -> Bundle:
    """The tiny bundle; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def tiny_bundle(made_bundle, tmp_path) -> Bundle:
    """A copy of the tiny bundle, to be broken."""
    return Bundle(Path(shutil.copytree(made_bundle.root, tmp_path / "tiny")))


@pytest.fixture
def spoil_engine(monkeypatch):
    """A function that has the U-Net answer NaN in the last row of its batch at one of its calls, counted from 1."""

    def spoil(call):
        original, calls = OnnxEngine.__call__, itertools.count(1)

        def spoiled(engine, feeds):
            out = original(engine, feeds)
            if "timestep" in feeds and next(calls) == call:
                out[-1] = np.nan
            return out

        monkeypatch.setattr(OnnxEngine, "__call__", spoiled)

    return spoil
