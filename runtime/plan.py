"""A plan and the sidecar beside it, which says what the plan was built for, held against this machine before it is run.

    unet.<target>.plan         kernels and weights, for chosen GPUs and one version of one library
    unet.<target>.plan.json    which GPUs, version and library, the digests of plan and graph, and what was compiled

A plan of TensorRT-RTX runs with the version that built it and on the compute capabilities that were asked for; one of
TensorRT on what built it, unless it was built for more: VERSION_COMPATIBLE, and the hardware levels
SAME_COMPUTE_CAPABILITY and AMPERE_PLUS (any GPU from SM80 on). Source: NVIDIA, "Engine Compatibility".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quaver.runtime.artifact import digest_file, load_json
from quaver.runtime.errors import ArtifactError, EngineError
from quaver.runtime.lazy import need

KIND = "build"
EXTRAS = {"tensorrt_rtx": "trt-rtx", "tensorrt": "trt"}  # library -> the extra that installs it
ANEW = "'quaver build RECIPE' builds it anew"


@dataclass(frozen=True)
class Plan:
    """A plan that is whole, and what it was built by and for; no capabilities: the sidecar does not say."""

    path: Path
    digest: str
    library: str
    version: str
    capabilities: tuple[str, ...]
    options: tuple[str, ...]


def library_of(sidecar: Mapping[str, Any]) -> str:
    """The module that built a plan, a key of `EXTRAS`. Raises: ArtifactError when the sidecar names none."""
    for name in EXTRAS:
        if name in sidecar:
            return name
    raise ArtifactError(f"a plan's sidecar names none of {', '.join(EXTRAS)}: {ANEW}")


def read_plan(path: Path) -> Plan:
    """The plan of a path, checked against its sidecar, and against its graph where that is beside it.

    Raises: ArtifactError when one of them is missing or is not what it was.
    """
    sidecar, again = path.with_name(f"{path.name}.json"), "'quaver build RECIPE' builds it"
    if not sidecar.is_file():
        raise ArtifactError(f"{path} has no {sidecar.name} beside it, which says what it was built for: {again}")
    found = load_json(sidecar, KIND)
    if not found.get("built"):
        raise ArtifactError(f"{path} was not built: {found.get('reason', 'its sidecar does not say why')}")
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: {again}")
    try:
        said, graph = found["plan"]["digest"], found["onnx"]
        library, capabilities = library_of(found), tuple(found["compute_capabilities"])
        plan = Plan(path, digest_file(path), library, found[library], capabilities, tuple(found["options"]))
        source, made = path.with_name(graph["file"]), graph["digest"]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{sidecar} lacks {error}: {ANEW}") from error
    if plan.digest != said:
        raise ArtifactError(f"{path} is damaged or not the one that {sidecar.name} is about: {ANEW}")
    if source.is_file() and digest_file(source) != made:
        raise ArtifactError(f"{path} was built from another {source.name} than the one beside it: {ANEW}")
    return plan


def check_gpu(plan: Plan, capability: str) -> None:
    """Raise EngineError unless a GPU of this compute capability, "SM89", can run the plan."""
    ampere = "AMPERE_PLUS" in plan.options and int(capability[2:]) >= 80
    if plan.capabilities and capability not in plan.capabilities and not ampere:
        raise EngineError(
            f"{plan.path.name} was built for {', '.join(plan.capabilities)} and this GPU is {capability}: "
            + (
                f"add {capability!r} to build.compute_capabilities, and 'quaver build RECIPE'"
                if plan.library == "tensorrt_rtx"
                else "'quaver build RECIPE' on this machine, or with another build.hardware"
            )
        )


def load_library(plan: Plan) -> Any:
    """The module that runs a plan.

    Raises: QuaverError when it is not installed; EngineError when it is of another version; EngineError for a plan
    whose weights were left out.
    """
    library = need(plan.library, extra=EXTRAS[plan.library])
    there = library.__version__
    older = "VERSION_COMPATIBLE" in plan.options and _number(there) >= _number(plan.version)
    if there != plan.version and not older:
        raise EngineError(
            f"{plan.path.name} was built by {plan.library} {plan.version} and {there} is installed: {ANEW}"
        )
    if "STRIP_PLAN" in plan.options:
        raise EngineError(f"{plan.path.name} was built without its weights: build it with build.weights = 'kept'")
    return library


def _number(version: str) -> tuple[int, ...]:
    """The numbers of a version, 10.13.2.6, to compare."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
