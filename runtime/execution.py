"""A plan on a GPU at one shape of its inputs: an execution context, its buffers, and the CUDA graphs captured from it.

    addresses of inputs and output -> enqueued the first time, captured the second, replayed from the third on

A graph holds addresses. They are always the same for arrays, which are copied to buffers; torch's allocator hands the
same ones out again as a sampler goes on. A context must not change after a capture, so each shape has one of its own.
TensorRT-RTX captures by itself, when the kernels of a shape are compiled; it is told to compile them before it answers
and not meanwhile, or the same call would give one answer early and another one late. Source: NVIDIA, "Working with RTX
CUDA Graphs".
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from quaver.runtime.cuda import Gpu
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need
from quaver.runtime.plan import ANEW

GRAPHS = 8  # of a context, one per set of addresses
ALIGNED = 256  # bytes: what TensorRT asks of addresses, and what every allocation has

log = logging.getLogger(__name__)


@dataclass
class Opened:
    """A plan's file name, the module that runs it, its engine, its GPU, the types of its tensors by name, what the
    library logged as errors, and whether its calls are captured as graphs."""

    name: str
    trt: Any
    engine: Any
    gpu: Gpu
    inputs: tuple[str, ...]
    output: str
    kinds: Mapping[str, np.dtype]
    errors: list[str]
    captures: bool

    def why(self) -> str:
        """The library's first error since it was last asked, in its words."""
        said = self.errors[0] if self.errors else "it gives no reason"
        self.errors.clear()
        return said


class Context:
    """An execution context at one shape of the inputs: its buffers, and the graphs captured from it."""

    def __init__(self, of: Opened, shapes: Mapping[str, Sequence[int]]) -> None:
        self.of, self.gpu = of, of.gpu
        profile = find_profile(of, shapes)
        self.config, self.context = _create(of)
        if not self.context.set_optimization_profile_async(profile, self.gpu.stream):
            raise EngineError(f"{of.name} refuses optimization profile {profile} ({of.why()}): {ANEW}")
        self.gpu.synchronize()
        taken = [self.context.set_input_shape(name, tuple(shape)) for name, shape in shapes.items()]
        if not all(taken) or self.context.infer_shapes():
            raise EngineError(f"{of.name} cannot take {dict(shapes)} ({of.why()}): {ANEW}")
        self.shape = tuple(self.context.get_tensor_shape(of.output))
        self.shapes = {**shapes, of.output: self.shape}
        self.buffers: dict[str, tuple[int, np.ndarray]] = {}  # on the device, and page-locked [bytes]
        self.sent: set[str] = set()
        self.seen: deque[tuple[int, ...]] = deque(maxlen=GRAPHS)
        self.graphs: dict[tuple[int, ...], int] = {}

    def answer_array(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output of numpy arrays."""
        address, host = self.buffer(self.of.output)
        self.run([*(self.upload(name, array) for name, array in given.items()), address])
        self.gpu.download(host, address)
        self.gpu.synchronize()
        return host.view(self.of.kinds[self.of.output]).reshape(self.shape).copy()  # the next call writes there again

    def answer_tensor(self, given: Mapping[str, Any], device: Any) -> Any:
        """The output of tensors on the GPU; arrays may be among them."""
        torch = need("torch", extra="export")
        theirs = torch.cuda.current_stream(device).cuda_stream
        ready = {name: _readable(value) if on_gpu(value) else value for name, value in given.items()}
        kind = getattr(torch, self.of.kinds[self.of.output].name)
        out = torch.empty(self.shape, dtype=kind, device=device)
        self.gpu.wait_for(theirs)
        inputs = [v.data_ptr() if on_gpu(v) else self.upload(name, v) for name, v in ready.items()]
        self.run([*inputs, out.data_ptr()])
        self.gpu.let_wait(theirs)  # so that memory given back to torch meanwhile is not written before it was read
        return out

    def run(self, addresses: Sequence[int]) -> None:
        """Put a call on the stream that reads and writes these addresses, those of the inputs and of the output."""
        key = tuple(addresses)
        if key in self.graphs:
            return self.gpu.launch(self.graphs[key])
        for name, address in zip((*self.of.inputs, self.of.output), key, strict=True):
            if not self.context.set_tensor_address(name, address):
                raise EngineError(f"{self.of.name} refuses the memory of {name} ({self.of.why()}): {ANEW}")
        if self.of.captures and key in self.seen and len(self.graphs) < GRAPHS and self.capture(key):
            return self.gpu.launch(self.graphs[key])
        self.seen.append(key)
        self.enqueue()

    def capture(self, key: tuple[int, ...]) -> bool:
        """Whether a call could be captured as a graph; the first that cannot be is the last that is tried."""
        try:
            self.graphs[key] = self.gpu.capture(self.enqueue)
        except EngineError as error:
            log.warning("%s: no CUDA graph, its kernels are launched one by one (%s)", self.of.name, error)
            self.of.captures = False
        return self.of.captures

    def enqueue(self) -> None:
        """Put the kernels on the stream. Raises: EngineError in the library's words."""
        if not self.context.execute_async_v3(self.gpu.stream):
            raise EngineError(f"{self.of.name} failed: {self.of.why()}")

    def upload(self, name: str, array: np.ndarray) -> int:
        """The address of a copy of an array on the device; what lies there already is not sent again.

        Values are compared, for an array may have been written to since: that is cheaper than the way to the device.
        """
        address, host = self.buffer(name)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if name not in self.sent or not np.array_equal(host, flat):
            self.gpu.synchronize()  # the last copy may still be read
            host[:] = flat
            self.gpu.upload(address, host)
            self.sent.add(name)
        return address

    def buffer(self, name: str) -> tuple[int, np.ndarray]:
        """Memory for a tensor on the device, and page-locked memory as large, allocated when first asked for."""
        if name not in self.buffers:
            size = int(np.prod(self.shapes[name], dtype=np.int64)) * self.of.kinds[name].itemsize
            with ExitStack() as undo:
                address = self.gpu.allocate(size)
                undo.callback(self.gpu.free, address)
                self.buffers[name] = address, self.gpu.lock(size)
                undo.pop_all()
        return self.buffers[name]

    def close(self) -> None:
        """Free graphs, buffers and context once the stream has done all."""
        self.gpu.synchronize()
        for graph in self.graphs.values():
            self.gpu.forget(graph)
        for address, host in self.buffers.values():
            self.gpu.free(address)
            self.gpu.unlock(host)
        self.graphs, self.buffers, self.context = {}, {}, None


def find_profile(of: Opened, shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of an optimization profile that takes these shapes of the inputs.

    Raises: EngineError with the shapes that the profiles take.
    """
    profiles = [
        {name: [tuple(shape) for shape in of.engine.get_tensor_profile_shape(name, index)] for name in shapes}
        for index in range(of.engine.num_optimization_profiles)
    ]
    for index, profile in enumerate(profiles):
        if all(_within(shape, profile[name]) for name, shape in shapes.items()):
            return index
    alone = [name for name, shape in shapes.items() if not any(_within(shape, p[name]) for p in profiles)]
    name = (alone or list(shapes))[0]
    taken = (f"{list(low)} to {list(high)}, tuned for {list(best)}" for low, best, high in (p[name] for p in profiles))
    raise EngineError(
        f"{of.name} was fed {name} {list(shapes[name])}, and takes {'; or '.join(taken)}: lower --batch, or build it"
        " for more with build.batch and build.axes"
    )


def captures_itself(trt: Any) -> bool:
    """Whether a library makes its own CUDA graphs, as TensorRT-RTX does."""
    return hasattr(trt, "CudaGraphStrategy")


def on_gpu(value: Any) -> bool:
    """Whether a value is one of torch's CUDA tensors."""
    return bool(getattr(value, "is_cuda", False))


def _readable(tensor: Any) -> Any:
    """A CUDA tensor as it is, or a copy of one that is not contiguous or begins inside of another one."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNED else tensor


def _create(of: Opened) -> tuple[Any, Any]:
    """TensorRT-RTX's runtime configuration, None for TensorRT, and an execution context."""
    config, trt = None, of.trt
    if captures_itself(trt):
        config = of.engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    made = of.engine.create_execution_context(*[config] * (config is not None))
    if made is None:
        raise EngineError(
            f"no memory for the activations of {of.name} ({of.why()}): close other programs, or build it for fewer"
            " rows with build.batch"
        )
    return config, made


def _within(shape: Sequence[int], spans: Sequence[Sequence[int]]) -> bool:
    """Whether a shape lies between the smallest and the largest of a profile."""
    low, _, high = spans
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
