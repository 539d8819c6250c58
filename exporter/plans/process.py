"""A builder's process: asked once, watched line by line, and gone when the call is over, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from quaver.exporter.plans.planner import Request
from quaver.runtime.errors import EngineError
from quaver.runtime.progress import Progress


def ask(request: Request, progress: Progress) -> dict[str, Any]:
    """Have the builder answer a request in a process of its own, which never outlives this call.

    Raises: EngineError with its words, or with its last output when it died; OSError when the plan cannot be written.
    """
    answer, last = dict[str, Any](), "no output"
    command = [sys.executable, "-m", "quaver.exporter.plans.planner", json.dumps(asdict(request))]
    with _process(command) as child, progress.bar(1, "build") as bar:
        for line in child.stdout or ():
            message = _message(line)
            if "step" in message:
                bar.total, bar.done = message["of"], message["step"] - 1
                bar.step()
            elif message:
                answer = message
                bar.step(bar.total - bar.done)
            last = line.strip() or last
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    if "layers" not in answer:
        raise EngineError(answer.get("error") or f"{request.module}'s builder {_end(child.returncode)}: {last[-300:]}")
    return answer


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status == -signal.SIGKILL:
        return "was killed, most likely for lack of memory (1.3 to 2.7 GB for 185 M weights): close other programs"
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"died ({status})"


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A child whose output is read line by line, and who is gone when the block is left, however it is left."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        yield child
        child.wait()
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _message(line: str) -> dict[str, Any]:
    """A line of the planner's, {} when it is some library's."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
