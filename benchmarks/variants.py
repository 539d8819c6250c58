"""Bundles that differ from a recipe's own in some stages, and share the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from quaver.exporter.chain import files
from quaver.exporter.stages import STAGES, opened
from quaver.runtime.artifact import atomic
from quaver.runtime.progress import Progress


def branch(recipe: Path, out: Path, stages: Iterable[str]) -> None:
    """Copy what the named stages wrote in a recipe's own bundle to the bundle `out`, where it is newer."""
    names = set(stages)
    with opened(recipe, (), None, Progress()) as run:
        for path in [path for stage in STAGES if stage.name in names for path in files(stage, run)]:
            copied = out / path.relative_to(run.bundle.root)
            if not copied.exists() or copied.stat().st_mtime_ns < path.stat().st_mtime_ns:
                with atomic(copied) as temporary:
                    shutil.copy2(path, temporary)
