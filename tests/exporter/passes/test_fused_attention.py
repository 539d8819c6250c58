import numpy as np
import pytest
from onnx import numpy_helper

from quaver.exporter.passes import fused_attention

B, S, T, H, D = 3, 5, 4, 2, 6


def attention(q, k, v, scale):
    """softmax(scale q k^T) v head by head, in float64."""
    out = np.zeros(q.shape)
    for b in range(len(q)):
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            scores = scale * q[b, :, part].astype(np.float64) @ k[b, :, part].T
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, part] = shares / shares.sum(-1, keepdims=True) @ v[b, :, part]
    return out


def graph(make, *, style="each", order=(0, 2, 1, 3), outputs=("y",), between=(), scores="s", axis=-1, heads=(H, H, H)):
    """Attention as exporters write it: Q and K^T scaled ("each"), or their product divided ("product")."""
    split = {
        name: np.array([-1, length, number, H * D // number])
        for name, length, number in zip("qkv", (S, T, T), heads, strict=True)
    }
    nodes = [("Reshape", [name, f"{name}.split"], [f"{name}4"], {}) for name in "qkv"]
    nodes += [("Transpose", [f"{name}4"], [f"{name}h"], {"perm": order}) for name in "qv"]
    if style == "each":
        nodes += [
            ("Transpose", ["k4"], ["kh"], {"perm": [0, 2, 1, 3]}),
            ("Transpose", ["kh"], ["kt"], {"perm": [0, 1, 3, 2]}),
        ]
        nodes += [
            ("Mul", ["qh", "half"], ["qs"], {}),
            ("Mul", ["half", "kt"], ["ks"], {}),
            ("MatMul", ["qs", "ks"], ["s"], {}),
        ]
    else:
        nodes += [
            ("Transpose", ["k4"], ["kt"], {"perm": [0, 2, 3, 1]}),
            ("MatMul", ["qh", "kt"], ["p"], {}),
            ("Div", ["p", "four"], ["s"], {}),
        ]
    nodes += [*between, ("Softmax", [scores], ["a"], {"axis": axis}), ("MatMul", ["a", "vh"], ["o"], {})]
    nodes += [("Transpose", ["o"], ["ot"], {"perm": [0, 2, 1, 3]}), ("Reshape", ["ot", "join"], ["y"], {})]
    shapes = {"q": ["b", S, H * D], "k": ["b", T, H * D], "v": ["b", T, H * D]}
    constants = {f"{name}.split": value for name, value in split.items()} | {
        "join": np.array([-1, S, H * D]),
        "half": np.float32(0.5),
        "four": np.float32(4),
        "mask": np.zeros((1, 1, S, T), np.float32),
    }
    return make(nodes, shapes, list(outputs), **constants)


def fuse(model):
    return fused_attention.run(model, read=numpy_helper.to_array)


@pytest.mark.parametrize("style", ["each", "product"])
def test_an_attention_is_one_operator_with_the_same_answer_for_any_batch(make, run, style):
    model = graph(make, style=style)
    assert fuse(model) and not fuse(model)
    assert [(n.op_type, list(n.input), list(n.output)) for n in model.graph.node] == [
        ("MultiHeadAttention", ["q", "k", "v"], ["y"])
    ]
    for batch in (1, B):
        draw = np.random.default_rng(batch)
        q, k, v = (draw.standard_normal((batch, length, H * D), np.float32) for length in (S, T, T))
        assert np.allclose(run(model, q=q, k=k, v=v)[0], attention(q, k, v, 0.25), atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"between": [("Add", ["s", "mask"], ["m"], {})], "scores": "m"},
        {"between": [("Transpose", ["s"], ["m"], {"perm": [0, 1, 2, 3]})], "scores": "m"},
        {"axis": 2},
        {"outputs": ["y", "a"]},
        {"outputs": ["y", "ot"]},
    ],
    ids=["masked", "something between", "softmax over queries", "shares are asked for", "heads are asked for"],
)
def test_what_is_no_plain_attention_is_left_alone(make, how):
    model = graph(make, **how)
    before = model.SerializeToString()
    assert not fuse(model) and model.SerializeToString() == before
