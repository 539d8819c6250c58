"""INT8 against FP16 on an NVIDIA GPU: two plans of one model, one U-Net call.

    quaver run engines/demo-w8a8.toml --until build
    quaver run engines/demo-w8a8.toml --until build --set export.preset=16w16a --out build/gpu/demo-16w16a
    python -m benchmarks.gpu engines/demo-w8a8 build/gpu/demo-16w16a [--target tensorrt-rtx] [--batch 2 16] [--runs 50]

Both plans are timed in this process in turns; the clocks of a GPU that was idle rise over the first calls, which do not
count. With arrays a call has the way to the device and back in it; with torch's tensors (where torch has CUDA) it has
not, and waits until the GPU is done. The output error is the norm of the difference from the float graph, as
onnxruntime runs it on the CPU, over its norm, on calibration records. A guided sample is a batch of 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.ort_options import feeds_of
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import Engine, open_engine
from quaver.runtime.errors import QuaverError
from quaver.runtime.measure.latency import time_pair
from quaver.runtime.measure.quality import relative_error
from quaver.runtime.session import find_engine

Feeds = Mapping[str, Any]
NAMES = ("INT8", "FP16")


def main(argv: Sequence[str] | None = None) -> None:
    """Print times, speed-up and errors of the two plans."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("int8", type=Path)
    parser.add_argument("fp16", type=Path)
    parser.add_argument("--target", default="tensorrt-rtx")
    parser.add_argument("--batch", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args(argv)
    try:
        rows = list(measure([Bundle(given.int8), Bundle(given.fp16)], given.target, given.batch, given.runs))
    except QuaverError as error:
        raise SystemExit(str(error)) from error
    publish(
        "gpu",
        rows,
        figures={f"batch {row['batch']} {row['fed']}": row for row in rows},
        reached={f"INT8 is faster than FP16, batch {row['batch']}, {row['fed']}": row["gain"].low > 1 for row in rows},
    )


def measure(bundles: Sequence[Bundle], target: str, batches: Sequence[int], runs: int) -> Iterator[dict[str, Any]]:
    """A row per batch and kind of feeds."""
    paths = [find_engine(bundle, target)[0] for bundle in bundles]
    with open_engine(paths[0]) as int8, open_engine(paths[1]) as fp16, open_engine(bundles[0].float_unet) as whole:
        for batch in batches:
            feeds = feeds_of(bundles[0], batch)
            expected = np.asarray(whole(feeds))
            errors = [float(relative_error(np.asarray(e(feeds))[None], expected[None])[0]) for e in (int8, fp16)]
            for fed, calls in ways(int8, fp16, feeds):
                *times, gain = time_pair(calls[1], calls[0], rng=np.random.default_rng(0), runs=runs, warmup=10)
                took = {f"{name} ms": 1e3 * t.median_s for name, t in zip(NAMES, times[::-1], strict=True)}
                wrong = {f"{name} error": error for name, error in zip(NAMES, errors, strict=True)}
                yield {"batch": batch, "fed": fed, **took, "gain": gain, **wrong}


def ways(int8: Engine, fp16: Engine, feeds: Feeds) -> Iterator[tuple[str, list[Callable[[], Any]]]]:
    """The calls to time, by what they are fed with."""
    yield "arrays", [lambda: int8(feeds), lambda: fp16(feeds)]
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        tensors = {name: torch.from_numpy(value).cuda() for name, value in feeds.items()}

        def waiting(engine: Engine) -> Callable[[], Any]:
            return lambda: (engine(tensors), torch.cuda.synchronize())

        yield "tensors", [waiting(int8), waiting(fp16)]


if __name__ == "__main__":
    main()
