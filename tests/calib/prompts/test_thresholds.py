"""Thresholds, and how well the topic model agrees with captions labelled by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import main
from quaver.calib.prompts import embedding
from quaver.calib.prompts.aspects import Aspect, load_aspects
from quaver.calib.prompts.thresholds import best_threshold, f1, labelled, measure, topics
from quaver.runtime.errors import QuaverError, RecipeError

DEFAULT = load_aspects()


def test_the_lexicon_agrees_with_held_out_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert np.mean([value for value, _ in measure().values()]) >= 0.85
    main([])
    assert all(json.loads(capsys.readouterr().out.splitlines()[-1])["reached"].values())


def test_the_labelled_captions_are_many_distinct_and_speak_of_everything() -> None:
    (train, a), (held, b) = labelled("train", DEFAULT), labelled("held-out", DEFAULT)
    assert len(train) + len(held) >= 220 and len(held) >= 100
    assert len({text.lower() for text in (*train, *held)}) == len(train) + len(held)
    assert a.sum(axis=0).min() >= 15 and b.sum(axis=0).min() >= 9
    assert a.any(axis=1).all() and b.any(axis=1).all()


def test_the_threshold_is_the_one_with_the_best_f1() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = np.round(np.clip(rng.normal(labels * 0.8, 0.7), 0, None), 1)
    grid = np.arange(0, 3, 0.05)
    brute = max(f1((scores > theta)[:, None], labels[:, None])[0] for theta in grid)
    theta = best_threshold(scores, labels)
    assert f1((scores > theta)[:, None], labels[:, None])[0] == brute
    assert best_threshold(scores, np.zeros(60, bool)) == 0


def test_f1_of_columns_by_hand() -> None:
    found, labels = np.array([[1, 0], [1, 0], [0, 0]], bool), np.array([[1, 0], [0, 0], [1, 0]], bool)
    assert f1(found, labels).tolist() == [0.5, 1.0]


def test_an_aspects_own_threshold_holds() -> None:
    words = ("dog", "cat")
    shy = Aspect("animal sounds", "modality", words, threshold=1.5)
    assert topics([shy])(["a dog", "a dog and a cat"])[:, 0].tolist() == [False, True]
    assert topics([Aspect("mine", "modality", words)])(["a dog", "none"])[:, 0].tolist() == [True, False]


class Letters:
    """A stand-in for a sentence model: counts of letters."""

    def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def test_an_embedding_scores_the_nearest_of_an_aspects_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_open", lambda model: Letters())
    score = embedding.embedding([Aspect("ab", "aspect", ("xx*",), ("cc", "dd"))], "letters")
    assert score(["abab", "c", "cd", "e", ""])[:, 0] == pytest.approx([1, 1, 0.5**0.5, 0, 0])
    cover = topics([Aspect("ab", "aspect", ("x",), threshold=0.9)], "letters")
    assert cover(["ba", "e"])[:, 0].tolist() == [True, False]


def test_a_similarity_needs_a_threshold() -> None:
    with pytest.raises(RecipeError, match=r"aspect 'mine' has no threshold, .* give it threshold = 0\.4"):
        topics([Aspect("mine", "aspect", ("x",))], "anything")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(QuaverError, match=r"pip install 'quaver\[embed\]'"):
        topics(DEFAULT, "any")


@pytest.mark.slow
def test_a_sentence_transformers_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["dog", "rain", "piano", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    library.SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(tmp_path))
    pair = [Aspect(name, "modality", (name,), threshold=0.6) for name in ("dog", "rain")]
    assert topics(pair, str(tmp_path))(["a dog", "rain and dog", "piano"]).tolist() == [[1, 0], [1, 1], [0, 0]]
    with pytest.raises(RecipeError, match=r"nowhere' cannot be opened .*hub, or a folder"):
        topics(pair, str(tmp_path / "nowhere"))
