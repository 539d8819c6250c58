"""From a quantized graph to a TensorRT plan, with a sidecar that says what the plan really computes.

    unet.<target>.onnx -> builder (planner) -> unet.<target>.plan + unet.<target>.plan.json

for every TensorRT target of the recipe. The sidecar holds versions, shapes, digests, every compiled layer with its
kernel class, data types and torch modules, the weights that are unpacked and the floats between integer layers, and

    coverage = layers meant for integers whose kernel multiplies integers / layers meant for integers

by count and by multiply-accumulates. Where its library is missing a plan is left out, and the sidecar says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from quaver.calib.graph import module_of, read_model
from quaver.exporter.lint import Report, lint
from quaver.exporter.lint.kernels import disagreements
from quaver.exporter.plans.capability import check_capabilities
from quaver.exporter.plans.islands import islands, named, unpacked
from quaver.exporter.plans.log import Compiled, kernel_coverage
from quaver.exporter.plans.planner import Request
from quaver.exporter.plans.process import ask
from quaver.exporter.plans.text import summary
from quaver.exporter.targets import TARGETS
from quaver.runtime.artifact import Stamp, atomic, digest_file, load_json, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.cuda import gpu_capability
from quaver.runtime.errors import EngineError, RecipeError, unknown
from quaver.runtime.progress import Progress

KIND = "build"


@dataclass(frozen=True)
class Library:
    """What builds plans for a target: a module, the extra that installs it, the versions that will do ("" for any),
    and the settings it can act on."""

    module: str
    extra: str
    version: str
    settings: frozenset[str]


_CAPABILITIES = "compute_capabilities"
_WEIGHTS = {"weights", "refit", "streaming"}
_TENSORRT = frozenset(_WEIGHTS | {"hardware", "version_compatible", "timing_cache"})
LIBRARIES: Mapping[str, Library] = {
    "tensorrt-10": Library("tensorrt", "trt", "10.", _TENSORRT),
    "tensorrt-11": Library("tensorrt", "trt", "11.", _TENSORRT),
    "tensorrt-rtx": Library("tensorrt_rtx", "trt-rtx", "", frozenset(_WEIGHTS | {_CAPABILITIES})),
}


@dataclass(frozen=True)
class BuildSettings:
    """The table [build] of a recipe."""

    compute_capabilities: tuple[str, ...] = ("SM86", "SM89", "SM120")  # TensorRT-RTX: GPU generations of one plan
    batch: tuple[int, int, int] = (1, 2, 16)  # smallest, tuned for, largest number of rows (guidance takes two each)
    axes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)  # the same of other dynamic axes, by name
    hardware: Literal["same", "same-capability", "ampere-plus"] = "same"  # TensorRT: GPUs that may run the plan
    version_compatible: bool = False  # TensorRT: later versions may run it
    weights: Literal["kept", "stripped"] = "kept"  # "stripped": a small plan, to be refitted before it runs
    refit: Literal["no", "identical", "any"] = "no"  # weights that may be put into the plan later
    streaming: bool = False  # the runtime may hold some weights in main memory
    timing_cache: str = ""  # TensorRT: file in which kernels' times are kept from build to build

    def __post_init__(self) -> None:
        if not self.compute_capabilities:
            raise RecipeError("build.compute_capabilities is empty: name one or more, for example 'SM89'")
        for name, sizes in (("batch", self.batch), *((f"axes.{key}", value) for key, value in self.axes.items())):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise RecipeError(f"build.{name} = {list(sizes)}: expected 1 <= min <= opt <= max")
        if self.weights == "stripped" and self.refit == "no":
            raise RecipeError(
                "build.weights = 'stripped' needs build.refit = 'identical' or 'any': a way back for them"
            )


def build(bundle: Bundle, settings: BuildSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write a plan and its sidecar for every TensorRT target whose graph `stamp` names; returns the last plan, or the
    sidecar when it could not be built.

    Raises: RecipeError for settings that cannot be, EngineError when the builder refuses a graph.
    """
    targets = [name for name in LIBRARIES if bundle.qdq(name).name in stamp.inputs]
    check_settings(settings, targets)
    written = bundle.root
    for target in targets:
        written = build_target(bundle, target, settings, stamp=stamp, progress=progress)
    return written


def build_target(bundle: Bundle, target: str, settings: BuildSettings, *, stamp: Stamp, progress: Progress) -> Path:
    """Write the plan of one target and its sidecar, or the sidecar alone; raises as `build`."""
    graph, plan, sidecar = bundle.qdq(target), bundle.plan(target), bundle.plan_sidecar(target)
    if reason := left_out(target):
        plan.unlink(missing_ok=True)
        progress.say(f"no {target} plan: {reason}")
        return save_json(sidecar, {"target": target, "built": False, "reason": reason}, stamp)
    sites = load_json(bundle.sites(target), "export")
    if _CAPABILITIES in LIBRARIES[target].settings:
        check_capabilities(settings.compute_capabilities, (site["format"] for site in sites["sites"]))
    started = time.monotonic()
    sidecar.unlink(missing_ok=True)
    with atomic(plan) as temporary:
        wanted = request(target, settings, graph, temporary)
        report = lint(graph, target, capabilities=wanted.capabilities)
        answer = _ask(wanted, report, progress)
    record = {
        "target": target,
        "built": True,
        LIBRARIES[target].module: answer["version"],
        "compute_capabilities": list(wanted.capabilities or gpu_capability()),
        "batch": dict(zip(("min", "opt", "max"), settings.batch, strict=True)),
        "shapes": answer["profile"],
        "options": [*wanted.flags, *filter(None, [wanted.hardware])],
        "seconds": round(time.monotonic() - started, 1),
        "onnx": {"file": graph.name, "digest": digest_file(graph)},
        "plan": {"file": plan.name, "digest": digest_file(plan), "bytes": plan.stat().st_size},
        "memory": answer["bytes"],
        **findings([Compiled(**layer) for layer in answer["layers"]], sites, graph, report),
    }
    save_json(sidecar, record, stamp)
    progress.say(summary(record))
    return plan


def findings(plan: Sequence[Compiled], sites: Mapping[str, Any], graph: Path, report: Report) -> dict[str, Any]:
    """What the compiled layers say: coverage, unpacked weights, islands of floats, where lint was wrong, themselves."""
    modules = {node.name: module_of(node) for node in read_model(graph).graph.node}
    work = {row.node: row.macs for row in report.rows}
    wrong = disagreements(report.predicted, plan)
    return {
        "coverage": kernel_coverage(plan, meant_layers(sites, work)),
        "unpacked": unpacked(plan, modules),
        "islands": islands(plan, modules, work),
        "lint": {
            "products": len(report.rows),
            "agree": len(report.rows) - len(wrong),
            "disagreements": wrong,
            "refused": [*report.refused],  # and yet it was built
        },
        "layers": named(plan, modules),
    }


def _ask(wanted: Request, report: Report, progress: Progress) -> dict[str, Any]:
    """The builder's answer; when it refuses the graph, with what lint has against it."""
    try:
        return ask(wanted, progress)
    except EngineError as error:
        if not report.refused:
            raise
        raise EngineError(f"{error}; 'quaver lint' says: {report.refused[0]}") from error


def plan_targets(targets: Iterable[str]) -> list[str]:
    """Those of the export targets that become plans, in the order in which they are built."""
    wanted = set(targets)
    return [name for name in LIBRARIES if name in wanted]


def expected_plans(targets: Iterable[str]) -> list[str]:
    """Those of them whose library is here; all when none is, so that a run says again what it leaves out."""
    wanted = plan_targets(targets)
    return [name for name in wanted if not left_out(name)] or wanted


def check_settings(settings: BuildSettings, targets: Sequence[str]) -> None:
    """Raises: RecipeError when there is no target, for a setting that none of them takes, or a capability it lacks."""
    if not targets:
        raise RecipeError(f"nothing to build: add one of {', '.join(LIBRARIES)} to export.targets")
    default = BuildSettings()
    for name in sorted(_TENSORRT | {_CAPABILITIES}):
        taking = [target for target, library in LIBRARIES.items() if name in library.settings]
        if getattr(settings, name) != getattr(default, name) and not set(taking) & set(targets):
            raise RecipeError(
                f"build.{name} does nothing for {', '.join(targets)}: remove it, or export for {' or '.join(taking)}"
            )
    for target in targets:
        there = TARGETS[target].capabilities
        for name in settings.compute_capabilities if _CAPABILITIES in LIBRARIES[target].settings else ():
            if name not in there:
                raise RecipeError(unknown(f"compute capability of {target}", name, there))


def left_out(target: str) -> str:
    """Why no plan can be built, "" when one can."""
    library = LIBRARIES[target]
    install = f"pip install 'quaver[{library.extra}]'"
    if find_spec(library.module) is None:
        return f"the package {library.module} is not installed; {install}"
    there = library_version(library.module) if library.version else ""
    if there and not there.startswith(library.version):
        return f"{target} needs {library.module} {library.version}x and {there} is installed; export for that one"
    return ""


def library_version(module: str) -> str:
    """The version of an installed library, "" when its distribution does not say."""
    names = metadata.packages_distributions().get(module, [module])
    found = (d.version for d in metadata.distributions() if d.metadata["Name"] in names)
    return next(found, "")


def request(target: str, settings: BuildSettings, graph: Path, plan: Path) -> Request:
    """What the builder is asked for: the settings that its library can act on, in its words."""
    library = LIBRARIES[target]
    known = library.settings
    flags = {
        "STRIP_PLAN": settings.weights == "stripped",
        "REFIT_IDENTICAL": settings.refit == "identical",
        "REFIT": settings.refit == "any",
        "WEIGHT_STREAMING": settings.streaming,
        "VERSION_COMPATIBLE": settings.version_compatible and "version_compatible" in known,
    }
    hardware = {"same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
    return Request(
        library.module,
        library.extra,
        library.version,
        str(graph),
        str(plan),
        settings.batch,
        settings.axes,
        settings.compute_capabilities if _CAPABILITIES in known else (),
        [name for name, wanted in flags.items() if wanted],
        hardware.get(settings.hardware, "") if "hardware" in known else "",
        settings.timing_cache if "timing_cache" in known else "",
    )


def meant_layers(sites: Mapping[str, Any], work: Mapping[str, int | None]) -> list[Mapping[str, Any]]:
    """What the exporter coded, layers and products of activations: name, node and macs; `work` is macs by node."""
    coded = {site["node"]: site["role"] for site in sites["sites"] if site["role"] in ("input", "part", "operand")}
    layers = [layer for layer in sites["layers"] if layer["node"] in coded]
    apart = [node for node, role in coded.items() if role == "operand"]
    return [*layers, *({"name": node, "node": node, "macs": work.get(node)} for node in apart)]
