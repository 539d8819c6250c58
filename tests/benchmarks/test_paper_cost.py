from __future__ import annotations

import json

import pytest

from benchmarks import paper_cost
from benchmarks.shapes import ARCHS, network

pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow
# of each shape whose U-Net this diffusers builds: parameters, convolutions and linear layers
COUNTED = {
    "audioldm-l": (739_139_080, 284),
    "audioldm-m": (415_954_568, 284),
    "audioldm-s": (185_036_552, 284),
    "ldm4-imagenet-cin256-v2": (400_920_579, 283),
    "ldm4-lsun-bedrooms": (274_056_163, 155),
    "ldm8-lsun-churches": (294_966_916, 210),
    "make-an-audio": (160_223_684, 181),
    "tango": (865_933_768, 282),
}


@pytest.fixture(scope="module")
def arch() -> dict:
    return json.loads((ARCHS / f"{paper_cost.SHAPE}.json").read_text())


@pytest.fixture(scope="module")
def counted(arch: dict) -> tuple[list[paper_cost.Module], int]:
    return paper_cost.count(arch)


def test_statement_17_paper_mode_gives_the_published_operations(counted):
    """Statement 17: BOPs in paper mode are 8.760, 4.380 and 102.20 T on cin256-v2."""
    found = [paper_cost.paper_bops(*counted, *bits) / 1e12 for bits in ((8, 8), (4, 8), (32, 32))]
    assert found == pytest.approx([8.760, 4.380, 102.202], abs=5e-4)


def test_statement_17_like_for_like_gives_the_honest_operations(counted):
    """Statement 17: counted alike and over all layers they are 102.16, 10.10 and 7.03 T."""
    found = [paper_cost.honest_bops(counted[0], *bits) / 1e12 for bits in ((32, 32), (8, 8), (4, 8))]
    assert found == pytest.approx([102.16, 10.10, 7.03], abs=5e-3)


def test_statement_17_paper_mode_gives_the_published_sizes(arch):
    """Statement 17: sizes in paper mode are 1742.4, 436.5 and 218.8 MiB on cin256-v2."""
    named, rest = paper_cost.checkpoint(arch)
    found = [paper_cost.paper_bytes(named, rest, bits) / 2**20 for bits in (32, 8, 4)]
    assert found == pytest.approx([1742.43, 436.49, 218.83], abs=5e-3)


def test_the_layers_are_those_of_the_papers_code(counted):
    modules, normed = counted
    coded = [module for module in modules if not paper_cost.left_out(module)]
    assert (len(modules), len(coded), normed) == (283, 265, 9_216_000)
    assert sum(m.macs for m in coded if m.conv) == pytest.approx(68.2757e9, rel=1e-6)
    assert sum(paper_cost.attention(modules).values()) == pytest.approx(4.46e9, rel=1e-3)


def test_deployed_mode_counts_the_float_products_and_no_kernel_of_four_bits(arch, counted):
    modules = counted[0]
    tera = {file: paper_cost.deployed_bops(arch, modules, file) / 1e12 for file in ("", "W8", "W4")}
    assert tera[""] == pytest.approx(106.7, abs=0.05)
    assert tera["W8"] == tera["W4"]
    # below all in 16 bit, above all in 8
    assert tera[""] / 16 < tera["W8"] < tera[""] / 4


@pytest.mark.parametrize("name", COUNTED)
def test_statement_18_every_shape_has_the_parameters_of_its_model(name: str):
    """Statement 18: parameter counts exactly."""
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        unet = network(json.loads((ARCHS / f"{name}.json").read_text()))
    layers = [m for m in unet.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert (sum(p.numel() for p in unet.parameters()), len(layers)) == COUNTED[name]
