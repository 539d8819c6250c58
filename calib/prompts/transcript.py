"""Every exchange with a language model, in a journal that can be replayed.

One JSON object a line: {digest, request, answer, usage} for an answer, {digest, request, error} for a failed try, each
synced to disk, so that a killed run loses nothing. Asked again, the n-th equal request gets the n-th recorded answer
and reaches no network: the loop that asks is deterministic, so a run resumes where it stood, and a whole transcript
gives the same prompts. Delete the file to ask anew.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from quaver.runtime.artifact import digest_json, write_error
from quaver.runtime.errors import ArtifactError

Row = dict[str, Any]


@dataclass
class Transcript:
    """An open journal and what of it has not been replayed yet."""

    file: TextIO
    rows: list[Row]
    waiting: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))

    def ask(self, request: Mapping[str, Any], live: Callable[[], Row]) -> str:
        """The recorded answer to a request, or that of `live`, which returns {answer, usage} and is recorded."""
        digest = digest_json(request)
        if self.waiting[digest]:
            return self.waiting[digest].popleft()
        return str(self.add(request, live())["answer"])

    def add(self, request: Mapping[str, Any], outcome: Row) -> Row:
        """Write one exchange down for good."""
        row = {"digest": digest_json(request), "request": dict(request), **outcome}
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows.append(row)
        return row


@contextmanager
def open_transcript(path: Path) -> Iterator[Transcript]:
    """The journal at `path`, made if it is not there; a last line cut short by a kill is dropped.

    A run that fails before its first exchange leaves none.
    Raises: ArtifactError when another line is damaged or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, whole = _read(path) if path.exists() else ([], 0)
        with path.open("a", encoding="utf-8") as file:
            file.truncate(whole)
            waiting = defaultdict[str, deque[str]](deque)
            for row in rows:
                if "answer" in row:
                    waiting[row["digest"]].append(row["answer"])
            try:
                yield Transcript(file, rows, waiting)
            except BaseException:
                if not rows:
                    path.unlink()
                raise
    except OSError as error:
        raise write_error(path, error) from error


def _read(path: Path) -> tuple[list[Row], int]:
    """The rows of a journal, and the bytes of its whole lines."""
    *lines, _cut = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "digest": digest_json(row["request"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: line {number} is no exchange: delete that line to ask it anew, or the file to ask all anew"
            ) from error
    return rows, sum(len(line) + 1 for line in lines)
