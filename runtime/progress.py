"""Progress on stderr: one line that is redrawn on a terminal, a line now and then elsewhere.

remaining = elapsed * (total - done) / done       [seconds]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_REDRAW, _REPEAT = 0.1, 30.0  # seconds between lines, on a terminal and elsewhere


@dataclass
class Bar:
    """One running count; `step` moves it on."""

    total: int
    label: str
    show: Callable[[str], None]
    every: float = _REDRAW  # seconds between two calls of `show`
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    started: float = field(init=False)
    drawn: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.drawn = self.clock()

    def step(self, n: int = 1) -> None:
        """Count `n` more."""
        self.done += n
        if (now := self.clock()) - self.drawn >= self.every:
            self.drawn = now
            self.show(self.line())

    def line(self) -> str:
        """Label, count, time used and time left."""
        elapsed = self.clock() - self.started
        left = elapsed * (self.total - self.done) / self.done if self.done else None
        tail = f", {duration(left)} left" if left and self.done < self.total else ""
        return f"{self.label}  {self.done}/{self.total}  {duration(elapsed)}{tail}"


@dataclass(frozen=True)
class Progress:
    """Where progress is shown; `stream=None` shows nothing."""

    stream: TextIO | None = field(default_factory=lambda: sys.stderr)

    @contextmanager
    def bar(self, total: int, label: str) -> Iterator[Bar]:
        """Count to `total` under a label: `with progress.bar(100, "capture") as bar: bar.step()`."""
        live = self.stream is not None and self.stream.isatty()
        bar = Bar(total, label, self._redraw if live else self.say, every=_REDRAW if live else _REPEAT)
        try:
            yield bar
        finally:
            self.say(bar.line())

    def clear(self) -> None:
        """Wipe a bar that is drawn, so that something else may be printed in its place."""
        self._redraw("")

    def say(self, line: str) -> None:
        """Print one line, in place of a bar that is drawn."""
        self._redraw(line + "\n")

    def _redraw(self, line: str) -> None:
        live = self.stream is not None and self.stream.isatty()
        self._write("\r\x1b[K" * live + line)

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()


def quiet() -> Progress:
    """Progress that shows nothing, for tests and for callers that draw their own."""
    return Progress(stream=None)


def duration(seconds: float) -> str:
    """Seconds as people read them: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
