"""Classifier-free guidance against its equation."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.guide import guide


def predict(x, t, rows):
    return x * rows["c"][:, :, None, None] + t


def test_both_branches_go_in_one_call_the_unconditional_first():
    calls = []

    def watched(x, t, rows):
        calls.append((x.shape, t, rows["c"].ravel().tolist()))
        return predict(x, t, rows)

    x = np.random.default_rng(0).standard_normal((2, 1, 3, 3))
    cond, uncond = {"c": np.array([[2.0], [3.0]])}, {"c": np.array([[5.0], [7.0]])}
    eps = guide(watched, cond, uncond, 2.5)(x, 11)
    assert calls == [((4, 1, 3, 3), 11, [5.0, 7.0, 2.0, 3.0])]
    e_u, e_c = predict(x, 11, uncond), predict(x, 11, cond)
    np.testing.assert_array_equal(eps, e_u + 2.5 * (e_c - e_u))


def test_scale_one_is_the_conditional_branch_alone():
    calls = []
    x = np.ones((2, 1, 3, 3))
    guide(lambda x, t, rows: calls.append(len(x)) or x, {"c": np.ones((2, 1))}, {"c": np.zeros((1, 1))}, 1.0)(x, 0)
    assert calls == [2]


def test_one_unconditional_row_serves_the_whole_batch():
    x = np.random.default_rng(0).standard_normal((3, 1, 2, 2))
    cond, one = {"c": np.array([[2.0], [3.0], [4.0]])}, {"c": np.array([[5.0]])}
    many = {"c": np.repeat(one["c"], 3, axis=0)}
    np.testing.assert_array_equal(guide(predict, cond, one, 3.0)(x, 1), guide(predict, cond, many, 3.0)(x, 1))


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_array_libraries_are_guided_alike(library):
    xp = pytest.importorskip(library)
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 3))

    def plain(x, t, rows):
        return x * xp.reshape(rows["c"], (-1, 1, 1, 1))

    cond, uncond = np.array([[2.0], [3.0]]), np.array([[5.0]])
    got = guide(plain, {"c": xp.asarray(cond)}, {"c": xp.asarray(uncond)}, 2.0)(xp.asarray(x), 0)
    expected = guide(lambda x, t, r: x * r["c"][:, :, None, None], {"c": cond}, {"c": uncond}, 2.0)(x, 0)
    np.testing.assert_allclose(np.from_dlpack(got), expected, rtol=1e-12)
