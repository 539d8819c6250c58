"""TensorRT's builder in a process of its own: an ONNX file in, a plan out. TensorRT-RTX needs no GPU for that.

`python -m quaver.exporter.plans.planner REQUEST` with a Request as JSON. Each line of its stdout is JSON: {"step": k,
"of": n} while it works, then {"version", "profile", "bytes", "layers"}, or {"error"} in words, or {"errno"} when the
plan cannot be written. A process of its own because the builder takes gigabytes that it does not give back, cannot be
interrupted from Python, and a crash of its native code must not be one of ours.

Nothing is decided here. The calls are those that TensorRT 10 and 11 and TensorRT-RTX have in common, or are not made.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quaver.exporter.plans.log import compiled_layers, memory
from quaver.runtime.artifact import atomic
from quaver.runtime.errors import EngineError, QuaverError
from quaver.runtime.lazy import need

Sizes = Sequence[int]  # smallest, tuned for, largest


@dataclass(frozen=True)
class Request:
    """What to build.

    module, extra, version: the library, what installs it, how its version must start. onnx, plan: paths. batch, axes:
    Sizes of the first axis and, by name, of other dynamic axes. capabilities: none for the GPU that is here. flags:
    members of BuilderFlag. hardware: member of HardwareCompatibilityLevel, or "". timing_cache: a file to read and
    write, or "".
    """

    module: str
    extra: str
    version: str
    onnx: str
    plan: str
    batch: Sizes
    axes: Mapping[str, Sizes] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    flags: Sequence[str] = ()
    hardware: str = ""
    timing_cache: str = ""


def build_plan(request: Request) -> dict[str, Any]:
    """Build a plan, write it, and return the builder's version, the shapes it serves, its bytes and its layers.

    Raises: EngineError with the builder's own words when it refuses the graph; OSError when the plan cannot be written.
    """
    trt = need(request.module, extra=request.extra)
    if not trt.__version__.startswith(request.version):
        raise EngineError(f"{request.module} {trt.__version__} is installed, expected {request.version}x: install that")
    name, log = Path(request.onnx).name, list[tuple[int, str]]()
    logger = _logger(trt, log)
    builder = _builder(trt, logger, log)
    # strongly typed: the Q/DQ nodes of the file are the whole contract about precision. TensorRT 11 knows nothing else
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.onnx):
        raise EngineError(f"{request.module} cannot parse {name}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    _configure(trt, config, request)
    profile = profile_shapes(inputs_of(network), request.batch, request.axes)
    _add_profile(builder, config, profile)
    _read_timings(config, request.timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"{request.module} cannot build {name}: {_errors(log)}{_advice(log, request)}")
    Path(request.plan).write_bytes(serialized)
    _write_timings(config, request.timing_cache)
    lines = [line for _, message in log for line in message.splitlines()]
    layers = [asdict(layer) for layer in compiled_layers(lines)]
    return {"version": trt.__version__, "profile": profile, "bytes": memory(lines), "layers": layers}


def profile_shapes(
    inputs: Iterable[tuple[str, Sequence[int], Sequence[str]]], batch: Sizes, axes: Mapping[str, Sizes]
) -> dict[str, list[list[int]]]:
    """Smallest, tuned for and largest shape of each input (name, shape with -1 for a dynamic axis, names of its axes).

    A dynamic first axis is the batch, and so is another of its name. Raises: EngineError naming a dynamic axis without
    sizes, or sizes for an axis that is not there.
    """
    inputs = list(inputs)
    dynamic = {label for _, shape, labels in inputs for length, label in zip(shape, labels, strict=True) if length < 0}
    if unused := sorted(set(axes) - dynamic):
        there = ", ".join(sorted(dynamic)) or "none"
        raise EngineError(f"build.axes.{unused[0]}: no input has a dynamic axis of that name (there: {there})")
    sizes = {labels[0]: batch for _, shape, labels in inputs if shape and shape[0] < 0} | dict(axes)
    found = {}
    for name, shape, labels in inputs:
        if missing := [label for length, label in zip(shape, labels, strict=True) if length < 0 and label not in sizes]:
            raise EngineError(
                f"input {name!r} has a dynamic axis {missing[0]!r}: set build.axes.{missing[0]} to its smallest, usual "
                "and largest length"
            )
        spans = [[n] * 3 if n >= 0 else sizes[label] for n, label in zip(shape, labels, strict=True)]
        found[name] = [[span[k] for span in spans] for k in range(3)]
    return found


def inputs_of(network: Any) -> Iterable[tuple[str, list[int], list[str]]]:
    """Name, shape and axis names of each input of a network."""
    for tensor in map(network.get_input, range(network.num_inputs)):
        shape = list(tensor.shape)
        yield tensor.name, shape, [tensor.get_dimension_name(i) or f"{tensor.name}.{i}" for i in range(len(shape))]


def _configure(trt: Any, config: Any, request: Request) -> None:
    """Detailed log, the GPUs the plan must run on, and what is to be done with the weights."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt)
    if request.capabilities:
        config.num_compute_capabilities = len(request.capabilities)
    for index, name in enumerate(request.capabilities):
        config.set_compute_capability(_member(trt, "ComputeCapability", name), index)
    if request.hardware:
        config.hardware_compatibility_level = _member(trt, "HardwareCompatibilityLevel", request.hardware)
    for flag in request.flags:
        config.set_flag(_member(trt, "BuilderFlag", flag))


def _member(trt: Any, group: str, name: str) -> Any:
    found = getattr(getattr(trt, group), name, None)
    if found is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} has no {group}.{name}: leave that setting of [build] out")
    return found


def _add_profile(builder: Any, config: Any, shapes: Mapping[str, Sequence[Sizes]]) -> None:
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in shapes.items():
        profile.set_shape(name, tuple(low), tuple(best), tuple(high))
    config.add_optimization_profile(profile)


def _read_timings(config: Any, path: str) -> None:
    """Let the builder reuse what it measured before; a cache of another GPU or version is left unused."""
    if path:
        known = Path(path).read_bytes() if Path(path).exists() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timings(config: Any, path: str) -> None:
    if path:
        with atomic(Path(path)) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())


def _builder(trt: Any, logger: Any, log: Sequence[tuple[int, str]]) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what its binding makes of a null pointer
        raise EngineError(
            f"{trt.__name__} has no GPU here ({_errors(log)}): build on the machine the plan is for, or export for "
            "'tensorrt-rtx', which builds without one"
        ) from error


def _logger(trt: Any, log: list[tuple[int, str]]) -> Any:
    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 2 or "LayerType:" in message or "Memory:" in message:
                log.append((int(severity), message))

    return Logger()


def _monitor(trt: Any) -> Any:
    parent = os.getppid()

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, name: str, parent_phase: str | None, steps: int) -> None:
            if parent_phase is None:
                self.top, self.of = name, steps

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.top:
                _say({"step": step + 1, "of": self.of})
            return os.getppid() == parent  # whoever asked is gone: stop

        def phase_finish(self, name: str) -> None: ...

    return Monitor()


def _errors(log: Sequence[tuple[int, str]]) -> str:
    """The first of the builder's errors (severity 0 and 1)."""
    found = [message for severity, message in log if severity <= 1]
    return " | ".join(message.splitlines()[0] for message in found[:2]) or "it gives no reason"


def _advice(log: Sequence[tuple[int, str]], request: Request) -> str:
    """What to do about an error that we know."""
    if "CUDA_SUCCESS" in _errors(log) and request.flags:
        return "; build.weights = 'stripped' and build.refit compile kernels on a GPU: build where there is one"
    return ""


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Answer the request on the command line."""
    try:
        _say(build_plan(Request(**json.loads(sys.argv[1]))))
    except QuaverError as error:
        _say({"error": str(error)})
    except OSError as error:
        _say({"errno": error.errno, "error": str(error)})


if __name__ == "__main__":
    main()
