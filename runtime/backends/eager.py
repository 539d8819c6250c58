"""Torch modules, run as they are: the reference where there is no graph yet."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from quaver.runtime.engine import check_feeds
from quaver.runtime.errors import EngineError, first_line
from quaver.runtime.lazy import need


def available() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def open_engine(source: Any, *, threads: int | None = None) -> EagerEngine:
    """Take a torch module, called by the names of its `forward` that have no default, as an engine.

    `threads` sets the threads of the whole process, as torch has it. The module is put into evaluation mode.
    Raises: EngineError for anything but a module; QuaverError when torch is not installed.
    """
    torch = need("torch", extra="export")
    if not isinstance(source, torch.nn.Module):
        raise EngineError(
            f"backend 'eager' runs a torch.nn.Module, not {type(source).__name__}: use backend 'onnxruntime'"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return EagerEngine(torch, source.eval())


class EagerEngine:
    """A module as an engine; answers numpy arrays with a numpy array, tensors with a tensor."""

    backend, tensors = "eager", True

    def __init__(self, torch: Any, module: Any) -> None:
        self.torch, self.module = torch, module
        parameters = inspect.signature(module.forward).parameters.values()
        self.inputs = tuple(
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        )

    @cached_property
    def digest(self) -> str:
        """Digest of the module's class, and of its parameters and buffers by name."""
        total = hashlib.sha256(type(self.module).__qualname__.encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(flat.view(self.torch.uint8).numpy().tobytes())
        return f"sha256:{total.hexdigest()}"

    def __call__(self, feeds: Mapping[str, Any]) -> Any:
        """Run once, without gradients. Raises: EngineError when the feeds do not fit, or the module fails."""
        if self.module is None:
            raise EngineError("this module's engine is closed: open it again with open_engine")
        name = type(self.module).__name__
        check_feeds(name, feeds, self.inputs)
        device = next((p.device for p in self.module.parameters()), None)
        tensors = {key: self.torch.as_tensor(value, device=device) for key, value in feeds.items()}
        try:
            with self.torch.no_grad():
                out = self.module(**tensors)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(f"{name} failed: {first_line(error)}") from error
        plain = any(isinstance(value, np.ndarray) for value in feeds.values())
        return out.cpu().numpy() if plain else out

    def close(self) -> None:
        """Drop the module."""
        self.module = None

    def __enter__(self) -> EagerEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
