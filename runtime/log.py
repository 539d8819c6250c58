"""Log lines on stderr, quiet unless asked for.

Modules write with `logging.getLogger(__name__)`; this module decides what is seen. The libraries underneath warn about
much that a user cannot change, so their warnings are shown only when debugging.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO


def show(*, debug: bool = False, stream: TextIO | None = None) -> None:
    """Send quaver's log to `stream` (stderr), from level INFO on, or everything including library warnings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if debug else "%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.ERROR)
    logging.getLogger("quaver").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
