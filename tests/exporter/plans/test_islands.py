from quaver.exporter.plans.islands import islands, named, unpacked
from quaver.exporter.plans.log import Compiled

MODULES = {"q": "attn.to_q", "k": "attn.to_k", "qk": "attn", "c1": "conv1", "c2": "conv2", "head": "conv_out"}


def layer(name, kernel, kinds, reads, writes, nodes=(), constants=()):
    taken, made = kinds.split(">")
    return Compiled(
        name, kernel, tuple(taken.split()), tuple(constants), tuple(made.split()), tuple(nodes), tuple(reads), (writes,)
    )


def conv(name, reads, writes):
    return layer(name, "correlation", "Int8>Float", [reads], writes, [name], ["Int8"])


# x -> c1 (INT8) -> norm -> q, k (16 bit) -> qk -> quantize -> c2 (INT8) -> head (16 bit)
PLAN = [
    conv("c1", "x", "a"),
    layer("norm", "kgen", "Float>Half", ["a"], "b"),
    layer("q", "gemm", "Half>Half", ["b"], "q", ["q"], ["Half"]),
    layer("k", "gemm", "Half>Half", ["b"], "k", ["k"], ["Half"]),
    layer("qk", "kgen", "Half Half>Half", ["q", "k"], "s", ["qk"]),
    layer("code", "kgen", "Half>Int8", ["s"], "t"),
    conv("c2", "t", "u"),
    layer("head", "correlation", "Half>Half", ["u"], "y", ["head"], ["Half"]),
]


def test_an_island_is_the_floats_between_integer_layers_under_the_module_they_share():
    found = islands(PLAN, MODULES, ["c1", "q", "k", "qk", "c2", "head"])
    assert [(i["within"], i["layers"]) for i in found] == [("attn", ["attn.to_q", "attn.to_k", "attn"])]
    assert found[0]["kernels"] == ["gemm Half x Half", "gemm Half x Half", "kgen Half x Half"]


def test_layers_apart_are_islands_apart():
    plan = [
        conv("c1", "x", "a"),
        layer("q", "gemm", "Half>Half", ["a"], "q", ["q"], ["Half"]),
        conv("c2", "q", "u"),
        layer("k", "gemm", "Half>Half", ["u"], "k", ["k"], ["Half"]),
        conv("c3", "k", "y"),
    ]
    assert [i["within"] for i in islands(plan, MODULES)] == ["attn.to_q", "attn.to_k"]


def test_without_integer_layers_there_are_no_islands():
    assert islands(PLAN[1:5], MODULES) == []


def test_weights_made_float_by_their_own_kernel_are_named_and_those_made_int8_are_not():
    plan = [
        layer("u", "kgen", ">Half", [], "w", ["dq"], ["Int4", "Float"]),
        layer("v", "kgen", ">Int8", [], "w", ["c2"], ["Int4"]),
        layer("pad", "kgen", "Int32>Float", ["shape"], "z", ["k"], ["Int8"]),
        layer("norm", "kgen", "Float>Float", ["z"], "n", ["q"], ["Int8"]),
    ]
    found = unpacked(plan, {"dq": "attn.to_q"})
    assert found == [
        {"layer": "attn.to_q", "from": "Int4", "to": "Half"},
        {"layer": "k", "from": "Int8", "to": "Float"},  # an address is no activation
    ]


def test_a_row_names_nodes_and_modules():
    row = named(PLAN[2:3], MODULES)[0]
    assert row == {
        "name": "q",
        "kernel": "gemm",
        "inputs": ("Half",),
        "constants": ("Half",),
        "outputs": ("Half",),
        "nodes": ("q",),
        "modules": ["attn.to_q"],
    }
