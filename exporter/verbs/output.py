"""What verbs print on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def say(result: Sequence[Path] | str) -> None:
    """Print what a verb returned: paths one a line, or a text."""
    try:
        for line in [result] if isinstance(result, str) else result:
            print(line, flush=True)
    except BrokenPipeError:  # `quaver show FILE | head` has read enough; the verb's verdict still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
