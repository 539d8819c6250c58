"""From a quantized graph to a TensorRT-RTX plan, with a sidecar that says what the plan really computes.

One plan serves all chosen compute capabilities. The sidecar holds versions, profile, digests, every compiled layer with
its kernel class and data types, and

    coverage = layers meant for integers whose kernel multiplies integers / layers meant for integers

by count and by multiply-accumulates. Without the extra trt-rtx nothing is built, and the sidecar says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quaver.exporter.planlog import Compiled, kernel_coverage
from quaver.exporter.targets import find_target
from quaver.runtime.artifact import Stamp, atomic, digest_file, load_json, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, RecipeError, unknown
from quaver.runtime.progress import Progress

TARGET = "tensorrt-rtx"
INSTALL = "pip install 'quaver[trt-rtx]'"


@dataclass(frozen=True)
class BuildSettings:
    """The table [build] of a recipe."""

    compute_capabilities: tuple[str, ...] = ("SM86", "SM89", "SM120")  # GPU generations the plan must run on
    batch: tuple[int, int, int] = (1, 2, 16)  # smallest, tuned for, largest number of rows (guidance takes two each)


def build(bundle: Bundle, settings: BuildSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write unet.tensorrt-rtx.plan and its sidecar; returns the plan, or the sidecar when nothing could be built.

    Raises: RecipeError for capabilities or batches that cannot be, EngineError when the builder refuses the graph.
    """
    check_settings(settings)
    graph, plan, sidecar = bundle.qdq(TARGET), bundle.plan(TARGET), bundle.plan_sidecar(TARGET)
    sidecar.unlink(missing_ok=True)
    if reason := left_out(graph):
        plan.unlink(missing_ok=True)
        progress.say(f"no TensorRT-RTX plan: {reason}")
        return save_json(sidecar, {"target": TARGET, "built": False, "reason": reason}, stamp)
    started = time.monotonic()
    with atomic(plan) as temporary:
        request = {
            "onnx": str(graph),
            "plan": str(temporary),
            "capabilities": settings.compute_capabilities,
            "batch": settings.batch,
        }
        answer = run_planner(request, progress)
    layers = [Compiled(**layer) for layer in answer["layers"]]
    covered = kernel_coverage(layers, meant_layers(bundle))
    record = {
        "target": TARGET,
        "built": True,
        "tensorrt_rtx": answer["version"],
        "compute_capabilities": list(settings.compute_capabilities),
        "batch": dict(zip(("min", "opt", "max"), settings.batch, strict=True)),
        "seconds": round(time.monotonic() - started, 1),
        "onnx": {"file": graph.name, "digest": digest_file(graph)},
        "plan": {"file": plan.name, "digest": digest_file(plan), "bytes": plan.stat().st_size},
        "coverage": covered,
        "layers": answer["layers"],
    }
    save_json(sidecar, record, stamp)
    progress.say(summary(record))
    return plan


def check_settings(settings: BuildSettings) -> None:
    """Raises: RecipeError for a capability no plan is built for, or a batch that is not min <= opt <= max."""
    known = find_target(TARGET).capabilities
    for name in settings.compute_capabilities:
        if name not in known:
            raise RecipeError(unknown("compute capability", name, known))
    low, best, high = settings.batch
    if not settings.compute_capabilities or not 1 <= low <= best <= high:
        raise RecipeError(
            f"build.batch = {list(settings.batch)} for {len(settings.compute_capabilities)} compute capabilities: "
            "expected 1 <= min <= opt <= max, and one capability or more"
        )


def left_out(graph: Path) -> str:
    """Why no plan can be built, "" when one can."""
    if find_spec("tensorrt_rtx") is None:
        return f"the package tensorrt_rtx is not installed; {INSTALL}"
    return "" if graph.exists() else f"{graph.name} was not exported; add '{TARGET}' to export.targets"


def meant_layers(bundle: Bundle) -> list[Mapping[str, Any]]:
    """The layers the exporter coded: name, node and macs, from the site file."""
    sites = load_json(bundle.sites(TARGET), "export")
    coded = {site["layer"] for site in sites["sites"] if site["role"] == "input"}
    return [layer for layer in sites["layers"] if layer["name"] in coded]


def run_planner(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Have the builder answer a request in a process of its own, which never outlives this call.

    Raises: EngineError with its words, or with its last output when it died.
    """
    answer, last = dict[str, Any](), "no output"
    command = [sys.executable, "-m", "quaver.exporter.planner", json.dumps(request)]
    with _process(command) as child, progress.bar(1, "build") as bar:
        for line in child.stdout or ():
            message = _message(line)
            if "step" in message:
                bar.total, bar.done = message["of"], message["step"] - 1
                bar.step()
            elif message:
                answer = message
                bar.step(bar.total - bar.done)
            last = line.strip() or last
    if "layers" not in answer:
        raise EngineError(answer.get("error") or f"TensorRT-RTX's builder died ({child.returncode}): {last[-300:]}")
    return answer


def summary(record: Mapping[str, Any]) -> str:
    """One line for the log."""
    covered = record["coverage"]
    where, size = ", ".join(record["compute_capabilities"]), record["plan"]["bytes"] / 1e6
    return (
        f"TensorRT-RTX plan for {where}, {size:.1f} MB: {covered['integer']} of {covered['meant']} layers meant for "
        f"INT8 run in INT8 kernels ({covered['by_macs']:.1%} of their multiply-accumulates)"
    )


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A child whose output is read line by line, and who is gone when the block is left, however it is left."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        yield child
        child.wait()
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _message(line: str) -> dict[str, Any]:
    """A line of the planner's, {} when it is some library's."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
