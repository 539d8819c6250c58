"""An engine runs one graph: named arrays in, one array out. Who executes it is a detail behind this protocol.

Backends are peers, one file each in `backends/` with the same two functions:

    open_engine(source, *, threads=None) -> Engine       raises EngineError when it cannot
    available() -> bool                                  whether what it needs is installed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from quaver.runtime.errors import EngineError
from quaver.runtime.plug import plug

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API

BACKENDS = {
    "onnxruntime": "quaver.runtime.backends.onnxruntime:open_engine",
    "tensorrt": "quaver.runtime.backends.tensorrt:open_engine",
    "eager": "quaver.runtime.backends.eager:open_engine",
}


class Engine(Protocol):
    """A graph ready to run; used with `with`, or closed by `close()`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the graph's order."""

    @property
    def digest(self) -> str:
        """Digest of what is run, "sha256:<64 hex>"."""

    @property
    def backend(self) -> str:
        """What runs it, a name of `BACKENDS`; with onnxruntime's execution provider where that is not the CPU."""

    @property
    def tensors(self) -> bool:
        """Whether it reads torch's tensors where they lie, on its GPU, and answers them with a tensor there."""

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        """Run once on exactly the arrays that `inputs` names. Raises: EngineError when they do not fit."""

    def close(self) -> None:
        """Free what the engine holds; it cannot run any more."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...


def open_engine(
    source: Path | Any, *, backend: str | None = None, threads: int | None = None, provider: str | None = None
) -> Engine:
    """Open an ONNX file or a plan, or whatever else `backend` runs (`eager`: a torch module); threads None means all
    cores, backend None the one of the file's suffix, provider None the CPU of the backend onnxruntime.

    Raises: RecipeError for an unknown backend; EngineError when the engine cannot be opened.
    """
    if backend is None:
        backend = "tensorrt" if str(source).endswith(".plan") else "onnxruntime"
    if provider and backend != "onnxruntime":
        raise EngineError(f"execution providers are onnxruntime's, and {source} is run by {backend}: name none")
    options = {"provider": provider} if provider else {}
    return plug(backend, BACKENDS, what="backend")(source, threads=threads, **options)


def check_feeds(name: str, feeds: Mapping[str, Any], inputs: tuple[str, ...]) -> None:
    """Raise EngineError unless exactly the arrays of `inputs` are fed."""
    if set(feeds) != set(inputs):
        raise EngineError(
            f"{name} takes {', '.join(inputs)}, but was fed {', '.join(feeds) or 'nothing'}: "
            "is this the graph of another model family?"
        )
