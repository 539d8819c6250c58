"""The verb `lint`: which kernel every layer of a file gets, before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path

from quaver.exporter.verbs.output import say
from quaver.runtime.errors import EngineError


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver lint MODEL --target NAME`, whose report goes to stdout."""
    verb = verbs.add_parser("lint", parents=[shared], help="which kernel every layer of an ONNX file gets, and why")
    verb.add_argument("model", metavar="MODEL", type=Path, help="an .onnx file, quaver's or anybody's")
    verb.add_argument("--target", metavar="NAME", required=True, help="ort-cpu, tensorrt-rtx, tensorrt-10, tensorrt-11")
    verb.add_argument("--capabilities", metavar="SM,SM", default="", help="GPUs of the plan (default: build's, on RTX)")
    verb.add_argument("--isa", metavar="NAME", default="portable", help="CPU of ort-cpu: portable, native, avx2, ...")
    verb.add_argument("--json", action="store_true", help="print it as JSON")
    verb.set_defaults(verb=do_lint)


def do_lint(arguments: argparse.Namespace) -> str:
    """Say which kernels a file gets; an error when the target would refuse it."""
    from quaver.exporter import lint
    from quaver.exporter.build import BuildSettings

    default = BuildSettings().compute_capabilities if arguments.target == "tensorrt-rtx" else ()
    capabilities = [name for name in arguments.capabilities.split(",") if name] or default
    report = lint.lint(arguments.model, arguments.target, capabilities=capabilities, isa=arguments.isa)
    text = lint.as_json(report) if arguments.json else lint.describe(report)
    if report.refused:
        say(text)
        raise EngineError(f"{report.target} refuses {report.file}: {report.refused[0]}")
    return text
