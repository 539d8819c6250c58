"""A stand-in for the module `tensorrt`, which cannot be installed without NVIDIA's own index: the documented names, the
checks its bindings make of their arguments, and a build log in the words of version 10 or 11 (by FAKE_TENSORRT).

Its "plan" is the JSON of what it was asked. It needs a GPU when FAKE_TENSORRT says "none".
"""

import json
import os
from enum import IntEnum

import onnx

ASKED = os.environ.get("FAKE_TENSORRT", "10.13.2.6")
__version__ = "10.13.2.6" if ASKED == "none" else ASKED
MAJOR = int(__version__.partition(".")[0])


def members(name, *values):
    return IntEnum(name, values, start=0)


NetworkDefinitionCreationFlag = members("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
ProfilingVerbosity = members("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
HardwareCompatibilityLevel = members("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
BuilderFlag = members(
    "BuilderFlag",
    *(["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if MAJOR < 11 else []),
    *("DEBUG", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "STRIP_PLAN"),
    *("REFIT_IDENTICAL", "WEIGHT_STREAMING", "REFIT_INDIVIDUAL"),
)
NVIDIA_GPU = ASKED != "none"


def checked(value, kind):
    if type(value) is not kind:
        raise TypeError(f"incompatible function arguments: {value!r}, expected {kind.__name__}")
    return value


class ILogger:
    Severity = members("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class IProgressMonitor: ...


class Tensor:
    def __init__(self, value):
        dims = value.type.tensor_type.shape.dim
        self.name = value.name
        self.shape = tuple(-1 if d.dim_param else d.dim_value for d in dims)
        self._names = [d.dim_param for d in dims]

    def get_dimension_name(self, index):
        return self._names[checked(index, int)] or None


class Network:
    __slots__ = ("flags", "inputs", "nodes")

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]


class ParserError:
    def __init__(self, words):
        self.words = words

    def desc(self):
        return self.words


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = checked(network, Network), []

    def parse_from_file(self, path):
        try:
            graph = onnx.load(checked(path, str)).graph
        except Exception:
            self.errors = [ParserError("Failed to parse ONNX model")]
            return False
        self.network.inputs, self.network.nodes = [Tensor(value) for value in graph.input], list(graph.node)
        return True

    def get_error(self, index):
        return self.errors[index]


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[checked(input, str)] = [list(checked(shape, tuple)) for shape in (min, opt, max)]


class HostMemory(bytearray): ...


class TimingCache:
    def __init__(self, known):
        self.known = known

    def serialize(self):
        return HostMemory(self.known + b"+times")


class Config:
    __slots__ = (
        "cache",
        "flags",
        "hardware_compatibility_level",
        "profiles",
        "profiling_verbosity",
        "progress_monitor",
    )

    def __init__(self):
        self.flags, self.profiles, self.cache = [], [], None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_flag(self, flag):
        self.flags.append(checked(flag, BuilderFlag).name)

    def add_optimization_profile(self, profile):
        self.profiles.append(checked(profile, Profile))

    def create_timing_cache(self, serialized_timing_cache):
        known = checked(serialized_timing_cache, bytes)
        return TimingCache(known) if known in (b"", b"+times") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = checked(cache, TimingCache)
        return checked(ignore_mismatch, bool) is False

    def get_timing_cache(self):
        return self.cache


class Builder:
    def __init__(self, logger):
        if not NVIDIA_GPU:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags=0):
        network = Network()
        network.flags = checked(flags, int)
        return network

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        checked(network, Network), checked(config, Config)
        (profile,) = config.profiles
        for tensor in network.inputs:
            for shape in profile.shapes[tensor.name]:
                assert len(shape) == len(tensor.shape)
                assert all(n in (want, -1) for n, want in zip(tensor.shape, shape, strict=True))
        config.progress_monitor.phase_start("Building Engine", None, 2)
        assert config.progress_monitor.step_complete("Building Engine", 0)
        self.logger.log(ILogger.Severity.INFO, "Total Activation Memory: 4096 bytes")
        self.logger.log(ILogger.Severity.VERBOSE, "Layers:\n" + "\n".join(lines(network.nodes)))
        config.progress_monitor.phase_finish("Building Engine")
        asked = {
            "flags": config.flags,
            "hardware": config.hardware_compatibility_level.name,
            "typed": network.flags,
            "verbosity": config.profiling_verbosity.name,
            "shapes": profile.shapes,
        }
        return HostMemory(json.dumps(asked).encode())


def lines(nodes):
    """A kernel for each node with a dequantized input, one more that quantizes, in the words of the version."""
    coded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    for node in nodes:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            kind = "Int8" if node.input[0] in coded else "Float"
            kernel = "CaskConvolution" if node.op_type == "Conv" else "gemm"
            held = f'Weights: {{"Type": "{kind}", "Count": 36864}}, Bias: {{"Type": "Float", "Count": 64}}, '
            yield (
                f"Name: {node.name} + more, LayerType: {kernel}, Inputs: [ {tensor(node.input[0], kind)}"
                + (f", {tensor(node.input[1], kind)}" if kernel == "gemm" else "")
                + f"], Outputs: [ {tensor(node.output[0], 'Float')}], ParameterType: Convolution, "
                + (held if kernel != "gemm" else "")
                + f"TacticName: sm80_xmma, TacticValue: 0x1, StreamId: 0, Metadata: [ONNX Layer: {node.name}]\x1e"
            )


def tensor(name, kind):
    words = {"Int8": "Thirty-two wide channel vectorized row major Int8 format", "Float": "Row major linear FP32"}[kind]
    typed = f"Format/Datatype: {words}" if MAJOR < 11 else f"Format: {words}, Datatype: {kind}"
    return f"{{ Name: {name}, Location: Device, Dimensions: [1,64,56,56], {typed} }}"
