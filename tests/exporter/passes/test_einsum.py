import itertools

import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, module_of
from quaver.exporter.passes import einsum

SIZES = dict(zip("bhijdec", (2, 3, 4, 5, 6, 7, 8), strict=True))
PRODUCTS = [
    "bid,bjd->bij",
    "bij,bjd->bid",
    "bihd,bjhd->bhij",
    "bhij,bjhd->bihd",
    "bhid,bhjd->bhij",
    "bci,bcj->bij",
    "bij,bcj->bci",
    "b i d, b j d -> b j i",
    "bid,de->bie",
]


@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product_of_matrices_becomes_one_with_the_same_answer(make, run, equation):
    left, right = (
        np.random.default_rng(len(term)).standard_normal([SIZES[x] for x in term], np.float32)
        for term in equation.replace(" ", "").partition("->")[0].split(",")
    )
    shapes = {"l": list(left.shape), "r": list(right.shape)}
    model = make([("Einsum", ["l", "r"], ["y"], {"equation": equation})], shapes, ["y"])
    model.graph.node[0].metadata_props.add(key=MODULE_KEY, value="mid.attn")
    assert einsum.run(model) and not einsum.run(model)
    assert {node.op_type for node in model.graph.node} <= {"MatMul", "Transpose"}
    assert {module_of(node) for node in model.graph.node} == {"mid.attn"}
    expected = np.einsum(equation.replace(" ", ""), left.astype(np.float64), right.astype(np.float64))
    np.testing.assert_allclose(run(model, l=left, r=right)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "equation",
    ["ij,ij->ij", "bij,bij->b", "bii,bij->bj", "bi,bj->bij", "bid,bje->bij", "...ij,...jk->...ik", "bijd,bjhd->bhi"],
)
def test_what_is_no_single_product_is_left_alone(equation):
    assert einsum.as_product(equation) is None


def test_every_order_of_labels_is_found():
    for left, right, out in itertools.product(
        *(map("".join, itertools.permutations(x)) for x in ("bid", "bjd", "bij"))
    ):
        found = einsum.as_product(f"{left},{right}->{out}")
        assert found is not None
        x, y = (np.random.default_rng(0).standard_normal([SIZES[k] for k in term]) for term in (left, right))
        made = np.transpose(np.transpose(x, found.left) @ np.transpose(y, found.right), found.out)
        np.testing.assert_allclose(made, np.einsum(f"{left},{right}->{out}", x, y))
