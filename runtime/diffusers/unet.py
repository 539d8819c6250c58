"""An engine in place of a pipeline's U-Net:   unet(x_t [N, C, H, W], t, **conditioning).sample

A pipeline reads `config`, `dtype` and `device` of a U-Net and calls it. An engine stays where it is and in the type it
was built: what comes is brought to it, and answered in the type and on the device of x_t. CUDA tensors stay where they
are for an engine that reads them there, as a plan of TensorRT does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.runtime.bundle import Bundle
from quaver.runtime.denoise import check_finite
from quaver.runtime.engine import Engine
from quaver.runtime.errors import EngineError
from quaver.runtime.families.onnx import unfitted
from quaver.runtime.lazy import need
from quaver.runtime.samplers import whole
from quaver.runtime.session import DEFAULT_TARGET, Session, open_bundle

if TYPE_CHECKING:
    import torch

Feeds = Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]  # x_t, t [N], conditioning -> inputs by name


class Placed:
    """What a pipeline asks of every network: its type, its device, and to move, which an engine does not do."""

    @property
    def dtype(self) -> torch.dtype:
        """float32, which every engine takes and answers."""
        return need("torch", extra="export").float32

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return need("torch", extra="export").device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Itself, where it was."""
        return self


class EngineUNet(Placed):
    """An engine as a U-Net of diffusers.

    latent_shape   [C, H, W]; with `free`, any H and W
    feeds          of the model's family: x_t, t, conditioning by name -> the engine's inputs
    config         what else a pipeline reads, for example `pipe.unet.config` of the U-Net it had
    """

    session: Session | None = None  # of a bundle, which may have statistics of this engine

    def __init__(
        self,
        engine: Engine,
        latent_shape: Sequence[int],
        *,
        feeds: Feeds = unfitted,
        free: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine, self.feeds, self.free = engine, feeds, free
        self.latent_shape = tuple(latent_shape)
        channels, high, wide = self.latent_shape
        size = high if high == wide else (high, wide)
        known = {"in_channels": channels, "out_channels": channels, "sample_size": size, **(config or {})}
        self.config = need("diffusers.configuration_utils", extra="export").FrozenDict(known)
        self._opened = ExitStack()

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle | Path | str,
        *,
        engine: str | Path = DEFAULT_TARGET,
        threads: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> EngineUNet:
        """The U-Net of a bundle by one of its engines: a target's name, "float", or the path of an ONNX file.

        Raises: as `open_bundle`.
        """
        opened = ExitStack()
        session = opened.enter_context(open_bundle(bundle, engine_file=engine, threads=threads))
        sound = {"sample_size": session.latent_shape[1]} if session.family.media == "sound" else {}
        unet = cls(
            session.engine,
            session.latent_shape,
            feeds=session.family.feeds,
            free=session.card.get("length") == "free",
            config={**sound, **(config or {})},
        )
        unet.session, unet._opened = session, opened
        return unet

    @property
    def add_embedding(self) -> Any:
        """What Stable Diffusion XL asks for the number of values that it adds to the time; `config` has it."""
        width = self.config.get("projection_class_embeddings_input_dim")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        *,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """What the engine says [N, C, H, W] of x_t [N, C, H, W] at t, [] or [N]; conditioning that is None is none.

        Raises: EngineError for latents, times or conditioning that the engine does not take, or for what is not finite.
        """
        given = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels, **others}
        given |= added_cond_kwargs or {}
        rows = {name: value for name, value in given.items() if value is not None}
        self._check(tuple(sample.shape[1:]), rows)
        torch, t = need("torch", extra="export"), timesteps(timestep, len(sample))
        stays = self.engine.tensors and sample.is_cuda
        bring, at = (finer, torch.from_numpy(t).to(sample.device)) if stays else (array, t)
        out = self.engine(self._fed(bring(sample), at, {name: bring(value) for name, value in rows.items()}))
        check_finite(out, int(t[0]))
        answer = torch.as_tensor(out).to(sample)
        output = need("diffusers.models.unets.unet_2d_condition", extra="export").UNet2DConditionOutput
        return output(sample=answer) if return_dict else (answer,)

    def close(self) -> None:
        """Free what was opened with the bundle."""
        self._opened.close()

    def _check(self, shape: tuple[int, ...], rows: Mapping[str, Any]) -> None:
        if shape[0] != self.latent_shape[0] or (shape != self.latent_shape and not self.free):
            raise EngineError(
                f"the pipeline asks for latents {list(shape)}, this engine is of {list(self.latent_shape)}: leave "
                "height, width or audio_length_in_s at what they are, or trace with model.length = 'free'"
            )
        if wrong := [name for name in rows if name not in self.engine.inputs]:
            raise EngineError(
                f"the pipeline gives {wrong[0]}, and this engine takes {', '.join(self.engine.inputs)} and nothing "
                "else: is it an engine of this pipeline's model?"
            )

    def _fed(self, x: Any, t: Any, rows: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.feeds(x, t, rows)
        except KeyError as error:
            raise EngineError(
                f"this engine needs {error.args[0]}, and the pipeline gives {', '.join(rows) or 'no conditioning'}: "
                "is it an engine of this pipeline's model?"
            ) from error


def timesteps(timestep: torch.Tensor | float, count: int) -> np.ndarray:
    """A time, [] or [1] or [N], as one per sample: [N] int64.

    Raises: EngineError for another number of them; QuaverError for a fraction of a timestep.
    """
    t = need("torch", extra="export").as_tensor(timestep).detach().cpu().reshape(-1).tolist()
    if len(t) not in (1, count):
        raise EngineError(f"{len(t)} timesteps for {count} samples: give one for all, or one each")
    return np.array([whole(value) for value in (t if len(t) == count else t * count)], dtype=np.int64)


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy has it: numbers as float32, integers as they are."""
    return finer(tensor.detach().cpu()).numpy()


def finer(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where it lies: numbers as float32, integers as they are."""
    plain = tensor.detach()
    return plain.float() if plain.is_floating_point() else plain
