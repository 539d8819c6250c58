"""Heavy libraries are extras: imported inside the function that needs them, instructive when they are not there."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from quaver.runtime.errors import QuaverError


def need(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of quaver brings it.

    Raises: QuaverError when the library is not installed, or is installed and does not import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top
        reason = "is not installed" if missing else f"does not import ({error})"
        raise QuaverError(f"{top} {reason}, and this step needs it: pip install 'quaver[{extra}]'") from error
