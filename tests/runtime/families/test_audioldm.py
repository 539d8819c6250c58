"""The family audioldm on the tiny bundle: shapes, names, and the meaning of its tensors."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.errors import RecipeError
from quaver.runtime.family import find_family
from quaver.runtime.session import open_bundle


@pytest.fixture(scope="module")
def session(made_bundle):
    with open_bundle(made_bundle, threads=1) as opened:
        yield opened


def test_prompts_become_unit_vectors_one_row_each(session):
    rows = session.family.embed(session.parts, ["a soft cello", "drum", "a soft cello"])
    assert list(rows) == ["class_labels"]
    assert rows["class_labels"].shape == (3, 6)
    assert rows["class_labels"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows["class_labels"], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(rows["class_labels"][0], rows["class_labels"][2])


def test_the_unconditional_row_is_the_embedding_of_nothing(session):
    np.testing.assert_array_equal(
        session.uncond["class_labels"], session.family.embed(session.parts, [""])["class_labels"]
    )


def test_the_unet_is_fed_by_the_names_of_its_graph(session):
    fed = session.family.feeds(np.zeros((2, 2, 4, 4)), np.zeros(2), {"class_labels": np.zeros((2, 6))})
    assert tuple(fed) == session.engine.inputs


def test_latents_become_a_spectrogram_and_a_waveform(session):
    decoded = session.family.decode(session.parts, np.ones((3, 2, 4, 4), np.float32))
    assert decoded["mel"].shape == (3, 1, 16, 16)
    assert decoded["waveform"].shape == (3, 256)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'audioldm'"):
        find_family("audio-ldm")
