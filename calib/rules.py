"""Ordered rules: which format each layer gets.

A rule matches layer names by shell pattern ("*.attn1.*"); the first rule that matches a layer decides for it; a layer
that no rule matches stays float. A rule that decides for no layer is an error, unless it is marked optional (presets
cover models that lack some of the layers they name).

The preset "8w8a" is PTQ4ADM's (arXiv:2409.13894, section 3.3): 8-bit weights and activations for convolutions and for
feed-forward and projection linears; attention, norms, the first and last convolution and the time embedding stay float.
"4w8a" is the same with 4-bit weights. "d2-4w8a" is D2-DPM's: 4-bit weights and 8-bit activations
everywhere, 8 bits for the first and last layers, which read an input of the network or write its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from quaver.runtime.errors import RecipeError, unknown

FORMATS = ("float", "int8", "int4", "float8", "int16")


@dataclass(frozen=True)
class Rule:
    """One line of the rule list.

    match: shell pattern on layer names. weight, activation: one of FORMATS ("float" leaves it alone; "int8"
    activations become the target's own 8-bit format; a target refuses what it cannot run). reason: goes into the site
    file. optional: may match nothing.
    """

    match: str
    weight: str = "int8"
    activation: str = "int8"
    reason: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        for field in ("weight", "activation"):
            value = getattr(self, field)
            if value not in FORMATS:
                known = ", ".join(FORMATS)
                raise RecipeError(f"rule {self.match!r}: {field} = {value!r} is not a format; use one of {known}")

    @property
    def quantized(self) -> bool:
        """True when the rule changes anything."""
        return self.weight != "float" or self.activation != "float"


def _float(match: str, reason: str) -> Rule:
    return Rule(match, "float", "float", reason, optional=True)


UNMATCHED = Rule("", "float", "float", "no rule matches this layer")

_KEEP = (
    _float("*attn*.to_[qkv]", "attention projections stay float (preset)"),
    _float("*attn*.to_out.*", "attention output stays float (preset)"),
    _float("conv_in", "first convolution stays float (preset)"),
    _float("conv_out", "last convolution stays float (preset)"),
    _float("time_embedding.*", "time embedding stays float (preset)"),
    _float("time_proj*", "time embedding stays float (preset)"),
    _float("class_embedding*", "conditioning embedding stays float (preset)"),
    _float("add_embedding*", "conditioning embedding stays float (preset)"),
)

_ENDS = ("conv_in", "time_embedding.linear_1", "class_embedding*", "add_embedding.linear_1", "conv_out")

PRESETS: Mapping[str, tuple[Rule, ...]] = {
    "float": (_float("*", "preset float"),),
    "8w8a": (*_KEEP, Rule("*", "int8", "int8", "preset 8w8a", optional=True)),
    "4w8a": (*_KEEP, Rule("*", "int4", "int8", "preset 4w8a", optional=True)),
    "d2-4w8a": (
        *(Rule(match, "int8", "int8", "first or last layer (preset d2-4w8a)", optional=True) for match in _ENDS),
        Rule("*", "int4", "int8", "preset d2-4w8a", optional=True),
    ),
}


def preset(name: str) -> tuple[Rule, ...]:
    """The rules of a named preset. Raises: RecipeError naming the nearest one when there is none."""
    if name not in PRESETS:
        raise RecipeError(unknown("preset", name, PRESETS))
    return PRESETS[name]


def resolve(rules: Sequence[Rule], names: Iterable[str]) -> dict[str, Rule]:
    """The deciding rule of every layer name: the first that matches, UNMATCHED when none does.

    Raises RecipeError for a rule that decides for no layer and is not optional, saying whether its pattern is wrong
    or an earlier rule shadows it.
    """
    names = list(names)
    decided = {name: next((r for r in rules if fnmatchcase(name, r.match)), UNMATCHED) for name in names}
    used = {id(rule) for rule in decided.values()}
    for rule in rules:
        if id(rule) not in used and not rule.optional:
            raise RecipeError(_unused(rule, names))
    return decided


def _unused(rule: Rule, names: Sequence[str]) -> str:
    if any(fnmatchcase(name, rule.match) for name in names):
        return f"rule {rule.match!r} decides nothing: earlier rules match all its layers; move it up or delete it"
    near = get_close_matches(rule.match.replace("*", ""), names, 1, cutoff=0.3)
    hint = f"; the nearest layer is {near[0]!r}" if near else ""
    return f"rule {rule.match!r} matches none of the {len(names)} layers{hint}"
