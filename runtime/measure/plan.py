"""What the sidecar of a TensorRT-RTX plan says: counted from the build log, no GPU needed."""

from __future__ import annotations

from typing import Any

from quaver.runtime.artifact import load_json
from quaver.runtime.bundle import Bundle

TARGET, KIND = "tensorrt-rtx", "build"


def plan_facts(bundle: Bundle) -> dict[str, Any]:
    """Version, capabilities, bytes and kernel coverage of the plan beside an engine, or what is missing and why.

    Raises: ArtifactError when the sidecar is damaged.
    """
    path = bundle.plan_sidecar(TARGET)
    if not path.exists():
        return {"missing": f"No {TARGET} plan here: pip install 'quaver[trt-rtx]' and 'quaver build RECIPE' make one."}
    found = load_json(path, KIND)
    if not found.get("built"):
        return {"missing": f"No {TARGET} plan was built: {found.get('reason', 'the sidecar does not say why')}."}
    return {
        "version": found["tensorrt_rtx"],
        "compute_capabilities": found["compute_capabilities"],
        "batch": found["batch"],
        "bytes": found["plan"]["bytes"],
        "seconds": found["seconds"],
        **found["coverage"],
    }
