"""One writer for a bundle: an advisory lock that the system drops when its holder ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quaver.runtime.errors import ArtifactError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`.

    Raises: ArtifactError when another process holds it, or when its folder cannot be written.
    """
    import fcntl  # not on Windows, where the rest of the package still imports

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path.parent} ({error.strerror}): name another place with --out DIR"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"process {file.read().strip() or 'unknown'}"
            raise ArtifactError(f"{path.parent} is being written by {holder}: wait for it, or add --out DIR") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
