from __future__ import annotations

import numpy as np
import pytest

from quaver.demo.world import ATTRIBUTES, caption, draw_sound, vocabulary
from quaver.runtime.measure import agreement

WORDS = {
    "family": [["cello", "violin"], ["bass drum", "drum"]],
    "register": [["low", "bass register", "bass drum"], ["high"]],
}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("a low cello note", [0, 0]),
        ("A Violin, high", [0, 1]),
        ("a bass drum", [1, 0]),  # names a family and a register
        ("a cello in the bass register", [0, 0]),
        ("a drum, then a cello", [-1, -1]),  # two families; no register
        ("cellos below", [-1, -1]),  # no word of the list
        ("", [-1, -1]),
    ],
)
def test_a_caption_says_what_its_phrases_name(text: str, classes: list[int]):
    assert agreement.said([text], WORDS).tolist() == [classes]


def test_what_captions_of_the_embedded_model_say_is_what_they_were_made_from():
    """Loudness "medium" and reverb "dry" may be left unsaid; all else is read off the words without a mistake."""
    rng, words = np.random.default_rng(0), vocabulary()
    sounds = [draw_sound(rng, split) for split in ("train", "validation", "test") for _ in range(400)]
    labels = agreement.said([caption(sound, rng) for sound in sounds], words)
    meant = np.array([sound.labels() for sound in sounds])
    assert tuple(words) == tuple(ATTRIBUTES) and [len(w) for w in words.values()] == [
        len(c) for c in ATTRIBUTES.values()
    ]
    assert ((labels == meant) | (labels == agreement.UNSAID)).all()
    assert (labels != agreement.UNSAID).mean(axis=0)[:3] == pytest.approx([1, 1, 1])


def test_accuracy_counts_what_captions_say():
    labels = np.array([[0, 0], [1, -1], [1, 1], [-1, -1]])
    verdicts = {"register": np.array([0, 0, 0, 0]), "family": np.array([0, 0, 1, 1])}
    found = agreement.accuracies(verdicts, labels, WORDS, rng=np.random.default_rng(0))
    assert {name: share.value for name, share in found.items()} == pytest.approx(
        {"all": 3 / 5, "family": 2 / 3, "register": 1 / 2}
    )
    assert found["all"].low <= 3 / 5 <= found["all"].high
    nothing = np.full((4, 2), agreement.UNSAID)
    assert agreement.accuracies(verdicts, nothing, WORDS, rng=np.random.default_rng(0)) == {}


def test_the_cosine_is_one_of_equal_directions_and_none_of_silence():
    clips = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    texts = np.array([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0], [1.0, 0.0]])
    assert agreement.cosine(clips, texts) == pytest.approx([1, -1, np.sqrt(0.5), 0])
    with pytest.raises(ValueError, match="clips and captions differ in shape"):
        agreement.cosine(clips, texts[:2])


def test_clips_of_one_caption_are_drawn_together():
    captions = [f"caption {n % 16}" for n in range(64)]
    heard = np.tile(np.arange(16) % 2, 4)  # right or wrong by the caption alone
    found = [
        agreement.accuracies(
            {"pitch": heard},
            np.zeros((64, 1), int),
            {"pitch": [["low"], ["high"]]},
            rng=np.random.default_rng(0),
            captions=given,
        )["all"]
        for given in (captions, None)
    ]
    assert found[0].high - found[0].low == pytest.approx(2 * (found[1].high - found[1].low), rel=0.15)
