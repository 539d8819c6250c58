"""What a whole generation costs, from prompts to the decoded clip, in a process of its own.

    load_s     open the bundle: all graphs, the tokenizer, the schedule          first_s   the first generation after it
    median_s, p95_s   of `runs` generations after `warmup` that do not count     peak_rss_bytes   of that process

Only in a process that does nothing else is the peak of memory the engine's own. It holds Python and the libraries too:
`idle_rss_bytes` is what they took before anything was opened. The process keeps to as many cores as it has threads, for
the engine and for what numpy computes, and says how many.

    python -m quaver.runtime.measure.generation '{"bundle": "engines/demo-w8a8", "engine": "float", ...}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quaver.runtime.artifact import load_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import EngineError, QuaverError
from quaver.runtime.measure.cost import file_bytes
from quaver.runtime.measure.latency import peak_rss_bytes, seconds, time_calls
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import FLOAT, Session, open_bundle

SAID_FIRST = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}


@dataclass(frozen=True)
class GenerationCost:
    """Seconds and bytes of one engine; `batch` clips a generation, `steps` network calls each."""

    engine: str
    correct: str
    batch: int
    steps: int
    threads: int
    runs: int
    warmup: int
    load_s: float
    first_s: float
    median_s: float
    p95_s: float
    peak_rss_bytes: int
    idle_rss_bytes: int
    engine_bytes: int  # of its file, with external data


def generation_cost(
    bundle: Bundle,
    engine_file: str,
    sampling: SamplingSettings,
    *,
    correct: str = "none",
    prompts: tuple[str, ...] = (),
    threads: int | None = None,
    runs: int = 10,
    warmup: int = 1,
    timeout_s: float = 3600.0,
) -> GenerationCost:
    """Measure an engine of a bundle, a target's name or "float", generating `prompts` [B] as one batch.

    Without prompts it is the first that was set aside for validation; `threads` None is all cores of this process.
    Raises: QuaverError with what the process said when it failed.
    """
    asked = {
        "bundle": str(bundle.root.resolve()),
        "engine": engine_file,
        "sampling": asdict(sampling),
        "correct": correct,
        "prompts": list(prompts) or [first_prompt(bundle)],
        "threads": threads or len(usable_cores()),
        "runs": runs,
        "warmup": warmup,
    }
    command = [sys.executable, "-m", __name__, json.dumps(asked)]
    environment = os.environ | dict.fromkeys(SAID_FIRST, str(asked["threads"]))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{engine_file} took more than {timeout_s:g} s to measure: ask for fewer runs") from error
    answer = _answer(done.stdout)
    if done.returncode or "error" in answer:
        said = answer.get("error") or (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise QuaverError(f"measuring {engine_file} failed: {said}")
    return GenerationCost(**answer)


def measure(asked: Mapping[str, Any]) -> GenerationCost:
    """Do what was asked, in this process. Raises: QuaverError as opening and generating do."""
    threads, idle = int(asked["threads"]), peak_rss_bytes()
    sampling, bundle = SamplingSettings(**asked["sampling"]), Bundle(Path(asked["bundle"]))
    with ExitStack() as stack:
        stack.enter_context(on_cores(threads))
        opened: list[Session] = []
        opening = open_bundle(bundle, engine_file=asked["engine"], threads=threads)
        load = seconds(lambda: opened.append(stack.enter_context(opening)))
        timing = time_calls(
            lambda: draw(opened[0], asked["prompts"], sampling, asked["correct"]),
            runs=asked["runs"],
            warmup=asked["warmup"],
        )
    file = bundle.float_unet if asked["engine"] == FLOAT else bundle.engine(asked["engine"])
    return GenerationCost(
        engine=asked["engine"],
        correct=asked["correct"],
        batch=len(asked["prompts"]),
        steps=sampling.steps,
        threads=threads,
        load_s=load,
        peak_rss_bytes=peak_rss_bytes(),
        idle_rss_bytes=idle,
        engine_bytes=file_bytes(file),
        **asdict(timing),
    )


def draw(session: Session, prompts: list[str], sampling: SamplingSettings, correct: str) -> None:
    """One generation of a batch, decoded where the model has decoders, and thrown away."""
    from quaver.runtime.generate import generate_from

    decode = bool(session.parts.engines)
    seeds, batch = range(len(prompts)), len(prompts)
    list(generate_from(session, prompts, seeds, sampling, correct=correct, batch=batch, decode=decode))


def first_prompt(bundle: Bundle) -> str:
    """The first prompt that was set aside for validation, else the first of all."""
    rows = load_lines(bundle.prompts, "prompts")
    return next((row["text"] for row in rows if row.get("split") == "validate"), rows[0]["text"])


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def on_cores(threads: int | None) -> Iterator[None]:
    """Keep to as many cores as there are threads; engines that are opened meanwhile keep to them too. None: all."""
    before = usable_cores()
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, before[:threads])
    try:
        yield
    finally:
        if threads and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)


def _answer(text: str) -> dict[str, Any]:
    last = text.strip().splitlines()[-1:]
    return json.loads(last[0]) if last and last[0].startswith("{") else {}


def main() -> None:
    """Measure what the argument asks for; the last line of the output is the answer, as JSON."""
    try:
        print(json.dumps(asdict(measure(json.loads(sys.argv[1])))), flush=True)
    except QuaverError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
