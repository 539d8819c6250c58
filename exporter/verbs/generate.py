"""The verb `generate`: prompts and seeds to files.

Every prompt is drawn with every seed, of which "--seeds 0-7" names eight.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from quaver.exporter.verbs.output import say
from quaver.runtime.errors import QuaverError
from quaver.runtime.samplers import PLANS


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver generate BUNDLE --prompt TEXT`."""
    verb = verbs.add_parser("generate", parents=[shared], help="turn prompts into WAV or PNG; needs the base install")
    verb.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder that 'quaver run' wrote")
    given = verb.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", metavar="TEXT", action="append", help="what to hear, or the class to see; may be given again"
    )
    given.add_argument("--prompts", metavar="FILE", type=Path, help="a text file, one prompt a line")
    given.add_argument(
        "--row", metavar="N", type=int, action="append", help="row of the samples that condition a model without text"
    )
    verb.add_argument(
        "--seed", "--seeds", metavar="N|N-N", type=seeds, action="extend", help="of each prompt: 3, or 0-7 (default 0)"
    )
    verb.add_argument("--sampler", metavar="NAME", help=f"{', '.join(PLANS)} (default: the recipe's)")
    verb.add_argument("--steps", metavar="N", type=int, help="steps of the sampler (default: the recipe's)")
    verb.add_argument("--guidance", metavar="W", type=float, help="how hard the prompt pulls (default: the recipe's)")
    verb.add_argument("--eta", metavar="E", type=float, help="of ddim, 0 deterministic to 1 (default: the recipe's)")
    verb.add_argument("--correct", metavar="NAME", default="none", help="none (default), auto, d2-local, ptqd, ..")
    verb.add_argument(
        "--interpolate-stats", action="store_true", help="correct timesteps between those that were fitted, too"
    )
    verb.add_argument("--engine", metavar="NAME", help="float, or a target of the bundle (default: ort-cpu)")
    verb.add_argument("--batch", metavar="N", type=int, default=4, help="clips drawn together (default 4)")
    verb.add_argument(
        "--out", metavar="PLACE", type=Path, help="a file or folder (default: a file named after the prompt, or clips/)"
    )
    verb.add_argument("--missing", action="store_true", help="only the clips whose files are not there")
    verb.add_argument("--preview-every", metavar="N", type=int, help="also write the clip as it is every N steps")
    verb.add_argument("--threads", metavar="N", type=int, help="of onnxruntime (default: all cores)")
    verb.add_argument("--provider", metavar="NAME", help="onnxruntime's execution provider: cpu (default), cuda, ...")
    verb.set_defaults(verb=do_generate)


def seeds(text: str) -> Sequence[int]:
    """The seeds that "3" or "0-7" stands for."""
    found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not 0 <= last - first < 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: write 3, or 0-7 for up to 100,000 of them")
    return range(first, last + 1)


def do_generate(arguments: argparse.Namespace) -> list[Path]:
    """Write a clip, picture or latents of every prompt with every seed; each path is printed when its file is there."""
    from quaver.runtime.clips import generate_to_files

    pairs = [(text, seed) for text in asked(arguments) for seed in arguments.seed or [0]]

    def tell(path: Path) -> None:
        arguments.progress.clear()
        say([path])

    generate_to_files(
        arguments.bundle,
        [text for text, _ in pairs],
        [seed for _, seed in pairs],
        arguments.out,
        engine_file=arguments.engine,
        sampler=arguments.sampler,
        steps=arguments.steps,
        guidance=arguments.guidance,
        eta=arguments.eta,
        correct=arguments.correct,
        interpolate=arguments.interpolate_stats,
        batch=arguments.batch,
        missing=arguments.missing,
        preview_every=arguments.preview_every,
        threads=arguments.threads,
        provider=arguments.provider,
        progress=arguments.progress,
        on_file=tell,
    )
    return []


def asked(arguments: argparse.Namespace) -> Sequence[str]:
    """The prompts of a command line; a model that draws from noise alone needs none.

    Raises: QuaverError where another model is given none, or rows and has none.
    """
    from quaver.runtime.bundle import Bundle
    from quaver.runtime.family import family_of
    from quaver.runtime.rows import row_name
    from quaver.runtime.text import read_prompts

    if given := read_prompts(arguments.prompts) if arguments.prompts else arguments.prompt:
        return given
    family = family_of(Bundle(arguments.bundle)) if arguments.bundle.is_dir() else None
    if arguments.row is not None:
        if family and family.asks != "number":
            raise QuaverError(f"{arguments.bundle} has no rows of samples: say what to draw with --prompt")
        return [row_name(row) for row in arguments.row]
    if family and family.asks == "nothing":
        return [family.example]
    raise QuaverError(
        f"say what to draw of {arguments.bundle}: one of the arguments --prompt --prompts --row is required"
    )
