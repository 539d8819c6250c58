"""Ordered rules: which format each layer gets.

A rule matches layer names by shell pattern ("*.attn1.*"); the first rule that matches a layer decides for it; a layer
that no rule matches stays float. A rule that decides for no layer is an error, unless it is marked optional (presets
cover models that lack some of the layers they name).

Presets are named after the bits of weights and activations. "8w8a" is PTQ4ADM's (arXiv:2409.13894, section 3.3):
convolutions and feed-forward and projection linears are coded; attention, norms, the first and last convolution and the
time embedding stay float. The same layers are coded by

    4w8a    4-bit weights             8w16a   16-bit activations
    8w, 4w  weights alone, 4-bit ones in blocks of 64 inputs
    fp8     E4M3 for both

and with the ending "-attention" (8w8a-attention, ..) the projections of attention too. "16w16a" is float16 everywhere,
"float" codes nothing. "d2-4w8a" is D2-DPM's: 4-bit weights and 8-bit activations everywhere, 8 bits for the first and
last layers, which read an input of the network or write its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from quaver.runtime.errors import RecipeError, unknown

FLOATS = ("float", "float32", "float16")
FORMATS = (*FLOATS, "int16", "int8", "int4", "float8")


@dataclass(frozen=True)
class Rule:
    """One line of the rule list.

    match: shell pattern on layer names. weight, activation: one of FORMATS. "float" leaves it as the rest of the graph
    is, "float16" and "float32" say which; "int8" and "int16" activations become the target's own format of that width;
    a target refuses what it cannot run. reason: goes into the site file. optional: may match nothing. block: one scale
    per so many weights along the input dimension; 0: one per output channel.
    """

    match: str
    weight: str = "int8"
    activation: str = "int8"
    reason: str = ""
    optional: bool = False
    block: int = 0

    def __post_init__(self) -> None:
        for field in ("weight", "activation"):
            value = getattr(self, field)
            if value not in FORMATS:
                known = ", ".join(FORMATS)
                raise RecipeError(f"rule {self.match!r}: {field} = {value!r} is not a format; use one of {known}")
        if self.block < 0 or 0 < self.block < 16:
            raise RecipeError(f"rule {self.match!r}: block = {self.block}; expected 0 (none), or 16 weights or more")

    @property
    def quantized(self) -> bool:
        """True when the rule codes anything."""
        return not {self.weight, self.activation} <= set(FLOATS)


def _float(match: str, reason: str) -> Rule:
    return Rule(match, "float", "float", reason, optional=True)


UNMATCHED = Rule("", "float", "float", "no rule matches this layer")

_ATTENTION = (
    _float("*attn*.to_[qkv]", "attention projections stay float (preset)"),
    _float("*attn*.to_out.*", "attention output stays float (preset)"),
)
_ENDS_AND_TIME = (
    _float("conv_in", "first convolution stays float (preset)"),
    _float("conv_out", "last convolution stays float (preset)"),
    _float("time_embedding.*", "time embedding stays float (preset)"),
    _float("time_proj*", "time embedding stays float (preset)"),
    _float("class_embedding*", "conditioning embedding stays float (preset)"),
    _float("add_embedding*", "conditioning embedding stays float (preset)"),
)

_CODED = {
    "8w8a": ("int8", "int8", 0),
    "4w8a": ("int4", "int8", 0),
    "8w16a": ("int8", "int16", 0),
    "8w": ("int8", "float", 0),
    "4w": ("int4", "float", 64),
    "fp8": ("float8", "float8", 0),
}

_ENDS = ("conv_in", "time_embedding.linear_1", "class_embedding*", "add_embedding.linear_1", "conv_out")


def _everywhere(name: str, weight: str, activation: str, block: int = 0) -> Rule:
    return Rule("*", weight, activation, f"preset {name}", True, block)


PRESETS: Mapping[str, tuple[Rule, ...]] = {
    "float": (_float("*", "preset float"),),
    "16w16a": (_everywhere("16w16a", "float16", "float16"),),
    **{name: (*_ATTENTION, *_ENDS_AND_TIME, _everywhere(name, *formats)) for name, formats in _CODED.items()},
    **{f"{name}-attention": (*_ENDS_AND_TIME, _everywhere(name, *formats)) for name, formats in _CODED.items()},
    "d2-4w8a": (
        *(Rule(m, "int8", "int8", "first or last layer (preset d2-4w8a)", True) for m in _ENDS),
        _everywhere("d2-4w8a", "int4", "int8"),
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
