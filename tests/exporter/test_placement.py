from dataclasses import replace

import numpy as np
import pytest

from quaver.calib.graph import Layer, layers
from quaver.calib.rules import Rule
from quaver.exporter.placement import Placement, place, quantized_layers
from quaver.exporter.targets import ORT_CPU, TENSORRT_10, TENSORRT_RTX
from quaver.exporter.topology import read_topology
from quaver.runtime.errors import ArtifactError, RecipeError

CONV = Layer("conv", "conv", "Conv", "x", "y", "conv.w", (32, 16, 3, 3), 100, 0, "conv.b")
LINEAR = Layer("lin", "lin", "MatMul", "y", "z", "lin.w", (32, 64), 50, 1)
RANGES = {"x": (-1.0, 2.0), "y": (-3.0, 1.0), "z": (0.0, 1.0)}
ALL = (Rule("*", reason="test"),)


def roles(sites, layer):
    return {site.role: (site.edge, site.format, site.scale) for site in sites if site.layer == layer}


def test_ort_codes_input_weight_bias_and_output_of_a_convolution():
    assert roles(place([CONV], ALL, ORT_CPU, RANGES), "conv") == {
        "input": ("x", "uint8", "ranges"),
        "weight": ("conv.w", "int8", "weight"),
        "bias": ("conv.b", "int32", "input*weight"),
        "output": ("y", "uint8", "ranges"),
    }


def test_tensorrt_codes_inputs_and_weights_only():
    assert roles(place([CONV], ALL, TENSORRT_RTX, RANGES), "conv") == {
        "input": ("x", "int8", "ranges"),
        "weight": ("conv.w", "int8", "weight"),
    }


def test_a_product_keeps_its_float_output_on_both_targets():
    for target in (ORT_CPU, TENSORRT_RTX):
        assert set(roles(place([LINEAR], ALL, target, RANGES), "lin")) == {"input", "weight"}


def test_a_layer_that_stays_float_says_why():
    sites = place([CONV], [Rule("conv", "float", "float", "the first layer is sensitive")], ORT_CPU, RANGES)
    assert [(s.role, s.format, s.reason) for s in sites] == [("layer", "float", "the first layer is sensitive")]


def test_narrow_layers_stay_float_on_tensorrt_and_not_on_ort():
    narrow = replace(CONV, weight_shape=(32, 8, 3, 3))
    assert "8 channels" in place([narrow], ALL, TENSORRT_RTX, RANGES)[0].reason
    assert place([narrow], ALL, ORT_CPU, RANGES)[0].role == "input"


def test_weight_only_rules_code_no_activation():
    sites = place([CONV, LINEAR], [Rule("*", "int4", "float")], ORT_CPU, RANGES)
    assert [(s.layer, s.role, s.format) for s in sites] == [("conv", "weight", "int4"), ("lin", "weight", "int4")]
    assert quantized_layers(sites) == []


@pytest.mark.parametrize(("edge", "words"), [("x", "its input is always 0"), ("y", "its output is always 0")])
def test_a_dead_edge_leaves_its_layer_float(edge, words):
    sites = place([CONV], ALL, ORT_CPU, {**RANGES, edge: (0.0, 0.0)})
    assert [site.role for site in sites] == ["layer"] and words in sites[0].reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_range_names_the_layer(bad):
    with pytest.raises(ArtifactError, match=r"'x', an edge of layer conv, .*quaver ranges RECIPE"):
        place([CONV], ALL, ORT_CPU, {**RANGES, "x": (0.0, bad)})


def test_a_missing_range_names_the_layer():
    with pytest.raises(ArtifactError, match="no range for 'x', an edge of layer conv"):
        place([CONV], ALL, ORT_CPU, {})


@pytest.mark.parametrize(
    ("target", "rule", "words"),
    [
        (ORT_CPU, Rule("*", "float8", "float8"), "no float8 kernels on CPUs; use 'int8'"),
        (TENSORRT_RTX, Rule("*", "int8", "int16"), "use weight = 'int8' with activation = 'float16'"),
        (TENSORRT_RTX, Rule("*", "int8", "float8"), "set both to 'float8' or to 'int8'"),
        (ORT_CPU, Rule("*", "float", "int8"), "set weight too"),
        (ORT_CPU, Rule("*", "int8", "int4"), "use one of .*int8/int8"),
    ],
)
def test_what_a_target_cannot_run_is_refused_with_the_alternative(target, rule, words):
    with pytest.raises(RecipeError, match=words):
        place([CONV], [rule], target, RANGES)


def test_quantized_layers_are_those_with_coded_input_and_weight():
    rules = [Rule("conv"), Rule("lin", "int8", "float")]
    assert quantized_layers(place([CONV, LINEAR], rules, TENSORRT_RTX, RANGES)) == ["conv"]


def graph(*nodes, shapes, constants=()):
    """A model of (op, inputs, output, attributes) with recorded shapes; the first edge is its input."""
    onnx = pytest.importorskip("onnx")
    made = [onnx.helper.make_node(op, ins, [out], f"node_{out}", **more) for op, ins, out, more in nodes]
    values = [onnx.helper.make_tensor_value_info(name, 1, dims) for name, dims in shapes.items()]
    tensors = [onnx.numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in constants]
    return onnx.helper.make_model(
        onnx.helper.make_graph(made, "g", values[:1], values[-1:], tensors, value_info=values)
    )


def skip(groups=1):
    """c = [a, b]; y = conv(c)"""
    shapes = {"a": ["n", 16, 4, 4], "b": ["n", 16, 4, 4], "c": ["n", 32, 4, 4], "y": ["n", 32, 4, 4]}
    concat = ("Concat", ["a", "b"], "c", {"axis": 1})
    conv = ("Conv", ["c", "w"], "y", {"group": groups})
    return graph(concat, conv, shapes=shapes, constants=[("w", (32, 32 // groups, 1, 1))])


def residual():
    """y = conv(x) + r, all of one shape."""
    shapes = {name: ["n", 16, 4, 4] for name in ("x", "r", "z", "y")}
    conv = ("Conv", ["x", "w"], "z", {})
    return graph(conv, ("Add", ["z", "r"], "y", {}), shapes=shapes, constants=[("w", (16, 16, 1, 1))])


def attention(positions=64):
    """y = softmax(q k) v"""
    shapes = {"q": ["n", positions, 32], "k": ["n", 32, positions], "s": ["n", positions, positions]}
    shapes |= {"p": shapes["s"], "v": shapes["q"], "y": shapes["q"]}
    scores, weights = ("MatMul", ["q", "k"], "s", {}), ("Softmax", ["s"], "p", {"axis": -1})
    return graph(scores, weights, ("MatMul", ["p", "v"], "y", {}), shapes=shapes)


SEEN = dict.fromkeys("abcxyzrqksv", (-2.0, 1.0))


def placed(model, target=TENSORRT_RTX, rules=ALL, ranges=SEEN, **options):
    placement = Placement(**options)
    return place(layers(model), rules, target, ranges, topology=read_topology(model), options=placement)


def test_both_halves_of_a_skip_concat_share_the_scale_of_the_joined_edge():
    sites = placed(skip())
    assert [(s.edge, s.scale) for s in sites if s.role in ("input", "part")] == [("c", "ranges")]


@pytest.mark.parametrize("target", [ORT_CPU, TENSORRT_RTX], ids=lambda t: t.name)
def test_split_halves_keep_scales_of_their_own(target):
    sites = placed(skip(), target, concat="split")
    found = [(s.role, s.edge, s.scale) for s in sites if s.role in ("input", "part")]
    assert found == [("input", "c", "parts"), ("part", "a", "ranges"), ("part", "b", "ranges")]


@pytest.mark.parametrize("groups", [2, 32])
def test_a_grouped_convolution_reads_both_halves_in_one_scale(groups):
    sites = placed(skip(groups), ORT_CPU, concat="split")
    assert [(s.edge, s.scale) for s in sites if s.role in ("input", "part")] == [("c", "ranges")]


def test_the_operand_that_a_coded_layer_is_added_to_is_coded_where_the_target_wants_it():
    coded = [s for s in placed(residual(), TENSORRT_10) if s.role == "residual"]
    assert [(s.edge, s.node, s.format) for s in coded] == [("r", "node_y", "int8")]
    assert not [s for s in placed(residual(), TENSORRT_RTX) if s.role == "residual"]
    assert not [s for s in placed(residual(), TENSORRT_10, residual="float") if s.role == "residual"]
    assert [s.format for s in placed(residual(), ORT_CPU, residual="coded") if s.role == "residual"] == ["uint8"]


def test_a_layer_that_stays_float_codes_no_residual():
    assert not [s for s in placed(residual(), TENSORRT_10, [Rule("*", "int8", "float")]) if s.role == "residual"]


def test_one_value_added_to_every_position_is_no_residual():
    model = residual()
    for value in (*model.graph.value_info, *model.graph.input):
        if value.name == "r":
            value.type.tensor_type.shape.dim[2].dim_value = 1
    assert not read_topology(model).residuals


def test_attention_products_stay_float_and_say_so():
    sites = placed(attention(), rules=())
    assert [(s.node, s.role, s.format) for s in sites] == [
        ("node_s", "product", "float"),
        ("node_y", "product", "float"),
    ]
    assert all("export.attention" in s.reason for s in sites)


def test_coded_attention_products_know_where_a_softmax_ends():
    sites = placed(attention(), rules=(), attention="int8")
    assert [(s.node, s.edge, s.format, s.scale) for s in sites] == [
        ("node_s", "q", "int8", "ranges"),
        ("node_s", "k", "int8", "ranges"),
        ("node_y", "p", "int8", "softmax"),
        ("node_y", "v", "int8", "ranges"),
    ]


def test_long_attention_stays_float():
    sites = placed(attention(1024), rules=(), attention="int8")
    assert {s.role for s in sites} == {"product"} and "1024 positions" in sites[0].reason


def test_coded_attention_is_refused_on_cpus():
    with pytest.raises(RecipeError, match=r"set export\.attention to 'float'"):
        placed(attention(), ORT_CPU, (), attention="int8")


def test_a_single_row_per_sample_has_its_weights_coded_alone_on_gpus():
    row = replace(LINEAR, macs=32 * 64)
    for target, expected in ((TENSORRT_RTX, ["weight"]), (ORT_CPU, ["input", "weight"])):
        assert [s.role for s in place([row], ALL, target, RANGES)] == expected
    assert "1 row per sample" in place([row], ALL, TENSORRT_RTX, RANGES)[0].reason


@pytest.mark.parametrize(
    ("layer", "block", "expected", "words"),
    [
        (replace(LINEAR, weight_shape=(128, 64)), 64, 64, ""),
        (replace(LINEAR, weight_shape=(80, 64)), 64, 16, "blocks of 16, the largest that divide 80"),
        (replace(LINEAR, weight_shape=(20, 64)), 64, 0, "20 inputs have no block"),
        (CONV, 16, 0, "Conv takes no blocks here"),
    ],
)
def test_a_block_divides_the_inputs_or_gives_way_to_channels(layer, block, expected, words):
    site = place([layer], [Rule("*", "int4", "float", block=block)], TENSORRT_RTX, RANGES)[0]
    assert site.block == expected and words in site.reason


def test_blocks_beside_coded_inputs_are_refused_with_both_ways_out():
    with pytest.raises(RecipeError, match=r"in blocks of 64.*set block = 0, or activation = 'float'"):
        place([LINEAR], [Rule("*", "int4", "int8", block=64)], TENSORRT_RTX, RANGES)


@pytest.mark.parametrize(
    ("rule", "half", "expected"),
    [
        (Rule("*", "float", "float"), False, ("float", "float32")),
        (Rule("*", "float", "float"), True, ("float16", "float16")),
        (Rule("*", "float16", "float16"), False, ("float16", "float16")),
        (Rule("*", "float32", "float32"), True, ("float", "float32")),
    ],
)
def test_float_means_what_the_recipe_says_and_a_rule_can_say_otherwise(rule, half, expected):
    site = place([CONV], [rule], TENSORRT_RTX, RANGES, options=Placement(half=half))[0]
    assert (site.role, site.format, site.compute) == ("layer", *expected)


def test_cpus_keep_float32_whatever_float_means():
    assert (
        place([CONV], [Rule("*", "float", "float")], ORT_CPU, RANGES, options=Placement(half=True))[0].format == "float"
    )


def test_a_layer_whose_range_leaves_no_room_stays_out_of_float16():
    wide = {**RANGES, "y": (-40000.0, 10.0)}
    site = place([CONV], [Rule("*", "float16", "float16")], TENSORRT_RTX, wide)[0]
    assert (site.format, site.compute) == ("float", "float32")


def test_weights_stored_in_float16_for_float32_kernels():
    site = place([CONV], [Rule("*", "float16", "float")], ORT_CPU, RANGES)[0]
    assert (site.role, site.format, site.pattern) == ("weight", "float16", "cast")


@pytest.mark.parametrize("target", [ORT_CPU, TENSORRT_RTX], ids=lambda t: t.name)
def test_an_empty_range_names_the_edge_and_the_command(target):
    with pytest.raises(ArtifactError, match=r"'x', an edge of layer conv, is empty.*quaver ranges RECIPE"):
        place([CONV], ALL, target, {**RANGES, "x": (1.0, -1.0)})
