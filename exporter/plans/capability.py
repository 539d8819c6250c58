"""What GPU generations multiply, and what a plan for several of them may therefore hold.

            int8, int4    float8
    SM75        no          no      Turing; measured: INT8 convolutions compile to float kernels without a word, INT8
                                    products are refused in 32-bit graphs and compile in 16-bit ones, INT4 is refused
    SM80 to 87  yes         no      Ampere
    SM89        yes         yes     Ada
    SM90        yes         yes     Hopper
    SM100 on    yes         yes     Blackwell

A plan of TensorRT-RTX is one compiled graph for all its capabilities, so one that lacks a format takes it from all:
INT8 for SM75 and SM89 together gave float kernels for both. What cannot be is therefore refused before the build. Which
of them a target builds plans for stands in `targets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quaver.runtime.errors import RecipeError

_TURING = "INT8 falls back to float kernels there, or is refused"
_AMPERE = "8-bit floats came with SM89"
# capability -> format of a site -> why it cannot run there; those that lack nothing are not in it
LACKS: Mapping[str, Mapping[str, str]] = {
    "SM75": {"int8": _TURING, "int4": "it has no kernels for 4-bit weights", "float8": _AMPERE},
    "SM80": {"float8": _AMPERE},
    "SM86": {"float8": _AMPERE},
    "SM87": {"float8": _AMPERE},
}
INSTEAD = {
    "SM75": "leave SM75 out of build.compute_capabilities, and make its own plan from 16-bit floats",
    "": "use 'int8' in the rules, or leave {name} out of build.compute_capabilities",
}


def check_capabilities(capabilities: Iterable[str], formats: Iterable[str]) -> None:
    """Hold the formats of a graph's weights and activations against every capability a plan is asked for.

    Raises: RecipeError naming one that lacks a format, with what to do instead.
    """
    used = set(formats)
    for name in capabilities:
        for kind, why in LACKS.get(name, {}).items():
            if kind in used:
                advice = INSTEAD.get(name, INSTEAD[""]).format(name=name)
                raise RecipeError(f"{name} cannot run {kind} ({why}): {advice}")


def runs(capability: str) -> list[str]:
    """The narrow formats that a capability multiplies."""
    return [kind for kind in ("int8", "int4", "float8") if kind not in LACKS.get(capability, {})]
