import pytest

from quaver.calib.reconstruct.blocks import PATTERNS, block_of, find_blocks, single_layers
from quaver.calib.reconstruct.replay import read_graph
from quaver.runtime.errors import RecipeError

RESNETS = "down.resnets.0", "down.resnets.1"


def layers_of(codings):
    return [coding.layer for coding in codings.values()]


def test_blocks_are_modules_and_layers_that_no_pattern_matches_stand_alone(model, codings):
    found = find_blocks(read_graph(model), layers_of(codings), PATTERNS)
    assert [block.name for block in found] == ["conv_in", *RESNETS, "conv_out"]
    assert found[1].layers == ("down.resnets.0.conv1", "down.resnets.0.conv2")


def test_a_block_reads_its_input_and_gives_its_sum_with_all_that_lies_between(model, codings):
    block = find_blocks(read_graph(model), layers_of(codings), PATTERNS)[1]
    assert (block.inputs, block.outputs) == (("h0",), ("h1",))
    assert [node.name for node in block.nodes] == ["n_h1_1", "n_h1_s", "n_h1_a", "n_h1_2", "n_h1"]


def test_what_lies_ahead_of_the_first_learned_layer_stays_outside(model, codings):
    layers = [codings["down.resnets.0.conv2"].layer]
    (block,) = find_blocks(read_graph(model), layers, PATTERNS)
    assert [node.name for node in block.nodes] == ["n_h1_2", "n_h1"]
    assert (block.inputs, block.outputs) == (("h1_a", "h0"), ("h1",))


def test_layer_by_layer_every_layer_is_a_block(model, codings):
    found = single_layers(read_graph(model), layers_of(codings))
    assert [block.name for block in found] == list(codings)
    assert all(len(block.nodes) == len(block.inputs) == len(block.outputs) == 1 for block in found)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("down_blocks.0.resnets.1.conv1", "down_blocks.0.resnets.1"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.transformer_blocks.0"),
        ("up_blocks.1.upsamplers.0.conv", "up_blocks.1.upsamplers.0"),
        ("up_blocks.1.attentions.0.proj_in", "up_blocks.1.attentions.0.proj_in"),
        ("down_blocks.0.resnets.1.conv1#2", "down_blocks.0.resnets.1.conv1#2"),
    ],
)
def test_the_usual_blocks_of_diffusers(name, block):
    assert block_of(name, PATTERNS) == block


def test_a_recipe_may_cut_differently(model, codings):
    found = find_blocks(read_graph(model), layers_of(codings), ("down",))
    assert [block.name for block in found] == ["conv_in", "down", "conv_out"]
    assert (found[1].inputs, found[1].outputs) == (("h0",), ("h2",))


def test_a_pattern_that_is_no_block_is_an_error(model, codings):
    with pytest.raises(
        RecipeError, match=r"'\*.resnet.\*' is the block of none of the 6 layers to learn; one is 'conv_in'"
    ):
        find_blocks(read_graph(model), layers_of(codings), ("*.resnet.*",))
