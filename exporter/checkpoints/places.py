"""Weights put where they belong: a module of ours, a checkpoint of theirs, and a table of which is which.

    places: module of the network -> module of the checkpoint        the nearest entry above a parameter counts

    resnets.0.conv1.weight   with   {"resnets.0": "block.0", "resnets.0.conv1": "block.0.in_layers.2"}
                             is     block.0.in_layers.2.weight

A network is built on the meta device, so that its weights exist once: as the pages of the checkpoint's file (fp32), or
as their conversion to fp32. A 1x1 convolution and a linear layer are the same numbers, so trailing ones of a shape do
not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from quaver.runtime.errors import RecipeError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

SHOWN = 3  # names a module, and three modules of each kind, before a message says how many more


def build(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A module without memory for its weights, in evaluation mode."""
    with need("torch", extra="export").device("meta"):
        return make().eval()


def assign(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    places: Mapping[str, str] | None = None,
    *,
    what: str,
    ignored: Collection[str] = (),
) -> torch.nn.Module:
    """The module with every parameter taken from `tensors` in fp32; keys below `ignored` may be left over.

    Raises: RecipeError listing, by module, the keys that are missing, left over, or of another shape.
    """
    wanted = {name: place_of(name, places) for name, _ in module.named_parameters()}
    missing = [key for key in wanted.values() if key not in tensors]
    over = [k for k in tensors if k not in {*wanted.values()} and not k.startswith(tuple(ignored))]
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    odd = [
        f"{key} is {list(tensors[key].shape)}, expected {list(shapes[name])}"
        for name, key in wanted.items()
        if key in tensors and _bare(tuple(tensors[key].shape)) != _bare(shapes[name])
    ]
    if missing or over or odd:
        raise RecipeError(_mismatch(what, missing, over, odd))
    filled = {name: tensors[key].float().reshape(shapes[name]).contiguous() for name, key in wanted.items()}
    module.load_state_dict(filled, strict=False, assign=True)
    return module.requires_grad_(False).eval()


def place_of(name: str, places: Mapping[str, str] | None) -> str:
    """The key of a parameter: its name, with the nearest module above it that has an entry replaced."""
    if places is None:
        return name
    head, rest = name, ""
    while head and head not in places:
        head, _, last = head.rpartition(".")
        rest = f".{last}{rest}"
    return f"{places[head]}{rest}" if head else name


def by_module(keys: Collection[str]) -> str:
    """Keys as one phrase: for each module their number and the first names."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        depth = min(3, len(parts) - 1)
        groups.setdefault(".".join(parts[:depth]), []).append(".".join(parts[depth:]))
    listed = [f"{module or 'top'} {len(n)} ({_few(n)})" for module, n in groups.items()]
    return _few(listed, "; ", "modules")


def _mismatch(what: str, missing: Collection[str], over: Collection[str], odd: Collection[str]) -> str:
    said = [f"{len(missing)} keys are missing: {by_module(missing)}"] if missing else []
    said += [f"{len(over)} are unexpected: {by_module(over)}"] if over else []
    said += [f"{len(odd)} have another shape: {_few(odd)}"] if odd else []
    return f"{what} is not the network that its configuration describes. {'. '.join(said)}. Give its own configuration"


def _few(names: Collection[str], joined: str = ", ", kind: str = "") -> str:
    first, more = list(names)[:SHOWN], len(names) - SHOWN
    return joined.join([*first, *([f"{more} more {kind}".strip()] if more > 0 else [])])


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing ones."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
