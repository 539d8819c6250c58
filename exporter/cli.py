"""The console script.

One verb is one stage is one function; `run` is all of them. Written paths go to stdout, everything else to stderr. The
exit status is 0, 1 for an error of the user's (one line, no traceback unless --debug), 2 for a wrong command line, 130
after Ctrl-C.
Everything heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from quaver.exporter.verbs import bench, generate, lint, looks, parity, recipe
from quaver.exporter.verbs.output import say
from quaver.runtime import log
from quaver.runtime.artifact import write_error
from quaver.runtime.errors import QuaverError, unknown
from quaver.runtime.progress import Progress, quiet

VERBS = (recipe, parity, generate, bench, lint, looks)  # in the order of --help


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status."""
    arguments = parse(list(sys.argv[1:] if argv is None else argv))
    log.show(debug=arguments.debug)
    try:
        say(arguments.verb(arguments))
    except (QuaverError, KeyboardInterrupt, MemoryError, OSError) as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"quaver: {explain(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def explain(error: BaseException) -> str:
    """The one line about an error of the user's or of the machine's; any other error is raised again."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted: nothing is lost, and the same command goes on from here"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or lower the batch, in the recipe or with --batch"
    if isinstance(error, OSError):
        error = write_error(error.filename or "a file", error)
    if isinstance(error, QuaverError):
        return str(error)
    raise error


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of a command line; exits with status 2, naming the nearest verb, when it cannot be meant."""
    parser = argparse.ArgumentParser(
        "quaver",
        description="Turns a diffusion U-Net into a quantized engine and proves what that costs.",
        epilog="example: quaver run engines/demo-w8a8.toml",
    )
    parser.add_argument("--version", action="version", version=f"quaver {version('quaver')}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' warnings")
    shared.add_argument(
        "--quiet", dest="progress", action="store_const", const=quiet(), default=Progress(), help="show no progress"
    )
    for verb in VERBS:
        verb.add(verbs, shared)
    if argv and not argv[0].startswith("-") and argv[0] not in verbs.choices:
        parser.error(unknown("verb", argv[0], verbs.choices))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
