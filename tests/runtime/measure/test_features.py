from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from quaver.runtime.errors import RecipeError
from quaver.runtime.measure import features, panns, vggish

RATE = 16_000
NOWHERE = Path("nowhere/probe.onnx")


def clips(count: int, samples: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, size=(count, samples)).astype(np.float32)


@pytest.fixture
def listener(tmp_path: Path) -> Path:
    """A graph whose features are the first four samples, and whose logits are the next three."""
    onnx = pytest.importorskip("onnx")
    from tests.runtime.conftest import save_graph

    path = tmp_path / "listener.onnx"
    weights = {"at": np.array([0]), "mid": np.array([4]), "end": np.array([7]), "axis": np.array([1])}
    nodes = [
        ("Slice", ["waveform", "at", "mid", "axis"], ["features"]),
        ("Slice", ["waveform", "mid", "end", "axis"], ["family"]),
    ]
    save_graph(path, nodes, [("waveform", "float32", ["B", "N"])], ("features", "float32", ["B", 4]), weights)
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("family", 1, ["B", 3]))
    onnx.save(model, path)
    return path


def test_a_graph_of_ones_own_is_a_network_with_a_name_of_its_own(listener: Path):
    network = features.open_network(f"onnx:{listener}", rate=RATE, probe=NOWHERE)
    heard = network.hear({"waveform": clips(3)})
    assert (network.name, network.distance) == ("listener", "Frechet distance (listener)")
    assert np.array_equal(heard.features, clips(3)[:, :4]) and np.array_equal(heard.logits["family"], clips(3)[:, 4:7])
    assert network.note is None and network.read is None


def test_the_probe_is_never_called_fad(listener: Path):
    network = features.open_network("probe", rate=RATE, probe=listener)
    assert network.distance == "Frechet distance (embedded probe)" and "never" in str(network.note)
    assert np.array_equal(network.hear({"waveform": clips(2)}).features, clips(2)[:, :4])


def test_clips_of_another_rate_are_resampled_and_the_note_says_so(listener: Path):
    network = features.open_network(f"onnx:{listener}@8000", rate=RATE, probe=NOWHERE)
    time = np.arange(RATE) / RATE
    low = np.sin(2 * np.pi * 440 * time)[None].astype(np.float32)
    assert "16000 to 8000 Hz" in str(network.note)
    found = features.resampled(low, RATE, 8000)
    assert found[0, 100:-100] == pytest.approx(low[0, ::2][100:-100], abs=2e-3)
    assert np.array_equal(network.hear({"waveform": low}).features, found[:, :4])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("probe", "this bundle has no probe.onnx.*onnx:FILE"),
        ("onnx:nothing.onnx", "no feature network at nothing.onnx"),
        ("panns:nothing.pth", "Cnn14_16k_mAP=0.438.pth from zenodo.org"),
        ("vggish:nothing.pth", "vggish-10086976.pth from github.com"),
        pytest.param(
            "clap:nobody/nothing",
            "CLAP is not at nobody/nothing.*hf download laion/clap-htsat-unfused",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_network_that_is_not_here_says_what_to_type(spec: str, says: str):
    with pytest.raises(features.NetworkMissing, match=says):
        features.open_network(spec, rate=RATE, probe=NOWHERE)


def test_a_package_that_is_not_installed_is_named_with_its_command():
    with pytest.raises(features.NetworkMissing, match="nonesuch is not installed: pip install nonesuch-audio"):
        features.bring("nonesuch.models", "nonesuch-audio")


def test_an_unknown_network_names_the_nearest_and_a_rate_must_be_a_number(listener: Path):
    with pytest.raises(RecipeError, match="did you mean 'vggish'"):
        features.open_network("vgish", rate=RATE, probe=NOWHERE)
    with pytest.raises(RecipeError, match="the rate is 'fast', expected a number of Hz"):
        features.open_network(f"onnx:{listener}@fast", rate=RATE, probe=NOWHERE)


def test_ones_own_opener_is_a_dotted_path():
    network = features.open_network(f"{__name__}:counting", rate=RATE, probe=NOWHERE)
    assert network.hear({"waveform": clips(5)}).features.tolist() == [[RATE]] * 5


def counting(where: str, *, rate: int, probe: Path) -> features.Network:
    return features.Network(
        "count", "distance", lambda heard: features.Heard(np.full((len(heard["waveform"]), 1), float(rate)))
    )


def test_panns_hears_clips_without_their_mean_and_two_seconds_at_least():
    found = panns.prepared(clips(2) + 0.25)
    assert found.shape == (2, 32_000) and found.mean() == pytest.approx(0, abs=1e-6)
    assert panns.prepared(clips(1, 40_000)).shape == (1, 40_000)


@pytest.fixture(scope="module")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLAP of a few thousand random weights, with a tokenizer of letters, as `save_pretrained` writes it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clap")
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(set("abcdefghijklmnopqrstuvwxyzĠ"))]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=60
    )
    text = {
        "vocab_size": len(letters), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 66, "projection_dim": 8,
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2],
        "num_hidden_layers": 2, "projection_dim": 8, "spec_size": 64, "num_mel_bins": 16, "window_size": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(folder)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, max_length_s=1, hop_length=160, frequency_max=7000, truncation="rand_trunc"
    )
    transformers.ClapProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_clap_hears_sound_and_reads_text_into_one_space(tiny_clap: Path):
    network = features.open_network(f"clap:{tiny_clap}", rate=RATE, probe=NOWHERE)
    heard, again = (network.hear({"waveform": clips(3)}).features for _ in range(2))
    assert network.read is not None
    texts = network.read(["a cello", "a drum that is loud"])
    assert heard.shape == (3, 8) and texts.shape == (2, 8)
    assert np.linalg.norm(heard, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert np.linalg.norm(texts, axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert np.array_equal(heard, again) and np.ptp(heard, axis=0).max() > 0


@pytest.mark.slow
def test_clap_hears_the_beginning_of_a_clip_that_is_too_long(tiny_clap: Path):
    network = features.open_network(f"clap:{tiny_clap}", rate=RATE, probe=NOWHERE)
    long = clips(2, 3 * RATE)
    whole, start = (network.hear({"waveform": part}).features for part in (long, long[:, :RATE]))
    assert np.array_equal(whole, start)


def test_weights_are_those_a_spec_names_and_that_are_here(tmp_path: Path):
    at, graph, folder = tmp_path / "a@b" / "ear.onnx", tmp_path / "onnx" / "ear.onnx", tmp_path / "clap"
    for path in (at, graph, folder / "config.json"):
        path.parent.mkdir()
        path.write_bytes(b"")
    named = [f"onnx:{at}@8000", f"onnx:{graph}", f"clap:{folder}", f"panns:{graph}", f"vggish:{graph}"]
    assert [features.weights(spec) for spec in named] == [[at], [graph], [folder], [graph], [graph]]
    for spec in ("probe", "my.module:opener", "unknown", f"onnx:{folder}.onnx", "panns:nothing", "clap:no id at all"):
        assert features.weights(spec) == []


def test_a_network_whose_package_is_not_here_has_no_weights(monkeypatch: pytest.MonkeyPatch):
    for module in ("torch", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    assert features.weights("vggish") == features.weights("clap") == []


def test_weights_that_no_spec_names_are_those_in_the_caches_that_openers_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Files that are no weights: each opener that has its package refuses the very file that is found for it."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    files = {
        "panns": [tmp_path / "panns_data" / file for file, _ in panns.FORMS.values()],
        "vggish": [tmp_path / "hub" / "checkpoints" / vggish.FILE],
    }
    for name, paths in files.items():
        monkeypatch.setattr(f"quaver.runtime.measure.{name}.bring", packages(torch))
        assert features.weights(name) == []
        for path in paths:
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(b"no weights")
        assert features.weights(name) == paths
        with pytest.raises(features.NetworkMissing, match=str(paths[0])):
            features.open_network(name, rate=RATE, probe=NOWHERE)


def packages(torch: ModuleType) -> Callable[..., Any]:
    """Packages that have whatever is asked of them, beside torch itself."""
    return lambda module, install: torch if module == "torch" else MagicMock()
