"""Ranges that another tool calibrated: the `_amax` of pytorch-quantization and nvidia-modelopt checkpoints.

    <layer>.input_quantizer._amax       nvidia-modelopt
    <layer>._input_quantizer._amax      pytorch-quantization

say that the input of <layer> was calibrated to [-amax, amax]. Layers are modules of the same network, so that their
names are those of the traced graph. One amax per channel becomes the largest of them: an edge has one scale. Weights
keep their own values: their `_amax` only tells a layer from other quantized places (norms, attention products), which
have none here and are counted, not used. Layers that the checkpoint does not quantize keep the ranges of the records.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from quaver.calib.graph import Layer
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress

OBSERVED = "records"  # the source that is no checkpoint
KEY = re.compile(r"(?P<name>.+)\._?(?P<what>\w+)_quantizer\._amax")
SHOWN = 8


def import_amax(source: str, found: Sequence[Layer], *, prefix: str, progress: Progress) -> dict[str, float]:
    """The amax of every edge that a quantized layer of the checkpoint `source` reads; none for OBSERVED.

    Raises: as `read_amax` and `match_layers`.
    """
    if source == OBSERVED:
        return {}
    ranges = match_layers(read_amax(Path(source)), found, prefix=prefix, source=source)
    inputs = {layer.input for layer in found}
    progress.say(f"ranges  {len(ranges)} of {len(inputs)} layer inputs from {source}, the others from the records")
    return ranges


def amax_file(source: str) -> list[Path]:
    """The checkpoint among what the stage reads."""
    return [] if source == OBSERVED else [Path(source)]


def match_layers(
    amax: Mapping[str, np.ndarray], found: Sequence[Layer], *, prefix: str, source: str
) -> dict[str, float]:
    """The amax of every edge that a layer of the graph reads, from a checkpoint's keys.

    Raises: RecipeError listing the quantized layers of the checkpoint that the graph has not, or saying that there are
    none, or naming a value that cannot be one.
    """
    own = [key for key in amax if key.startswith(prefix)]
    places = {key: match for key in own if (match := KEY.fullmatch(key.removeprefix(prefix)))}
    inputs = {match["name"]: key for key, match in places.items() if match["what"] == "input"}
    quantized = {match["name"] for match in places.values() if match["what"] == "weight"}
    edges: dict[str, list[str]] = {}
    for layer in found:
        edges.setdefault(layer.name.partition("#")[0], []).append(layer.input)
    if unmatched := sorted(quantized & inputs.keys() - edges.keys()):
        listed = ", ".join(unmatched[:SHOWN]) + (", ..." if len(unmatched) > SHOWN else "")
        raise RecipeError(
            f"{source}: {len(unmatched)} of {len(quantized)} quantized layers are none of the graph's {len(edges)}:"
            f" {listed}; the graph has {next(iter(edges), 'none')!r}: set ranges.prefix to what stands before such"
            " names, or name the checkpoint of this model"
        )
    ranges: dict[str, float] = {}
    for name in sorted(inputs.keys() & edges.keys()):
        value = float(np.max(amax[inputs[name]]))
        if not 0 <= value < np.inf:
            raise RecipeError(
                f"{source}: {inputs[name]} is {value}, expected a finite number, 0 or more: calibrate anew"
            )
        for edge in edges[name]:
            ranges[edge] = max(ranges.get(edge, 0.0), value)
    if not ranges:
        raise RecipeError(
            f"{source} has no input range of a layer of the graph ({len(amax)} keys end in '_amax', expected such as"
            f" '{prefix}{next(iter(edges), 'conv_in')}.input_quantizer._amax'): name a calibrated checkpoint"
        )
    return ranges


def read_amax(path: Path) -> dict[str, np.ndarray]:
    """Every `_amax` of a checkpoint, .safetensors or what torch.save wrote, by its key.

    Nothing in the file is executed. Raises: RecipeError when it is missing, ArtifactError when it is damaged or holds
    more than tensors.
    """
    if not path.is_file():
        raise RecipeError(f"ranges.source {path} does not exist: name a checkpoint, or {OBSERVED!r}")
    if path.suffix == ".safetensors":
        try:
            return dict(_from_safetensors(path))
        except SafetensorError as error:
            raise ArtifactError(f"{path} is damaged ({error}): save the checkpoint again") from error
    torch = need("torch", extra="export")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged or holds more than tensors ({str(error).splitlines()[0]}):"
            " save its state dict with torch.save or safetensors"
        ) from error
    return {key: value.float().numpy() for key, value in _tensors(held) if key.endswith("_amax")}


def _from_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with safe_open(path, framework="np") as file:
        keys = [key for key in file.keys() if key.endswith("_amax")]  # noqa: SIM118
        if all(file.get_slice(key).get_dtype() != "BF16" for key in keys):
            yield from ((key, file.get_tensor(key)) for key in keys)
            return
    need("torch", extra="export")  # numpy has no bfloat16
    with safe_open(path, framework="pt") as file:
        yield from ((key, file.get_tensor(key).float().numpy()) for key in keys)


def _tensors(held: Any) -> Iterator[tuple[str, Any]]:
    """The tensors of a state dict, or of one that is a value in it ("state_dict", "model_state_dict", "model")."""
    if isinstance(held, Mapping):
        for key, value in held.items():
            if isinstance(value, Mapping):
                yield from _tensors(value)
            elif hasattr(value, "numpy"):
                yield str(key), value
