"""The console script.

One verb is one stage is one function; `run` is all of them. Written paths go to stdout, everything else to stderr. The
exit status is 0, 1 for an error of the user's (one line, no traceback unless --debug), 2 for a wrong command line, 130
after Ctrl-C.
Everything heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from quaver.calib.fanout import Fanout
from quaver.exporter.stages import STAGES, run_recipe, run_verb
from quaver.runtime import log
from quaver.runtime.artifact import write_error
from quaver.runtime.errors import EngineError, QuaverError, unknown
from quaver.runtime.progress import Progress, quiet
from quaver.runtime.samplers import PLANS


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


def say(result: Sequence[Path] | str) -> None:
    """Print what a verb returned: paths one a line, or a text."""
    try:
        for line in [result] if isinstance(result, str) else result:
            print(line, flush=True)
    except BrokenPipeError:  # `quaver show FILE | head` has read enough; the verb's verdict still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    shared.add_argument("--quiet", action="store_true", help="show no progress")
    add_run(verbs, shared)
    add_stages(verbs, shared)
    add_sensitivity(verbs, shared)
    add_parity(verbs, shared)
    add_generate(verbs, shared)
    add_bench(verbs, shared)
    add_lint(verbs, shared)
    add_looks(verbs, shared)
    if argv and not argv[0].startswith("-") and argv[0] not in verbs.choices:
        parser.error(unknown("verb", argv[0], verbs.choices))
    return parser.parse_args(argv)


def add_run(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver run RECIPE`."""
    verb = verbs.add_parser("run", parents=[shared], help="bring everything a recipe describes up to date")
    add_recipe(verb)
    verb.add_argument("--until", metavar="STAGE", help="the last stage to run")
    verb.add_argument("--force", metavar="STAGE", help="a stage to run although it is current")
    verb.set_defaults(verb=do_run)


def add_stages(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver STAGE RECIPE`, a verb for every stage."""
    for stage in STAGES:
        verb = verbs.add_parser(stage.name, parents=[shared], help=f"one stage: {stage.help}")
        add_recipe(verb)
        verb.set_defaults(verb=do_stage, stage=stage.name)
        if stage.name == "validate":
            add_comparison(verb)


def add_comparison(verb: argparse.ArgumentParser) -> None:
    """What `quaver validate` takes beside a recipe: more engines, and tables."""
    verb.add_argument("others", metavar="RECIPE_OR_BUNDLE", type=Path, nargs="*", help="engines for one joint report")
    verb.add_argument("--csv", metavar="FILE", type=Path, help="write the figures as a table, bounds in columns")
    verb.add_argument("--markdown", metavar="FILE", type=Path, help="write the figures as a table to paste")
    verb.set_defaults(verb=do_validate)


def add_bench(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
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


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """What every verb that writes a bundle takes."""
    verb.add_argument("recipe", metavar="RECIPE", type=Path, help="a .toml file; its bundle is the folder beside it")
    verb.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], dest="overrides", help="replace a setting"
    )
    verb.add_argument("--out", metavar="DIR", type=Path, help="write the bundle there")
    verb.add_argument("--workers", metavar="N", type=int, default=1, help="processes that share capture, ranges, stats")
    verb.add_argument("--ray", metavar="ADDRESS", default="", help="a Ray cluster that shares them, auto: this one's")


def add_sensitivity(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver sensitivity RECIPE`, whose tables go to stdout."""
    verb = verbs.add_parser("sensitivity", parents=[shared], help="which layers should stay float, after 'quaver run'")
    add_recipe(verb)
    aim = verb.add_mutually_exclusive_group()
    aim.add_argument(
        "--keep", metavar="N%", help="share of the layers to propose as float (default: the recipe's, 10%%)"
    )
    aim.add_argument("--snr", metavar="DB", type=float, help="propose the fewest that reach this SNR at the output")
    verb.add_argument("--records", metavar="N", type=int, help="records of each timestep (default: the recipe's, 2)")
    verb.add_argument("--weight", metavar="FORMAT", help="int8 or int4 (default: what the recipe gives most layers)")
    verb.add_argument("--activation", metavar="FORMAT", help="int8 or float (default: likewise)")
    verb.set_defaults(verb=do_sensitivity, stage="sensitivity")


def add_parity(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver parity BUNDLE_OR_GRAPH`, whose table goes to stdout; status 1 when a layer is bad."""
    verb = verbs.add_parser("parity", parents=[shared], help="engine against fake-quant against float: the bad layer")
    verb.add_argument("source", metavar="BUNDLE_OR_QDQ.onnx", type=Path)
    verb.add_argument("--target", metavar="NAME", default="", help="of a bundle (default: ort-cpu)")
    verb.add_argument("--float", metavar="FLOAT.onnx", type=Path, dest="floats", help="default: the bundle's")
    verb.add_argument(
        "--inputs", metavar="FILE", type=Path, help=".npz or .safetensors (default: the bundle's records)"
    )
    verb.add_argument("--records", metavar="N", type=int, default=4, help="of a bundle, over its timesteps (default 4)")
    verb.add_argument(
        "--no-engine", action="store_true", help="the graph is not for onnxruntime (default: unet.tensorrt*)"
    )
    verb.add_argument("--memory", metavar="MIB", type=float, default=512, help="for activations (default 512)")
    verb.add_argument(
        "--tolerance", metavar="NAME=VALUE", action="append", default=[], help="steps, moved, snr, loose, weight, cost"
    )
    verb.add_argument("--json", action="store_true", help="every edge, instead of the table")
    verb.set_defaults(verb=do_parity)


def add_generate(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
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


def add_lint(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver lint MODEL --target NAME`, whose report goes to stdout."""
    verb = verbs.add_parser("lint", parents=[shared], help="which kernel every layer of an ONNX file gets, and why")
    verb.add_argument("model", metavar="MODEL", type=Path, help="an .onnx file, quaver's or anybody's")
    verb.add_argument("--target", metavar="NAME", required=True, help="ort-cpu, tensorrt-rtx, tensorrt-10, tensorrt-11")
    verb.add_argument("--capabilities", metavar="SM,SM", default="", help="GPUs of the plan (default: build's, on RTX)")
    verb.add_argument("--isa", metavar="NAME", default="portable", help="CPU of ort-cpu: portable, native, avx2, ...")
    verb.add_argument("--json", action="store_true", help="print it as JSON")
    verb.set_defaults(verb=do_lint)


def add_looks(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver show FILE` and `quaver doctor`, whose text goes to stdout."""
    verb = verbs.add_parser("show", parents=[shared], help="what a file of quaver, or a bundle, holds")
    verb.add_argument("file", metavar="FILE", type=Path)
    verb.set_defaults(verb=do_show)
    verb = verbs.add_parser("doctor", parents=[shared], help="versions, extras, and what this machine can run")
    verb.set_defaults(verb=do_doctor)


def do_run(arguments: argparse.Namespace) -> list[Path]:
    """Run the chain."""
    return run_recipe(
        arguments.recipe,
        until=arguments.until,
        force=arguments.force,
        overrides=arguments.overrides,
        out=arguments.out,
        progress=shown(arguments),
        fanout=Fanout(arguments.workers, arguments.ray),
    )


def do_stage(arguments: argparse.Namespace) -> list[Path]:
    """Run one stage."""
    return run_verb(
        arguments.recipe,
        arguments.stage,
        overrides=arguments.overrides,
        out=arguments.out,
        progress=shown(arguments),
        fanout=Fanout(arguments.workers, arguments.ray),
    )


def do_validate(arguments: argparse.Namespace) -> list[Path]:
    """Run the stage, or judge several engines together; write the tables that were asked for."""
    from quaver.exporter.lock import locked
    from quaver.runtime.artifact import load_json
    from quaver.runtime.measure import joint, table

    if arguments.others:
        sources = [arguments.recipe, *arguments.others]
        out = arguments.out or joint.folder_of(sources)
        with locked(out / ".lock"):
            written = joint.compare(sources, out, overrides=arguments.overrides, progress=shown(arguments))
    else:
        written = do_stage(arguments)
    for write, path in ((table.write_csv, arguments.csv), (table.write_markdown, arguments.markdown)):
        if path:
            written.append(write(path, table.method_rows(load_json(written[0], "validate"))))
    return written


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
        progress=shown(arguments),
    )
    if arguments.csv:
        table.write_csv(arguments.csv, bench.bench_rows(report))
    return json.dumps(report, indent=1) if arguments.json else bench.describe(report)


def do_sensitivity(arguments: argparse.Namespace) -> str:
    """Measure, propose, and say so."""
    from quaver.exporter.proposal import KIND, describe
    from quaver.runtime.artifact import load_json

    given = {name: getattr(arguments, name) for name in ("keep", "snr", "records", "weight", "activation")}
    if given["keep"] is not None:
        given |= {"keep": given["keep"].removesuffix("%"), "snr": 0}
    arguments.overrides += [f"sensitivity.{name}={value}" for name, value in given.items() if value is not None]
    written = do_stage(arguments)
    return "\n".join((describe(load_json(written[0], KIND)), "", *(f"# {path}" for path in written)))


def do_parity(arguments: argparse.Namespace) -> str:
    """Compare, say so, and fail when a layer is bad."""
    from quaver.exporter.parity import measure
    from quaver.exporter.parity.difference import read_tolerance
    from quaver.exporter.parity.files import find_calls, find_files
    from quaver.exporter.parity.table import table, text
    from quaver.exporter.parity.verdict import judge

    tolerance = read_tolerance(arguments.tolerance)
    quantized, floats = find_files(arguments.source, target=arguments.target, floats=arguments.floats)
    calls = find_calls(quantized, inputs=arguments.inputs, records=arguments.records)
    engine = not (arguments.no_engine or quantized.name.startswith("unet.tensorrt"))
    report = measure(quantized, floats, calls, engine=engine, memory=arguments.memory, progress=shown(arguments))
    findings = judge(report, tolerance)
    shown_text = json.dumps(table(report, findings), indent=1) if arguments.json else text(report, findings)
    if not findings:
        return shown_text
    say(shown_text)
    raise EngineError(f"{quantized.name}: first bad layer: {findings[0].layer} ({findings[0].kind})")


def do_generate(arguments: argparse.Namespace) -> list[Path]:
    """Write a clip, picture or latents of every prompt with every seed; each path is printed when its file is there."""
    from quaver.runtime.clips import generate_to_files

    pairs = [(text, seed) for text in asked(arguments) for seed in arguments.seed or [0]]
    progress = shown(arguments)

    def tell(path: Path) -> None:
        progress.clear()
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
        progress=progress,
        on_file=tell,
    )
    return []


def asked(arguments: argparse.Namespace) -> Sequence[str]:
    """The prompts of a command line; a model that draws from noise alone needs none.

    Raises: QuaverError where another model is given none, or rows and has none.
    """
    from quaver.runtime.bundle import Bundle
    from quaver.runtime.families.ldm import NO_CLASS
    from quaver.runtime.family import read_card
    from quaver.runtime.rows import row_name
    from quaver.runtime.text import read_prompts

    if given := read_prompts(arguments.prompts) if arguments.prompts else arguments.prompt:
        return given
    card = read_card(Bundle(arguments.bundle)) if arguments.bundle.is_dir() else {"rows": 0}
    if arguments.row is not None and not ("rows" in card or card.get("classes")):
        raise QuaverError(f"{arguments.bundle} has no rows of samples: say what to draw with --prompt")
    if arguments.row is not None:
        return [row_name(row) for row in arguments.row]
    if card.get("classes") == 0:
        return [NO_CLASS]
    raise QuaverError(
        f"say what to draw of {arguments.bundle}: one of the arguments --prompt --prompts --row is required"
    )


def do_lint(arguments: argparse.Namespace) -> str:
    """Say which kernels a file gets; an error when the target would refuse it."""
    from quaver.exporter import lint
    from quaver.exporter.build import BuildSettings
    from quaver.runtime.errors import EngineError

    default = BuildSettings().compute_capabilities if arguments.target == "tensorrt-rtx" else ()
    capabilities = [name for name in arguments.capabilities.split(",") if name] or default
    report = lint.lint(arguments.model, arguments.target, capabilities=capabilities, isa=arguments.isa)
    text = lint.as_json(report) if arguments.json else lint.describe(report)
    if report.refused:
        say(text)
        raise EngineError(f"{report.target} refuses {report.file}: {report.refused[0]}")
    return text


def do_show(arguments: argparse.Namespace) -> str:
    """Describe a file."""
    from quaver.exporter.show import describe

    return describe(arguments.file)


def do_doctor(arguments: argparse.Namespace) -> str:
    """Describe the machine."""
    from quaver.exporter.doctor import examine

    return examine()


def shown(arguments: argparse.Namespace) -> Progress:
    """Where progress goes."""
    return quiet() if arguments.quiet else Progress()


if __name__ == "__main__":
    sys.exit(main())
