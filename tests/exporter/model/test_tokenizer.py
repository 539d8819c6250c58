from types import SimpleNamespace

import pytest

from quaver.exporter.model import tokenizer
from quaver.exporter.model.tokenizer import save_tokenizer
from quaver.runtime.errors import RecipeError
from quaver.runtime.text import load_tokenizer, tokenize

tokenizers = pytest.importorskip("tokenizers")


def model(folder, tokens=0, published=""):
    return SimpleNamespace(folder=folder, tokens=tokens, tokenizer=published)


def write(folder, *words):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    made.save(str(folder / "tokenizer" / "tokenizer.json"))


@pytest.mark.parametrize("pad", ["<pad>", "[PAD]"])
def test_every_prompt_is_cut_and_padded_to_what_the_unet_takes(tmp_path, pad):
    write(tmp_path, "?", pad, "a", "dog")
    (path,) = save_tokenizer(model(tmp_path, tokens=3), tmp_path / "bundle.json")
    ids, mask = tokenize(load_tokenizer(path), ["a dog", "a a a a", ""])
    assert ids.tolist() == [[2, 3, 1], [2, 2, 2], [1, 1, 1]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_a_tokenizer_that_says_its_own_length_is_copied(tmp_path):
    write(tmp_path, "?")
    (path,) = save_tokenizer(model(tmp_path), tmp_path / "bundle.json")
    assert path.read_bytes() == (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    assert save_tokenizer(model(tmp_path / "other"), path) == []


def test_a_published_tokenizer_comes_from_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    write(tmp_path, "<pad>", "a")
    there = {("owner/text", "tokenizer.json"): str(tmp_path / "tokenizer" / "tokenizer.json")}
    monkeypatch.setattr(hub, "hf_hub_download", lambda *asked, local_files_only: there[asked])
    monkeypatch.setattr(tokenizer, "why_silent", lambda: "")
    (path,) = save_tokenizer(model(tmp_path / "m", 4, "owner/text"), tmp_path / "bundle.json")
    assert tokenize(load_tokenizer(path), ["a"])[0].tolist() == [[1, 0, 0, 0]]
    with pytest.raises(RecipeError, match=r"has no tokenizer/tokenizer\.json, and the hub did not give owner/gone "):
        save_tokenizer(model(tmp_path / "m", 4, "owner/gone"), path)


def test_a_tokenizer_that_the_index_names_and_the_folder_lacks_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"tokenizer": ["transformers", "x"], "tokenizer_2": [null, null]}')
    with pytest.raises(RecipeError, match=r"has no tokenizer/, which its model_index\.json names: copy the whole fold"):
        save_tokenizer(model(tmp_path), tmp_path / "bundle.json")
    assert save_tokenizer(model(tmp_path), tmp_path / "bundle.json", "tokenizer_2") == []


def test_what_cannot_pad_or_is_no_tokenizer_is_refused(tmp_path):
    write(tmp_path, "?", "a")
    with pytest.raises(RecipeError, match=r"no token to pad with, expected <pad> or \[PAD\]"):
        save_tokenizer(model(tmp_path, 4), tmp_path / "bundle.json")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeError, match="is not a tokenizer"):
        save_tokenizer(model(tmp_path, 4), tmp_path / "bundle.json")
