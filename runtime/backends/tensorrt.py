"""Plans of TensorRT 10 and 11 and of TensorRT-RTX, whose Python modules are alike, run on an NVIDIA GPU.

    inputs -> device -> execution context of their shape -> output

torch's CUDA tensors are read where they lie, after what their stream has still to do, and the answer is a tensor.
Arrays go through page-locked memory, and to the device only when their values changed: conditioning goes there once.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.cuda import Gpu, open_gpu
from quaver.runtime.engine import check_feeds
from quaver.runtime.errors import EngineError
from quaver.runtime.execution import Context, Opened, captures_itself, on_gpu
from quaver.runtime.plan import ANEW, EXTRAS, Plan, check_gpu, load_library, read_plan

SHAPES = 4  # whose contexts are kept: the batches of a run have two, the last one is smaller


def available() -> bool:
    """Whether TensorRT or TensorRT-RTX is installed."""
    return any(importlib.util.find_spec(name) is not None for name in EXTRAS)


def open_engine(source: Path, *, threads: int | None = None) -> PlanEngine:
    """Open a plan with one output on the first GPU; `threads` is for backends that run on the CPU.

    Raises: ArtifactError when the plan or its sidecar is missing or is not what it was; EngineError without a driver
    or a GPU, or for a plan of another GPU or version; QuaverError when its library is not installed.
    """
    plan = read_plan(Path(source))
    gpu = open_gpu()
    try:
        check_gpu(plan, gpu.capability)
        return PlanEngine(plan, open_plan(plan, load_library(plan), gpu))
    except BaseException:
        gpu.close()
        raise


def open_plan(plan: Plan, trt: Any, gpu: Gpu) -> Opened:
    """A plan on a GPU. Raises: EngineError in the library's words, or when it has more than one output."""
    logger, errors = _logger(trt)
    with gpu.current():
        runtime = trt.Runtime(logger)
        if "VERSION_COMPATIBLE" in plan.options:
            runtime.engine_host_code_allowed = True  # such a plan brings the runtime of its version along
        engine = runtime.deserialize_cuda_engine(plan.path.read_bytes())
    if engine is None:
        said = errors[0] if errors else "it gives no reason"
        raise EngineError(f"{plan.library} cannot open {plan.path} ({said}): {ANEW}")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    outputs = [name for name in names if name not in inputs]
    if len(outputs) != 1:
        raise EngineError(f"{plan.path} has {len(outputs)} outputs, expected 1: is this the plan of a denoiser?")
    kinds = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
    return Opened(plan.path.name, trt, engine, gpu, inputs, outputs[0], kinds, errors, not captures_itself(trt))


class PlanEngine:
    """A plan as an engine; answers arrays with a numpy array, and CUDA tensors of torch with such a tensor."""

    tensors = True

    def __init__(self, plan: Plan, opened: Opened) -> None:
        self.backend = f"tensorrt on {opened.gpu.capability}"  # TensorRT-RTX compiles kernels where a plan runs
        self.digest, self.inputs, self.name, self.gpu = plan.digest, opened.inputs, opened.name, opened.gpu
        self.opened: Opened | None = opened
        self.contexts: OrderedDict[tuple[tuple[int, ...], ...], Context] = OrderedDict()

    def __call__(self, feeds: Mapping[str, Any]) -> Any:
        """Run once. Raises: EngineError when the feeds do not fit, or the GPU fails."""
        if self.opened is None:
            raise EngineError(f"{self.name} is closed: open it again with open_engine")
        check_feeds(self.name, feeds, self.inputs)
        given = {n: feeds[n] if on_gpu(feeds[n]) else np.asarray(feeds[n]) for n in self.inputs}
        for name, value in given.items():
            _check(self.opened, name, value)
        with self.gpu.current():
            context = self._context(self.opened, given)
            device = next((value.device for value in given.values() if on_gpu(value)), None)
            return context.answer_array(given) if device is None else context.answer_tensor(given, device)

    def close(self) -> None:
        """Free what is on the GPU."""
        if self.opened is None:
            return
        with self.gpu.current():
            for context in self.contexts.values():
                context.close()
            self.contexts.clear()
            self.opened = None
        self.gpu.close()

    def __enter__(self) -> PlanEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _context(self, opened: Opened, given: Mapping[str, Any]) -> Context:
        """The context of these inputs' shapes; the one that was not used for longest makes room for a new one."""
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        key = tuple(shapes.values())
        if key not in self.contexts:
            while len(self.contexts) >= SHAPES:
                self.contexts.popitem(last=False)[1].close()
            self.contexts[key] = Context(opened, shapes)
        self.contexts.move_to_end(key)
        return self.contexts[key]


def _check(opened: Opened, name: str, value: Any) -> None:
    """Raise EngineError unless a feed has the type of its input, and lies on this GPU if on any."""
    kind, wanted = str(value.dtype).removeprefix("torch."), opened.kinds[name].name
    if kind != wanted:
        raise EngineError(
            f"{opened.name} was fed {name} {kind} {list(value.shape)}, expected {wanted}: does bundle.json belong to"
            " this plan?"
        )
    if on_gpu(value) and value.device.index != opened.gpu.index:
        raise EngineError(
            f"{opened.name} runs on cuda:{opened.gpu.index} and was fed {name} on cuda:{value.device.index}: move it"
            f" there with .to('cuda:{opened.gpu.index}')"
        )


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger of the library's, and the list in which it keeps the first line of every error."""
    errors: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 1:  # INTERNAL_ERROR, ERROR
                errors.append(message.partition("\n")[0][:300])

    return Logger(), errors
