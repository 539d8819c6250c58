"""The verb `bench`: latency alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver bench RECIPE_OR_BUNDLE...`, whose table goes to stdout."""
    verb = verbs.add_parser("bench", parents=[shared], help="latency alone: calls, generation, loading, memory")
    verb.add_argument("sources", metavar="RECIPE_OR_BUNDLE", type=Path, nargs="+")
    verb.add_argument("--batches", metavar="N", type=int, nargs="+", default=[1, 2, 8], help="default: 1 2 8")
    verb.add_argument("--runs", metavar="N", type=int, default=15, help="pairs of calls (default 15)")
    verb.add_argument("--warmup", metavar="N", type=int, default=3, help="calls before them (default 3)")
    verb.add_argument("--generations", metavar="N", type=int, default=3, help="pairs of them; 0: none (default 3)")
    verb.add_argument("--threads", metavar="N", type=int, help="of onnxruntime (default: all cores)")
    verb.add_argument("--json", action="store_true", help="every figure, instead of the table")
    verb.add_argument("--csv", metavar="FILE", type=Path, help="write the table there too")
    verb.set_defaults(verb=do_bench)


def do_bench(arguments: argparse.Namespace) -> str:
    """Time the engines and say so."""
    from quaver.runtime.measure import bench, table
    from quaver.runtime.measure.joint import find_subjects

    report = bench.bench(
        find_subjects(arguments.sources),
        batches=arguments.batches,
        runs=arguments.runs,
        warmup=arguments.warmup,
        generations=arguments.generations,
        threads=arguments.threads,
        progress=arguments.progress,
    )
    if arguments.csv:
        table.write_csv(arguments.csv, bench.bench_rows(report))
    return json.dumps(report, indent=1) if arguments.json else bench.describe(report)
