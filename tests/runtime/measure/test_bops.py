from __future__ import annotations

from typing import Any

import pytest

from quaver.runtime.measure import bops


def site(layer: str, role: str, kind: str, *, node: str = "", compute: str = "float32") -> dict[str, Any]:
    return {"layer": layer, "node": node or layer, "role": role, "format": kind, "compute": compute}


TABLE = {
    "layers": [{"name": name, "macs": 100} for name in ("w8a8", "w4a8", "w4", "wide", "half", "float")]
    + [{"name": "unknown", "macs": None}],
    "products": [{"node": "scores", "macs": 10}, {"node": "mixed", "macs": 10}],
    "sites": [
        site("w8a8", "weight", "int8"),
        site("w8a8", "input", "uint8"),
        site("w4a8", "weight", "int4"),
        site("w4a8", "input", "int8"),
        site("w4", "weight", "int4", compute="float16"),
        site("wide", "weight", "int8"),
        site("wide", "input", "uint16"),
        site("half", "layer", "float", compute="float16"),
        site("float", "layer", "float"),
        site("", "operand", "int8", node="scores"),
        site("", "operand", "int8", node="scores"),
        site("", "product", "float", node="mixed", compute="float16"),
    ],
}


def test_every_product_counts_the_bits_that_are_multiplied():
    found = {work.name: (work.weight, work.activation) for work in bops.deployed(TABLE)}
    assert found == {
        "w8a8": (8, 8),
        "w4a8": (4, 8),
        "w4": (16, 16),  # unpacked before it meets a float
        "wide": (32, 32),  # 16-bit codes are read by float kernels
        "half": (16, 16),
        "float": (32, 32),
        "unknown": (32, 32),
        "scores": (8, 8),
        "mixed": (16, 16),
    }
    assert bops.bit_operations(TABLE) == 100 * (64 + 32 + 256 + 1024 + 256 + 1024) + 10 * (64 + 256)
    assert bops.float_operations(TABLE) == (600 + 20) * 1024


def test_a_kernel_of_eight_bits_multiplies_four_as_eight():
    by_kernel = {work.name: work.bops for work in bops.deployed(TABLE, stored=False)}
    assert by_kernel["w4a8"] == by_kernel["w8a8"] == 6400


def test_a_table_without_products_counts_its_layers():
    table = {key: rows for key, rows in TABLE.items() if key != "products"}
    assert bops.bit_operations(TABLE) - bops.bit_operations(table) == pytest.approx(10 * (64 + 256))
