"""A GPU without one: a driver, `tensorrt` and `torch.cuda` in the documented names, on memory of the host.

The driver's functions are real C function pointers with the prototypes of cuda.h, so that arguments are passed as they
are to the library. Nothing happens when it is put on a stream: it happens in order, when somebody waits, and a stream
that waits for an event first drives the other one to it. Reading too early, or overwriting too early, is then seen.
The engine computes   out = 2 sample + timestep + sum over class_labels   through the addresses it was given.
"""

from __future__ import annotations

import ctypes
import json
import traceback
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

HANDLE = POINTER(c_void_p)
ERRORS = {1: b"invalid argument", 2: b"out of memory", 100: b"no CUDA-capable device is detected"}
INVALID, MEMORY, NO_DEVICE, INVALIDATED, UNKNOWN = 1, 2, 100, 901, 999
PROTOTYPES = {  # of cuda.h; every function answers with a CUresult
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (HANDLE, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (HANDLE,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (HANDLE, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (HANDLE, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, HANDLE),
    "cuEventCreate": (HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (HANDLE, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}
FAR = 1 << 40  # handles do not fit into 32 bits, as real ones do not


class Driver:
    """libcuda.so.1; `calls` is what was asked of it, by name, `memory` and `locked` what is allocated."""

    def __init__(self, capability="SM89", devices=1):
        self.number, self.devices = int(capability[2:]), devices
        self.most = self.most_locked = 1 << 30
        self.calls, self.current, self.retained = [], [], 0
        self.memory, self.locked, self.streams, self.events, self.graphs = {}, {}, {0: []}, {}, {}
        self.capturing, self.next = {}, FAR
        self.callbacks = {name: CFUNCTYPE(c_int, *kinds)(self._recorded(name)) for name, kinds in PROTOTYPES.items()}
        bare = ctypes.CDLL(None)._FuncPtr  # as a library's functions are: nothing known of their arguments
        for name, callback in self.callbacks.items():
            setattr(self, name, bare(ctypes.cast(callback, c_void_p).value))

    def _recorded(self, name):
        def function(*arguments):
            self.calls.append(name)
            try:
                return getattr(self, f"do_{name.removesuffix('_v2')}")(*arguments) or 0
            except Exception:  # ctypes would drop it, and answer that all is well
                traceback.print_exc()
                return UNKNOWN

        return function

    def count(self, name):
        return self.calls.count(name)

    def handle(self):
        self.next += 16
        return self.next

    def put(self, stream, work):
        """Work onto a stream, or into the graph that it is being captured as."""
        self.capturing.get(stream or 0, self.streams[stream or 0]).append(work)

    def flush(self, stream, upto=None):
        pending = self.streams[stream]
        while pending and (upto is None or upto in pending):
            pending.pop(0)()

    def do_cuInit(self, flags):
        return 0 if self.devices else NO_DEVICE

    def do_cuGetErrorString(self, status, out):
        out[0] = ERRORS.get(status, b"unknown")

    def do_cuDeviceGet(self, out, index):
        out[0] = index
        return 0 if index < self.devices else INVALID

    def do_cuDeviceGetAttribute(self, out, attribute, device):
        out[0] = {75: self.number // 10, 76: self.number % 10}[attribute]

    def do_cuDevicePrimaryCtxRetain(self, out, device):
        self.retained += 1
        out[0] = FAR + 8

    def do_cuDevicePrimaryCtxRelease(self, device):
        self.retained -= 1

    def do_cuCtxPushCurrent(self, context):
        self.current.append(context)

    def do_cuCtxPopCurrent(self, out):
        out[0] = self.current.pop()

    def do_cuMemAlloc(self, out, size):
        if not self.current or size > self.most:
            return MEMORY
        block = aligned(size)
        out[0] = block.ctypes.data
        self.memory[block.ctypes.data] = block

    def do_cuMemFree(self, address):
        return INVALID if self.memory.pop(address, None) is None else 0

    def do_cuMemAllocHost(self, out, size):
        if size > self.most_locked:
            return MEMORY
        block = ctypes.create_string_buffer(size)
        out[0] = ctypes.addressof(block)
        self.locked[ctypes.addressof(block)] = block

    def do_cuMemFreeHost(self, address):
        return 0 if self.locked.pop(address, None) else INVALID

    def do_cuMemcpyHtoDAsync(self, to, source, size, stream):
        if to not in self.memory or source not in self.locked or size > len(self.memory[to]):
            return INVALID
        self.put(stream, lambda: ctypes.memmove(to, source, size))

    def do_cuMemcpyDtoHAsync(self, to, source, size, stream):
        if source not in self.memory or to not in self.locked or size > len(self.locked[to]):
            return INVALID
        self.put(stream, lambda: ctypes.memmove(to, source, size))

    def do_cuStreamCreate(self, out, flags):
        out[0] = stream = self.handle()
        self.streams[stream] = []

    def do_cuStreamDestroy(self, stream):
        self.flush(stream)
        del self.streams[stream]

    def do_cuStreamSynchronize(self, stream):
        if stream in self.capturing:
            return INVALIDATED
        self.flush(stream or 0)

    def do_cuEventCreate(self, out, flags):
        out[0] = event = self.handle()
        self.events[event] = None

    def do_cuEventDestroy(self, event):
        del self.events[event]

    def do_cuEventRecord(self, event, stream):
        def mark():
            return None

        self.events[event] = (stream or 0, mark)
        self.put(stream, mark)

    def do_cuStreamWaitEvent(self, stream, event, flags):
        other, mark = self.events[event]
        self.put(stream, lambda: self.flush(other, mark))

    def do_cuStreamBeginCapture(self, stream, mode):
        if not stream:
            return INVALID
        self.capturing[stream] = []

    def do_cuStreamEndCapture(self, stream, out):
        out[0] = graph = self.handle()
        self.graphs[graph] = self.capturing.pop(stream)

    def do_cuGraphInstantiateWithFlags(self, out, graph, flags):
        out[0] = made = self.handle()
        self.graphs[made] = self.graphs[graph]

    def do_cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            self.put(stream, work)

    def do_cuGraphExecDestroy(self, graph):
        del self.graphs[graph]

    def do_cuGraphDestroy(self, graph):
        del self.graphs[graph]


INPUTS = {"sample": np.float32, "timestep": np.int64, "class_labels": np.float32}
OUTPUT = "out_sample"
SPANS = [[1, 2, 16]]


def plan_bytes(spans=SPANS, latent=(2, 4, 4), width=6, capturable=True):
    """A plan: the sizes of its batch per profile, and whether its kernels can be captured."""
    return json.dumps({"spans": spans, "latent": latent, "width": width, "capturable": capturable}).encode()


def tensorrt(driver, version="10.13.2.6", *, rtx=False):
    """The module `tensorrt`, or `tensorrt_rtx`, over a driver."""

    class Context:
        def __init__(self, engine, config=None):
            self.engine, self.config, self.shapes, self.addresses = engine, config, {}, {}
            self.profile, self.fresh = None, True

        def set_optimization_profile_async(self, profile_index, stream_handle):
            assert stream_handle in driver.streams and stream_handle
            self.profile = profile_index
            return 0 <= profile_index < self.engine.num_optimization_profiles

        def set_input_shape(self, name, shape):
            low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
            if not all(a <= n <= b for a, n, b in zip(low, checked(shape, tuple), high, strict=True)):
                return False
            self.shapes[name], self.fresh = shape, True
            return True

        def infer_shapes(self):
            return [name for name in INPUTS if name not in self.shapes]

        def get_tensor_shape(self, name):
            return self.shapes["sample"] if name == OUTPUT else self.shapes[name]

        def set_tensor_address(self, name, memory):
            self.addresses[name] = checked(memory, int)
            return memory != 0 and memory % 256 == 0

        def execute_async_v3(self, stream_handle):
            if stream_handle in driver.capturing and (self.fresh or not self.engine.capturable):
                logger_of(self).log(ILogger.Severity.ERROR, "cannot capture: deferred updates of shapes\nand more")
                return False
            self.fresh, at, shapes = False, dict(self.addresses), dict(self.shapes)
            driver.put(stream_handle, lambda: compute(at, shapes))
            return True

    def logger_of(context):
        return context.engine.logger

    class ICudaEngine:
        def __init__(self, asked, logger):
            self.spans, self.latent, self.width = asked["spans"], asked["latent"], asked["width"]
            self.capturable, self.logger = asked["capturable"], logger
            self.num_io_tensors, self.num_optimization_profiles = len(INPUTS) + 1, len(self.spans)

        def get_tensor_name(self, index):
            return [*INPUTS, OUTPUT][index]

        def get_tensor_mode(self, name):
            return TensorIOMode.OUTPUT if name == OUTPUT else TensorIOMode.INPUT

        def get_tensor_dtype(self, name):
            return INPUTS.get(name, np.float32)

        def get_tensor_profile_shape(self, name, profile_index):
            rest = {"sample": self.latent, "timestep": (), "class_labels": (self.width,)}[name]
            return [(n, *rest) for n in self.spans[profile_index]]

        def create_runtime_config(self):
            return SimpleNamespace(cuda_graph_strategy=None, dynamic_shapes_kernel_specialization_strategy=None)

        def create_execution_context(self, *config):
            assert driver.current and bool(config) is rtx
            made.append(Context(self, *config))
            return made[-1]

    class Runtime:
        def __init__(self, logger):
            self.logger = checked(logger, ILogger, sub=True)

        def deserialize_cuda_engine(self, serialized_engine):
            try:
                return ICudaEngine(json.loads(serialized_engine), self.logger)
            except ValueError:
                self.logger.log(ILogger.Severity.ERROR, "Serialized engine is malformed")
                return None

    made = []
    names = {"Runtime": Runtime, "ILogger": ILogger, "TensorIOMode": TensorIOMode, "nptype": lambda kind: kind}
    if rtx:
        names["CudaGraphStrategy"] = IntEnum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        names["DynamicShapesKernelSpecializationStrategy"] = IntEnum("Specialization", ["LAZY", "EAGER", "NONE"])
    return SimpleNamespace(__version__=version, contexts=made, **names)


TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)


class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)


def checked(value, kind, *, sub=False):
    if not (isinstance(value, kind) if sub else type(value) is kind):
        raise TypeError(f"incompatible function arguments: {value!r}, expected {kind.__name__}")
    return value


def aligned(size, offset=0):
    """Memory [size] whose address is a multiple of 256, and `offset` bytes."""
    block = np.zeros(size + 512, np.uint8)
    start = -block.ctypes.data % 256 + offset
    return block[start : start + size]


def at(address, kind, shape):
    """The array at an address."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


def compute(addresses, shapes):
    x, t, c = (at(addresses[name], kind, shapes[name]) for name, kind in INPUTS.items())
    at(addresses[OUTPUT], np.float32, x.shape)[...] = expected({"sample": x, "timestep": t, "class_labels": c})


def expected(feeds):
    """What the engine computes, without a GPU."""
    rows = feeds["timestep"].astype(np.float32) + feeds["class_labels"].sum(axis=1)
    return (2 * feeds["sample"] + rows[:, None, None, None]).astype(np.float32)


class Tensor:
    """A CUDA tensor of torch's: its memory is written by its stream alone."""

    is_cuda = True

    def __init__(self, array, index=0, offset=0):
        self.array, self.device = array, SimpleNamespace(index=index)
        if array.flags.c_contiguous:
            self.array = aligned(array.nbytes, offset).view(array.dtype).reshape(array.shape)
            self.array[...] = array
        self.shape, self.dtype = array.shape, f"torch.{array.dtype.name}"

    def data_ptr(self):
        return self.array.ctypes.data

    def clone(self):
        return Tensor(self.array, self.device.index)

    def contiguous(self):
        return self if self.array.flags.c_contiguous else Tensor(np.ascontiguousarray(self.array), self.device.index)


def torch(driver):
    """The module `torch`, with a stream of its own; its allocator hands out two blocks of memory in turn."""
    driver.streams[THEIRS] = []
    blocks = {}

    def empty(shape, *, dtype, device):
        held = blocks.setdefault(tuple(shape), [Tensor(np.full(shape, np.nan, dtype), device.index) for _ in range(2)])
        held.append(held.pop(0))
        return held[0]

    stream = SimpleNamespace(cuda_stream=THEIRS)
    return SimpleNamespace(empty=empty, float32=np.float32, cuda=SimpleNamespace(current_stream=lambda device: stream))


THEIRS = FAR + 4
