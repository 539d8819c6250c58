"""ONNX files, run by onnxruntime, on the CPU unless another of its execution providers is asked for.

The session's options are chosen for a sampler's loop, which calls one graph many times with little between the calls:
operators run one after another (the graph is a chain, running branches side by side takes cores from the kernels)
and the threads spin while they wait, which costs a core's idle time and saves their wake-up. A graph that runs once per
sample is opened with `spin=False`. Denormals stay: the option that flushes them does so for the caller's thread too.

Memory is not planned a call ahead, as onnxruntime would: the plan lies beside what the first call took. Everything else
is onnxruntime's default, for nothing is faster. Measured by `python -m benchmarks.ort_options` on a busy machine (two
cores, AVX2, one thread), seconds of the default over the option's at batch 2, medians over pairs with 95% intervals; a
session like the other one measures 0.97 [0.91, 1.00] and 1.02 [0.99, 1.05]:

                          float                W8A8
    pattern off           1.00 [0.94, 1.03]    0.99 [0.94, 1.04]    peak at batch 16: 176 to 125 MB, 113 to 80 MB
    arena off             0.99 [0.96, 1.01]    0.99 [0.95, 1.01]    by malloc, slower at batch 16: 0.71 [0.61, 0.87]
    I/O bound once        0.98 [0.94, 1.03]    1.00 [0.97, 1.02]    the output's copy is 0.1 MB
    extended, not all     0.93 [0.87, 0.99]    0.99 [0.94, 1.04]    float: 30 MB less, without blocks of channels
    no prepacked weights  0.93 [0.91, 1.05]    0.66 [0.61, 0.70]

With 185 M weights in W8A8 and a batch of 8, the peak above the loaded weights is 341 MB in the place of 696.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.artifact import digest_file
from quaver.runtime.engine import check_feeds
from quaver.runtime.errors import EngineError, first_line

_PROVIDER = "ExecutionProvider"
_OPTIONS = {"cuda": {"use_tf32": "0"}}  # the float graph is the reference, and TF32 has 10 bits
_QUIET = 3  # errors only: warnings here are about graph rewrites that a user cannot change
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def available() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def open_engine(source: Path, *, threads: int | None = None, spin: bool = True, provider: str = "cpu") -> OnnxEngine:
    """Open an ONNX file with one output, with `threads` threads (None: all cores), on an execution provider.

    `provider` is one that this onnxruntime has, without the word: "cpu", "cuda", "openvino"; what it does not run runs
    on the CPU. Raises: EngineError when it is missing, damaged, or not what onnxruntime can run.
    """
    path = Path(source)
    if not path.is_file():
        raise EngineError(f"{path} does not exist: 'quaver run RECIPE' writes it")
    engine = OnnxEngine(path, _session(path, threads, spin, provider), provider=provider)
    if len(outputs := engine.session.get_outputs()) != 1:
        raise EngineError(
            f"{path} has {len(outputs)} outputs, expected 1: is this a denoiser or a component of a bundle?"
        )
    return engine


class OnnxEngine:
    """A session of onnxruntime as an engine; arrays are numpy's (others are copied to the CPU)."""

    tensors = False

    def __init__(self, path: Path, session: Any, *, provider: str = "cpu") -> None:
        self.path, self.session = path, session
        self.backend = "onnxruntime" if provider == "cpu" else f"onnxruntime on {provider}"  # whose kernels err alike
        self._inputs = {node.name: (node.type, tuple(node.shape)) for node in session.get_inputs()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the graph's order."""
        return tuple(self._inputs)

    @cached_property
    def digest(self) -> str:
        """Digest of the file, read when first asked for."""
        return digest_file(self.path)

    def __call__(self, feeds: Mapping[str, Any]) -> np.ndarray:
        """Run once. Raises: EngineError when the feeds do not fit, or the graph fails."""
        if self.session is None:
            raise EngineError(f"{self.path.name} is closed: open it again with open_engine")
        check_feeds(self.path.name, feeds, self.inputs)
        arrays = {name: self._fitting(name, np.asarray(value)) for name, value in feeds.items()}
        try:
            return self.session.run(None, arrays)[0]
        except Exception as error:  # onnxruntime's classes derive from Exception alone
            raise EngineError(f"{self.path.name} failed: {first_line(error)}") from error

    def close(self) -> None:
        """Drop the session."""
        self.session = None

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fitting(self, name: str, array: np.ndarray) -> np.ndarray:
        kind, shape = self._inputs[name]
        wanted = _TYPES.get(kind, array.dtype)
        fixed = [isinstance(size, int) for size in shape]
        same = len(shape) == array.ndim and all(
            not f or s == a for f, s, a in zip(fixed, shape, array.shape, strict=True)
        )
        if array.dtype != wanted or not same:
            raise EngineError(
                f"{self.path.name} was fed {name} {array.dtype.name} {list(array.shape)}, expected "
                f"{np.dtype(wanted).name} {list(shape)}: does the latent shape in bundle.json belong to this graph?"
            )
        return np.asarray(array, order="C")


def session_options(threads: int | None = None, *, spin: bool = True) -> Any:
    """The `onnxruntime.SessionOptions` of an engine. Raises: EngineError for less than one thread."""
    import onnxruntime as ort

    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}, expected 1 or more: leave it out for all cores")
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads or _cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return options


def find_provider(name: str) -> tuple[str, dict[str, str]]:
    """onnxruntime's name of an execution provider, and its options.

    Raises: EngineError naming those that this onnxruntime has.
    """
    import onnxruntime as ort

    there = {provider.removesuffix(_PROVIDER).lower(): provider for provider in ort.get_available_providers()}
    if name not in there:
        raise EngineError(
            f"this onnxruntime has no execution provider {name!r} (it has: {', '.join(sorted(there))}): "
            "pip install onnxruntime-gpu in its place brings 'cuda'"
        )
    return there[name], _OPTIONS.get(name, {})


def _session(path: Path, threads: int | None, spin: bool, provider: str) -> Any:
    import onnxruntime as ort

    options, chosen = session_options(threads, spin=spin), find_provider(provider)
    try:
        return ort.InferenceSession(str(path), options, providers=[chosen])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        raise EngineError(
            f"onnxruntime cannot open {path} ({first_line(error)}): remove it, and 'quaver run RECIPE' writes it anew"
        ) from error


def _cores() -> int:
    """The cores this process may use where that is fewer than there are; else 0, onnxruntime's own choice.

    Left to itself, onnxruntime starts and pins a thread per core of the machine, also those it may not run on.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if usable < (os.cpu_count() or 1) else 0
