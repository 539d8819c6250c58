import pytest

from quaver.calib.rules import PRESETS, UNMATCHED, Rule, preset, resolve
from quaver.runtime.errors import RecipeError

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
NAMES = [
    "time_embedding.linear_1",
    "class_embedding",
    "conv_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.attn2.to_out.0",
    f"{BLOCK}.ff.net.0.proj",
    "conv_out",
]


def test_the_first_matching_rule_decides():
    rules = [Rule("*.conv1", "int4"), Rule("down_blocks.*", "int8")]
    decided = resolve(rules, NAMES)
    assert decided["down_blocks.0.resnets.0.conv1"].weight == "int4"
    assert decided["down_blocks.0.resnets.0.time_emb_proj"].weight == "int8"


def test_a_layer_without_a_rule_stays_float():
    assert resolve([Rule("conv_in")], NAMES)["conv_out"] is UNMATCHED


def test_preset_8w8a_quantizes_convolutions_and_feed_forward_and_keeps_what_ptq4adm_keeps():
    decided = resolve(preset("8w8a"), NAMES)
    assert {n for n, r in decided.items() if r.quantized} == {
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.time_emb_proj",
        f"{BLOCK}.ff.net.0.proj",
    }


def test_preset_d2_4w8a_gives_the_ends_eight_bits_and_everything_else_four():
    decided = resolve(preset("d2-4w8a"), NAMES)
    assert {rule.activation for rule in decided.values()} == {"int8"}
    ends = {"time_embedding.linear_1", "class_embedding", "conv_in", "conv_out"}
    assert {n: r.weight for n, r in decided.items()} == {n: "int8" if n in ends else "int4" for n in NAMES}


def test_preset_4w8a_is_8w8a_with_weights_of_four_bits():
    eight, four = resolve(preset("8w8a"), NAMES), resolve(preset("4w8a"), NAMES)
    assert {n: r.quantized for n, r in eight.items()} == {n: r.quantized for n, r in four.items()}
    assert {(r.weight, r.activation) for r in four.values() if r.quantized} == {("int4", "int8")}


def test_presets_named_attention_code_its_projections_too():
    for name in ("8w8a", "4w8a", "8w", "4w", "8w16a", "fp8"):
        usual, more = (
            {n for n, r in resolve(preset(p), NAMES).items() if r.quantized} for p in (name, name + "-attention")
        )
        assert more - usual == {f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_out.0"}, name


def test_presets_give_the_formats_they_are_named_after():
    formats = {
        name: {(r.weight, r.activation, r.block) for r in resolve(preset(name), NAMES).values() if r.match == "*"}
        for name in ("8w16a", "16w16a", "8w", "4w", "fp8")
    }
    assert formats == {
        "8w16a": {("int8", "int16", 0)},
        "16w16a": {("float16", "float16", 0)},
        "8w": {("int8", "float", 0)},
        "4w": {("int4", "float", 64)},
        "fp8": {("float8", "float8", 0)},
    }


def test_a_block_is_sixteen_weights_or_more():
    with pytest.raises(RecipeError, match="block = 8; expected 0"):
        Rule("*", "int4", "float", block=8)


def test_a_rule_that_matches_nothing_is_an_error_naming_the_nearest_layer():
    with pytest.raises(RecipeError, match="'convout' matches none of the 9 layers; the nearest layer is 'conv_out'"):
        resolve([Rule("convout")], NAMES)


def test_a_shadowed_rule_is_an_error_that_says_so():
    with pytest.raises(RecipeError, match="earlier rules match all its layers"):
        resolve([Rule("*"), Rule("conv_in", "float", "float")], NAMES)


def test_presets_apply_to_models_without_attention():
    for name in PRESETS:
        assert resolve(preset(name), ["conv1"])["conv1"].quantized == (name not in ("float", "16w16a"))


def test_an_unknown_format_or_preset_names_the_valid_ones():
    with pytest.raises(RecipeError, match="use one of float, float32, float16, int16, int8, int4, float8"):
        Rule("*", weight="int3")
    with pytest.raises(RecipeError, match="did you mean '8w8a'"):
        preset("w8a8")
