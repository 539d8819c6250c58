"""TensorRT-RTX's builder in a process of its own: an ONNX file in, a plan out, no GPU needed.

`python -m quaver.exporter.planner REQUEST` with REQUEST as JSON: onnx, plan (paths), capabilities, batch (min, opt,
max). Each line of its stdout is JSON: {"step": k, "of": n} while it works, then {"version", "layers"} or {"error"}. A
process of its own because the builder takes gigabytes that it does not give back, cannot be interrupted from Python,
and a crash of its native code must not be one of ours.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quaver.exporter.planlog import compiled_layers
from quaver.runtime.errors import EngineError, QuaverError
from quaver.runtime.lazy import need


def build_plan(onnx: Path, plan: Path, capabilities: Sequence[str], batch: Sequence[int]) -> dict[str, Any]:
    """Build one plan that runs on every compute capability, write it, and return the builder's version and the layers.

    Raises: EngineError with the builder's own words when it refuses the graph.
    """
    trt = need("tensorrt_rtx", extra="trt-rtx")
    log: list[tuple[Any, str]] = []
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    # strongly typed: the Q/DQ nodes of the file are the whole contract about precision
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"TensorRT-RTX cannot parse {onnx.name}: {parser.get_error(0).desc()}")
    config = _config(trt, builder, network, capabilities, batch)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"TensorRT-RTX cannot build {onnx.name} for {', '.join(capabilities)}: {_errors(trt, log)}")
    with plan.open("wb") as file:
        file.write(serialized)
    lines = (line for _, message in log for line in message.splitlines())
    return {"version": trt.__version__, "layers": [asdict(layer) for layer in compiled_layers(lines)]}


def _config(trt: Any, builder: Any, network: Any, capabilities: Sequence[str], batch: Sequence[int]) -> Any:
    """Detailed log, the compute capabilities, one profile for the batch; no timing cache, which would ask for a GPU."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt)
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batch))
    config.add_optimization_profile(profile)
    return config


def _logger(trt: Any, log: list[tuple[Any, str]]) -> Any:
    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING) or "LayerType:" in message:
                log.append((severity, message))

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


def _errors(trt: Any, log: Sequence[tuple[Any, str]]) -> str:
    found = [message for severity, message in log if int(severity) <= int(trt.ILogger.Severity.ERROR)]
    return " | ".join(message.splitlines()[0] for message in found[:2]) or "it gives no reason"


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Answer the request on the command line."""
    request = json.loads(sys.argv[1])
    try:
        _say(build_plan(Path(request["onnx"]), Path(request["plan"]), request["capabilities"], request["batch"]))
    except QuaverError as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main()
