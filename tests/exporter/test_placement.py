from dataclasses import replace

import pytest

from quaver.calib.graph import Layer
from quaver.calib.rules import Rule
from quaver.exporter.placement import place, quantized_layers
from quaver.exporter.targets import ORT_CPU, TENSORRT_RTX
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
