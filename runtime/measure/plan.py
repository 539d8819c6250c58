"""What the sidecar of a TensorRT-RTX plan says: counted from the build log, no GPU needed."""

from __future__ import annotations

import json
from typing import Any

from quaver.runtime.bundle import Bundle

TARGET = "tensorrt-rtx"


def plan_facts(bundle: Bundle) -> dict[str, Any]:
    """The figures of the plan beside an engine, by name, or what is missing."""
    path = bundle.plan_sidecar(TARGET)
    if not path.exists():
        return {"missing": f"No {TARGET} plan here: pip install 'quaver[trt-rtx]' and 'quaver build RECIPE' make one."}
    return {name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if name != "stamp"}
