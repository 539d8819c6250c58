"""What the sidecar of a plan says: counted from the build log, no GPU needed."""

from __future__ import annotations

from typing import Any

from quaver.runtime.artifact import load_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.plan import KIND, library_of

USUAL = "tensorrt-rtx"  # whose plans any machine builds


def plan_facts(bundle: Bundle, target: str = USUAL) -> dict[str, Any]:
    """Version, capabilities, bytes and kernel coverage of a target's plan, or what is missing and why; of a target that
    has none, those of TensorRT-RTX's.

    Raises: ArtifactError when the sidecar is damaged.
    """
    target = target if target.startswith("tensorrt") else USUAL
    path = bundle.plan_sidecar(target)
    if not path.exists():
        extra = "trt-rtx" if target == USUAL else "trt"
        return {"missing": f"No {target} plan here: pip install 'quaver[{extra}]' and 'quaver build RECIPE' make one."}
    found = load_json(path, KIND)
    if not found.get("built"):
        return {"missing": f"No {target} plan was built: {found.get('reason', 'the sidecar does not say why')}."}
    return {
        "version": found[library_of(found)],
        "compute_capabilities": found["compute_capabilities"],
        "batch": found["batch"],
        "bytes": found["plan"]["bytes"],
        "seconds": found["seconds"],
        **found["coverage"],
    }
