"""Which files of a repository are fetched, at which commit, and what is said when they do not all come."""

import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from quaver.exporter.model import hub as model_hub
from quaver.exporter.model.hub import SETTINGS, fetch, is_hub_id, wanted_files
from quaver.exporter.model.source import model_folder
from quaver.runtime.errors import RecipeError

hub, constants = pytest.importorskip("huggingface_hub"), pytest.importorskip("huggingface_hub.constants")
COMMIT = "c" * 40
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": [None, None],
    "text_encoder_2": [None, None],
}


ASK = """
from pathlib import Path
from quaver.exporter.model.hub import fetch
from quaver.exporter.model.tokenizer import download
for ask in (lambda: fetch("owner/model"), lambda: fetch("owner/none"), lambda: download("a/b", Path("m"))):
    try:
        ask()
    except Exception as error:
        print(error)
"""


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A snapshot in a cache, offline: function of its files, to the snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def fill(files, revision="main"):
        root = write(tmp_path / "hub" / "models--owner--model", {f"refs/{revision}": COMMIT})
        return write(root / "snapshots" / COMMIT, files)

    return fill


def test_of_a_pipeline_the_networks_that_are_traced_are_wanted_each_once(tmp_path):
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "../model-2-of-2.safetensors"}}
    write(
        tmp_path,
        {"model_index.json": json.dumps(INDEX), "text_encoder/model.safetensors.index.json": json.dumps(shards)},
    )
    there = [
        "model_index.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.safetensors.index.json",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
    ]
    assert wanted_files(tmp_path, there) == [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model-1-of-2.safetensors",
        "text_encoder/model-2-of-2.safetensors",
    ]


def test_of_other_layouts_the_files_of_their_authors(tmp_path):
    tango = ["main_config.json", "pytorch_model_main.bin", "pytorch_model_vae.bin", "pytorch_model_stft.bin"]
    assert wanted_files(tmp_path, tango) == tango[:3]
    original = ["m.ckpt", "m.yaml", "bigvgan/g.pt", "CLAP/c.pth", "README.md"]
    assert wanted_files(tmp_path, original) == ["m.ckpt", "CLAP/c.pth", "bigvgan/g.pt"]
    assert wanted_files(tmp_path, ["unet/config.json"])[1] == "unet/diffusion_pytorch_model.safetensors"
    for names, told in ((["a.ckpt", "b.ckpt"], "a.ckpt, b.ckpt"), (["README.md"], "none")):
        with pytest.raises(RecipeError, match=rf"no model_index.json, and of checkpoints {told}: download one"):
            wanted_files(tmp_path / "snapshots" / "c", names)


def test_what_is_fetched_is_of_one_commit(tmp_path, monkeypatch):
    asked, snapshot = [], tmp_path / COMMIT

    def download(source, revision, allow_patterns, local_files_only):
        assert not local_files_only
        asked.append((revision, tuple(allow_patterns)))
        return str(
            write(snapshot, {name: "{}" for name in allow_patterns if "*" not in name} | {"unet/config.json": "{}"})
        )

    listed = {COMMIT: ["unet/config.json", "unet/diffusion_pytorch_model.bin"]}
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "list_repo_files", lambda source, revision: listed[revision])
    monkeypatch.setattr(model_hub, "why_silent", lambda: "")
    assert fetch("owner/model", "v1") == snapshot
    assert asked == [("v1", SETTINGS), (COMMIT, ("unet/config.json", "unet/diffusion_pytorch_model.bin"))]
    fetch("owner/model")
    assert asked[2:] == [(None, SETTINGS)]  # what is there is not asked for again


def test_offline_a_part_is_refused_and_named(cache):
    snapshot = cache({"unet/config.json": "{}"})
    words = r"lacks unet/diffusion_pytorch_model\.safetensors: the hub cannot be asked \(.*HF_HUB_OFFLINE.*\), run this"
    with pytest.raises(RecipeError, match=words) as refused:
        fetch("owner/model")
    assert str(refused.value).endswith(
        f"or there hf download owner/model --revision {COMMIT} --include 'unet/diffusion_pytorch_model.safetensors'"
    )
    write(snapshot, {"unet/diffusion_pytorch_model.safetensors": ""})
    assert fetch("owner/model") == fetch("owner/model", COMMIT) == snapshot


def test_offline_a_tokenizer_that_the_index_names_is_missed(cache):
    index = {"unet": INDEX["unet"], "scheduler": ["diffusers", "x"], "tokenizer": ["transformers", "y"]}
    unet = {"unet/config.json": "{}", "unet/diffusion_pytorch_model.bin": ""}
    snapshot = cache({"model_index.json": json.dumps(index), "scheduler/scheduler_config.json": "{}", **unet})
    with pytest.raises(RecipeError, match=r"lacks tokenizer/tokenizer_config\.json: .* --include 'tokenizer/\*'$"):
        fetch("owner/model")
    write(snapshot, {"tokenizer/tokenizer_config.json": "{}"})
    assert fetch("owner/model") == snapshot


def test_what_the_hub_has_not_either_is_not_asked_for_again(cache, monkeypatch):
    cache({"unet/config.json": "{}"})
    monkeypatch.setattr(model_hub, "why_silent", lambda: "")
    monkeypatch.setattr(hub, "list_repo_files", lambda source, revision: ["unet/config.json"])
    with pytest.raises(RecipeError, match=r"safetensors: nor has the hub at that commit, name another model\.revision"):
        fetch("owner/model")


def test_a_hub_that_cannot_be_reached_is_asked_once(cache, tmp_path):
    cache({"unet/config.json": "{}"})
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                connection, _ = server.accept()
                with connection:
                    asked.append(connection.recv(999).split(b"\r\n")[0].decode())

        threading.Thread(target=hang_up, daemon=True).start()
        at = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": at, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    part, none, tokenizer = done.stdout.splitlines()
    assert asked.count("HEAD / HTTP/1.1") == 3, "one for each"
    assert not [line for line in asked if "owner" in line or "a/b" in line], "and nothing of a repository"
    assert "lacks unet/diffusion_pytorch_model.safetensors: the hub cannot be asked (Server disconnected" in part
    assert "the hub did not give it (it cannot be asked, Server disconnected" in none and "run this again where" in none
    assert tokenizer.endswith("put its tokenizer.json there, or fetch it with: hf download a/b tokenizer.json")


def test_a_hub_that_answers_with_its_own_failure_cannot_be_asked(monkeypatch):
    for status, words in ((200, ""), (404, ""), (503, "it answers 503")):
        answer = lambda *asked, status=status, **more: SimpleNamespace(status_code=status)  # noqa: E731
        monkeypatch.setattr("huggingface_hub.utils.http_backoff", answer)
        assert model_hub.why_silent() == words


def test_a_revision_is_a_branch_or_tag_of_the_cache_too(cache):
    snapshot = cache({"unet/config.json": "{}", "unet/diffusion_pytorch_model.bin": ""}, revision="v1")
    assert model_folder("owner/model", "v1") == snapshot
    with pytest.raises(RecipeError, match=r"'owner/model' is no folder here, and the hub did not give it"):
        model_folder("owner/model")


def test_only_a_hub_id_has_revisions(tmp_path):
    with pytest.raises(RecipeError, match=r"model\.revision is 'v1', and .* is no hub id: leave it out"):
        model_folder(str(tmp_path), "v1")
    assert is_hub_id("owner/model") and not any(
        map(is_hub_id, ("demo", "a/b/c", "./model", "tests/exporter", "gone/m.ckpt"))
    )


def test_a_hub_that_does_not_answer_says_what_else_can_be_named(monkeypatch):
    def offline(*asked, **more):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.setattr(model_hub, "why_silent", lambda: "")
    with pytest.raises(
        RecipeError, match=r"the hub did not give it \(no network\): name a diffusers folder, or 'demo'"
    ):
        fetch("owner/model")


def test_the_variables_of_the_hub_are_heeded(cache, tmp_path):
    snapshot = cache({"unet/config.json": "{}", "unet/diffusion_pytorch_model.bin": ""})
    code = "from quaver.exporter.model.hub import fetch; print(fetch('owner/model'))"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(snapshot), done.stderr
