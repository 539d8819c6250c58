"""Bit operations of one call of a network, as its engine does them.

    BOPs = sum over products of  multiply-accumulates x bits of the weight x bits of the activation

(van Baalen et al. 2020, arXiv:2005.07093, section 3; one sample, one branch of guidance.) Bits are those that the
multiplier gets: a layer counts in integers when its weight and its input are both coded in eight bits or fewer, and
with the bits of the floats it computes in otherwise, for weights that are unpacked before they meet a float, and codes
of 16 bits that float kernels read, save bytes and no operations. Products of two activations, Q K^T and softmax(S) V,
count where the table of sites has their work. What is not a product (norms, softmax, sums) is not counted.

A W4A8 layer counts 4 x 8, as publications count it, though no kernel here multiplies 4 bits: it is unpacked and runs
at the speed of 8 x 8. `stored=False` counts it so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BITS = {"int4": 4, "int8": 8, "uint8": 8, "float8": 8, "float16": 16, "float32": 32}
KERNELS = 8  # the fewest bits that a kernel multiplies


@dataclass(frozen=True)
class Work:
    """One product: its multiply-accumulates, and the bits of its two factors."""

    name: str
    macs: int
    weight: int = 32
    activation: int = 32

    @property
    def bops(self) -> int:
        """Bit operations."""
        return self.macs * self.weight * self.activation


def bit_operations(table: Mapping[str, Any], *, stored: bool = True) -> int:
    """Bit operations of an engine, from the table in its unet.<target>.sites.json.

    With `stored` a code counts the bits it is stored in, otherwise those of the kernel that multiplies it.
    """
    return sum(work.bops for work in deployed(table, stored=stored))


def float_operations(table: Mapping[str, Any], bits: int = 32) -> int:
    """Bit operations of the same products in floats."""
    return sum(work.macs for work in deployed(table)) * bits**2


def deployed(table: Mapping[str, Any], *, stored: bool = True) -> Iterator[Work]:
    """What each layer, and each product of activations that has its work noted, multiplies.

    `table` holds `layers` of `name` and `macs`, `products` of `node` and `macs`, and `sites` of `layer`, `node`,
    `role`, `format` and `compute`. Work that nobody noted counts as 0.
    """
    sites = [site for site in table["sites"] if site["role"] in ("weight", "input", "layer", "operand", "product")]
    by_layer = {(site["layer"], site["role"]): site for site in sites if site["layer"]}
    for layer in table["layers"]:
        weight, fed, whole = (by_layer.get((layer["name"], role)) for role in ("weight", "input", "layer"))
        yield Work(layer["name"], layer["macs"] or 0, *_bits(weight, fed, whole or weight, stored))
    operands: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        if not site["layer"]:
            operands.setdefault(site["node"], []).append(site)
    for product in table.get("products", ()):
        found = operands.get(product["node"], [])
        coded = [site for site in found if site["role"] == "operand"]
        first, second = coded if len(coded) == 2 else (None, None)
        yield Work(product["node"], product["macs"] or 0, *_bits(first, second, next(iter(found), None), stored))


def _bits(
    weight: Mapping[str, Any] | None, fed: Mapping[str, Any] | None, whole: Mapping[str, Any] | None, stored: bool
) -> tuple[int, int]:
    """Bits of both factors: of the codes where both are coded in few bits, else of the floats around."""
    bits = [BITS.get(site["format"], 32) if site else 32 for site in (weight, fed)]
    if max(bits) <= KERNELS:
        return (bits[0], bits[1]) if stored else (max(bits[0], KERNELS), max(bits[1], KERNELS))
    around = BITS[whole["compute"]] if whole else 32
    return around, around
