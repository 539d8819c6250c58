"""The verbs that only look: `show` at a file or a bundle, `doctor` at the machine."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver show FILE` and `quaver doctor`, whose text goes to stdout."""
    verb = verbs.add_parser("show", parents=[shared], help="what a file of quaver, or a bundle, holds")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.set_defaults(verb=do_show)
    verb = verbs.add_parser("doctor", parents=[shared], help="versions, extras, and what this machine can run")
    verb.set_defaults(verb=do_doctor)


def do_show(arguments: argparse.Namespace) -> str:
    """Describe a file."""
    from quaver.exporter.show import describe

    return describe(arguments.file)


def do_doctor(arguments: argparse.Namespace) -> str:
    """Describe the machine."""
    from quaver.exporter.doctor import examine

    return examine()
