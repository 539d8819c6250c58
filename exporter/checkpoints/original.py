"""A model out of its authors' checkpoint, whatever the family; and what the checkpoints of all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.exporter.checkpoints.layout import Checkpoint, read_settings, section
from quaver.exporter.checkpoints.signs import check_family
from quaver.exporter.checkpoints.tensors import averaged, read_tensors
from quaver.exporter.model.source import Model
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import Published, find_family
from quaver.runtime.plug import plug

if TYPE_CHECKING:
    import torch

LOADERS = {
    "audioldm": "quaver.exporter.checkpoints.audioldm:load",
    "ldm": "quaver.exporter.checkpoints.pictures:load",
    "make-an-audio": "quaver.exporter.checkpoints.make_an_audio:load",
    "tango": "quaver.exporter.checkpoints.tango:load",
}


def load_original(checkpoint: Checkpoint, family: str) -> Model:
    """The model of a checkpoint. Raises: RecipeError for another family's, a damaged or an incomplete one."""
    return plug(family, LOADERS, what="family of checkpoints")(checkpoint)


def read_weights(checkpoint: Checkpoint, family: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of `family`, averaged ones where it has them. Raises: RecipeError for another's."""
    tensors = averaged(read_tensors(checkpoint.weights))
    check_family(tensors, family, checkpoint.weights)
    return tensors


def model_params(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`model.params` of the configuration of a latent diffusion model. Raises: RecipeError when there is none."""
    if checkpoint.config is None:
        raise RecipeError(
            f"{checkpoint.weights} has no configuration beside it: put the model's .yaml there as "
            f"{checkpoint.weights.with_suffix('.yaml').name}"
        )
    return section(read_settings(checkpoint.config), "model", "params", where=checkpoint.config)


def schedule_of(params: Mapping[str, Any], published: Published) -> dict[str, Any]:
    """The published scheduler with the ends, length and prediction that a configuration of latent diffusion says."""
    said = dict(published.scheduler)
    names = {"linear_start": "beta_start", "linear_end": "beta_end"}
    said |= {ours: float(params[theirs]) for theirs, ours in names.items() if theirs in params}
    if "timesteps" in params:
        said["num_train_timesteps"] = int(params["timesteps"])
    if params.get("beta_schedule", "linear") != "linear":
        raise RecipeError(f"beta_schedule is {params['beta_schedule']!r}, expected 'linear': not supported")
    predicted = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    return said | {"prediction_type": predicted[params.get("parameterization", "eps")]}


def first_published(family: str) -> Published:
    """The model of a family that says what a checkpoint leaves open."""
    return next(iter(find_family(family).models.values()))


def example(*shape: int) -> np.ndarray:
    """An example of a conditioning input, two rows of normal numbers [2, *shape] float32."""
    return np.random.default_rng(0).standard_normal((2, *shape), np.float32)
