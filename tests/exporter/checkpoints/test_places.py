import pytest

from quaver.exporter.checkpoints.places import assign, build, by_module, place_of
from quaver.exporter.checkpoints.tensors import read_tensors
from quaver.runtime.errors import RecipeError

torch = pytest.importorskip("torch")


def layers():
    return build(lambda: torch.nn.ModuleDict({"one": torch.nn.Linear(2, 3), "two": torch.nn.Conv2d(2, 3, 1)}))


PLACES = {"one": "first", "two": "block.second"}


def weights(**changed):
    there = {
        "first.weight": torch.ones(3, 2, 1),
        "first.bias": torch.ones(3),
        "block.second.weight": torch.ones(3, 2),
        "block.second.bias": torch.ones(3),
    }
    return there | changed


def test_the_nearest_entry_above_a_parameter_counts():
    places = {"a": "x", "a.b": "y"}
    assert [place_of(n, places) for n in ("a.c.weight", "a.b.weight", "z.weight")] == [
        "x.c.weight",
        "y.weight",
        "z.weight",
    ]


def test_trailing_ones_of_a_shape_do_not_matter():
    filled = assign(layers(), weights(), PLACES, what="it")
    assert filled["one"].weight.shape == (3, 2) and filled["two"].weight.shape == (3, 2, 1, 1)


def test_weights_of_fp32_stay_where_the_file_is_mapped_and_others_become_fp32(tmp_path):
    mixed = weights(**{"first.bias": torch.ones(3, dtype=torch.float16)})
    torch.save(mixed, tmp_path / "m.ckpt")
    tensors = read_tensors(tmp_path / "m.ckpt")
    filled = assign(layers(), tensors, PLACES, what="it")
    assert filled["one"].weight.data_ptr() == tensors["first.weight"].data_ptr()
    assert filled["one"].bias.dtype == torch.float32 and not filled["one"].bias.requires_grad


def test_missing_and_unexpected_keys_are_counted_by_module():
    there = weights(**{f"decoder.up.0.block.{i}.weight": torch.ones(1) for i in range(5)})
    del there["first.weight"], there["first.bias"]
    with pytest.raises(RecipeError) as raised:
        assign(layers(), there, PLACES, what="the U-Net of m.ckpt")
    assert str(raised.value) == (
        "the U-Net of m.ckpt is not the network that its configuration describes. "
        "2 keys are missing: first 2 (weight, bias). "
        "5 are unexpected: decoder.up.0 5 (block.0.weight, block.1.weight, block.2.weight, 2 more). "
        "Give its own configuration"
    )


def test_keys_below_what_is_ignored_may_be_left_over():
    assign(layers(), weights(**{"loss.weight": torch.ones(1)}), PLACES, what="it", ignored=("loss.",))


def test_another_shape_is_said_with_what_was_expected():
    with pytest.raises(RecipeError, match=r"1 have another shape: first.weight is \[3, 5\], expected \[3, 2\]"):
        assign(layers(), weights(**{"first.weight": torch.ones(3, 5)}), PLACES, what="it")


def test_many_modules_are_cut_short():
    assert by_module([f"m.{i}.x.weight" for i in range(9)]).endswith("; 6 more modules")
