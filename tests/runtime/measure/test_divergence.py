from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.measure import divergence


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(0).normal(0, 3, size=(2, 12, 7)))


def test_the_divergence_of_identical_items_is_that_of_the_epsilon(logits):
    """Statement 21: KL of identical sets is about 0, a floor of 1e-6 a class."""
    p = divergence.softmax(logits[0])
    assert divergence.paired_kl(p, p) == pytest.approx(-7e-6 * np.ones(12), rel=1e-2)


def test_the_paired_divergence_is_scipys_relative_entropy_in_audiogens_form(logits):
    special = pytest.importorskip("scipy.special")
    reference, judged = (special.softmax(values, axis=1) for values in logits)
    expected = special.rel_entr(reference, judged + 1e-6).sum(axis=1)
    assert divergence.paired_kl(*map(divergence.softmax, logits)) == pytest.approx(expected, rel=1e-9)


def test_two_coins_match_the_closed_form_and_a_class_that_is_certain_is_no_trouble():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    assert divergence.paired_kl(p, q)[0] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5), abs=1e-5)
    assert divergence.paired_kl(np.array([[1.0, 0.0]]), p)[0] == pytest.approx(np.log(2), abs=1e-5)


def test_the_score_is_the_number_of_classes_of_certain_even_sets_and_one_where_all_is_alike():
    certain = np.tile(np.eye(5), (4, 1))
    assert divergence.inception_score(certain) == pytest.approx(5.0)
    assert divergence.inception_score(certain, splits=4) == pytest.approx(5.0)
    assert divergence.inception_score(np.repeat(np.eye(5), 4, axis=0), splits=5) == pytest.approx(1.0)
    assert divergence.inception_score(np.full((20, 5), 0.2)) == pytest.approx(1.0)


def test_pairs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="paired probabilities differ in shape"):
        divergence.paired_kl(np.ones((2, 3)), np.ones((3, 3)))
