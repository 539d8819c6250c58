from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from quaver.runtime.measure import manifold


def test_a_point_is_covered_up_to_the_third_neighbour_of_a_member():
    members = np.arange(8.0)[:, None]  # on a line, one apart: the outermost reach 3, those inside 2
    assert np.sqrt(manifold.radii(members)) == pytest.approx([3, 2, 2, 2, 2, 2, 2, 3])
    x = np.array([[-3.1], [-3.0], [3.5], [9.9], [10.1]])
    assert manifold.covered(x, members).tolist() == [False, True, True, True, False]


def test_precision_and_recall_are_what_a_search_by_scipy_finds(monkeypatch: pytest.MonkeyPatch):
    tree = pytest.importorskip("scipy.spatial").cKDTree
    rng = np.random.default_rng(0)
    reference, judged = rng.normal(size=(300, 5)), rng.normal(0.4, 0.7, size=(200, 5))
    monkeypatch.setattr(manifold, "CHUNK", 64)

    def share(members: np.ndarray, x: np.ndarray) -> float:
        reach = tree(members).query(members, k=4)[0][:, 3]
        distances = np.linalg.norm(x[:, None] - members, axis=2)
        return float((distances <= reach).any(axis=1).mean())

    assert manifold.precision(reference, judged) == pytest.approx(share(reference, judged))
    assert manifold.recall(reference, judged) == pytest.approx(share(judged, reference))


def test_samples_of_one_mode_are_precise_and_miss_the_other():
    rng = np.random.default_rng(1)
    reference = np.concatenate([rng.normal(0, 1, (200, 3)), rng.normal(50, 1, (200, 3))])
    judged = rng.normal(0, 0.7, (200, 3))
    assert manifold.precision(reference, judged) > 0.95
    assert 0.3 < manifold.recall(reference, judged) <= 0.5


def test_a_set_covers_itself_also_far_from_the_origin():
    x = np.random.default_rng(2).normal(1e6, 1e-2, size=(100, 4))
    assert manifold.covered(x, x).all()


def test_memory_does_not_grow_with_the_square_of_the_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifold, "CHUNK", 64)
    x = np.random.default_rng(3).normal(size=(3000, 2))
    tracemalloc.start()
    manifold.radii(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 64 * 3000 * 8 < 3000**2 * 8 / 4


def test_a_set_without_a_third_neighbour_is_refused():
    with pytest.raises(ValueError, match="3 samples have no neighbour number 3: take more than 3"):
        manifold.radii(np.ones((3, 2)))
