import numpy as np

from quaver.exporter.passes import transpose_keys, unused


def chain(perm, make):
    """K [B, H, S, D] -> K^T by way of three dimensions, as the exporter writes attention."""
    last, both = np.array([-1]), np.array([2**62])
    return make(
        [
            ("Shape", ["k"], ["shape"], {}),
            ("Slice", ["shape", "last", "end"], ["d"], {}),
            ("Slice", ["shape", "two", "last"], ["s"], {}),
            ("Slice", ["shape", "zero", "two"], ["bh"], {}),
            ("Concat", ["minus", "s", "d"], ["flat"], {"axis": 0}),
            ("Reshape", ["k", "flat"], ["k3"], {}),
            ("Transpose", ["k3"], ["t3"], {"perm": perm}),
            ("Concat", ["bh", "d", "s"], ["full"], {"axis": 0}),
            ("Reshape", ["t3", "full"], ["y"], {}),
        ],
        {"k": ["b", 2, 3, 4]},
        ["y"],
        last=last,
        end=both,
        two=np.array([2]),
        zero=np.array([0]),
        minus=last,
    )


def test_the_detour_becomes_one_transpose_with_the_same_answer(make, run):
    model, k = chain([0, 2, 1], make), np.random.default_rng(0).standard_normal((5, 2, 3, 4), np.float32)
    assert transpose_keys.run(model) and unused.run(model)
    assert [n.op_type for n in model.graph.node] == ["Transpose"]
    assert np.array_equal(run(model, k=k)[0], k.swapaxes(2, 3))


def test_another_permutation_is_left_alone(make):
    model = chain([0, 1, 2], make)
    assert not transpose_keys.run(model) and len(model.graph.node) == 9


def test_a_reshape_with_its_own_shape_is_left_alone(make):
    nodes = [
        ("Reshape", ["k", "flat"], ["k3"], {}),
        ("Transpose", ["k3"], ["t3"], {"perm": [0, 2, 1]}),
        ("Reshape", ["t3", "full"], ["y"], {}),
    ]
    model = make(nodes, {"k": [1, 2, 3, 4]}, ["y"], flat=np.array([2, 3, 4]), full=np.array([1, 2, 4, 3]))
    assert not transpose_keys.run(model)
