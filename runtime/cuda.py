"""The CUDA driver, as little of it as running a plan takes, through ctypes.

    memory    on the device, and page-locked memory of the host, which copies do not wait for
    stream    what is put on it runs in order, later; an event lets one stream wait for another
    graph     what a stream was given between two moments, launched again at once

The driver's library comes with every NVIDIA driver and serves programs of its own CUDA version and of older ones, so
that no package is needed, and none has to fit that of TensorRT. Its primary context is the one that TensorRT and torch
work in. Source: NVIDIA, "CUDA Driver API".
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from quaver.runtime.errors import EngineError

LIBRARY = "libcuda.so.1"
INSTEAD = "a plan runs on an NVIDIA GPU alone; --engine ort-cpu runs on the CPU"
ADVICE = {2: "close other programs, or lower --batch"}  # CUDA_ERROR_OUT_OF_MEMORY

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NON_BLOCKING, _NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile

_HANDLE = POINTER(c_void_p)
FUNCTIONS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [_HANDLE, c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [_HANDLE],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemAllocHost_v2": [_HANDLE, c_size_t],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuStreamCreate": [_HANDLE, c_uint],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamWaitEvent": [c_void_p, c_void_p, c_uint],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, _HANDLE],
    "cuEventCreate": [_HANDLE, c_uint],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventDestroy_v2": [c_void_p],
    "cuGraphInstantiateWithFlags": [_HANDLE, c_void_p, c_uint64],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuGraphDestroy": [c_void_p],
}


def load_driver() -> Any:
    """The driver's library. Raises: EngineError when there is none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EngineError(f"no NVIDIA driver here ({LIBRARY} is not installed): {INSTEAD}") from error


def open_gpu(index: int = 0) -> Gpu:
    """The GPU of a number, as CUDA_VISIBLE_DEVICES counts. Raises: EngineError when there is no driver or no GPU."""
    return Gpu(load_driver(), index)


def gpu_capability() -> tuple[str, ...]:
    """The compute capability of the first GPU, in a tuple that is empty where there is none."""
    try:
        gpu = open_gpu()
    except EngineError:
        return ()
    try:
        return (gpu.capability,)
    finally:
        gpu.close()


class Gpu:
    """A GPU, with a stream of its own that copies, launches and captures go to; closed by `close()`."""

    def __init__(self, driver: Any, index: int = 0) -> None:
        self.driver, self.index = driver, index
        for name, kinds in FUNCTIONS.items():
            getattr(driver, name).argtypes = kinds
        device = c_int()
        try:
            self._do("cuInit", 0)
            self._do("cuDeviceGet", byref(device), index)
        except EngineError as error:
            raise EngineError(f"no NVIDIA GPU here ({error}): {INSTEAD}") from error
        self.device = device.value
        self.context = self._new("cuDevicePrimaryCtxRetain", self.device)
        with self.current():
            self.stream = self._new("cuStreamCreate", _NON_BLOCKING)
            self.event = self._new("cuEventCreate", _NO_TIMING)

    @property
    def capability(self) -> str:
        """The compute capability, "SM89"."""
        number = c_int()
        found = []
        for attribute in (_MAJOR, _MINOR):
            self._do("cuDeviceGetAttribute", byref(number), attribute, self.device)
            found.append(number.value)
        return "SM{}{}".format(*found)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Work on this GPU within the block, and on the caller's after it."""
        self._do("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self._do("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        address = c_uint64()
        self._do("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Give back memory of the device."""
        self._do("cuMemFree_v2", address)

    def lock(self, size: int) -> np.ndarray:
        """Page-locked memory of the host, [size] uint8; whoever has it must `unlock` it."""
        address = self._new("cuMemAllocHost_v2", size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unlock(self, array: np.ndarray) -> None:
        """Give back page-locked memory."""
        self._do("cuMemFreeHost", array.ctypes.data)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Put a copy of a page-locked array to the device on the stream."""
        self._do("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Put a copy from the device to a page-locked array on the stream."""
        self._do("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream has done all."""
        self._do("cuStreamSynchronize", self.stream)

    def wait_for(self, other: int) -> None:
        """Let the stream begin what follows when another has done what it was given so far."""
        self._order(other, self.stream)

    def let_wait(self, other: int) -> None:
        """Let another stream begin what follows when this one has done what it was given so far."""
        self._order(self.stream, other)

    def capture(self, enqueue: Callable[[], None]) -> int:
        """What `enqueue` puts on the stream as a graph; nothing of it runs. Raises: EngineError when it cannot be."""
        graph = c_void_p()
        with ExitStack() as undo:
            self._do("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
            try:
                enqueue()
            finally:
                ended = self.driver.cuStreamEndCapture(self.stream, byref(graph))
                if graph:
                    undo.callback(self._do, "cuGraphDestroy", graph)
            self._check("cuStreamEndCapture", ended)
            return self._new("cuGraphInstantiateWithFlags", graph, 0)

    def launch(self, graph: int) -> None:
        """Put a graph on the stream."""
        self._do("cuGraphLaunch", graph, self.stream)

    def forget(self, graph: int) -> None:
        """Give back a graph."""
        self._do("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back stream and context; what was allocated goes with the context's last user."""
        with self.current():
            self._do("cuEventDestroy_v2", self.event)
            self._do("cuStreamDestroy_v2", self.stream)
        self._do("cuDevicePrimaryCtxRelease_v2", self.device)

    def _order(self, first: int, then: int) -> None:
        self._do("cuEventRecord", self.event, first)
        self._do("cuStreamWaitEvent", then, self.event, 0)

    def _new(self, name: str, *arguments: Any) -> int:
        """The handle that a function of the driver makes."""
        handle = c_void_p()
        self._do(name, byref(handle), *arguments)
        return handle.value or 0

    def _do(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self.driver, name)(*arguments))

    def _check(self, name: str, status: int) -> None:
        if status:
            words = c_char_p()
            self.driver.cuGetErrorString(status, byref(words))
            said = (words.value or b"error %d" % status).decode()
            raise EngineError(f"CUDA's {name} failed: {said}" + (f"; {ADVICE[status]}" if status in ADVICE else ""))
