"""The verbs that bring a bundle up to date: `run`, one for every stage, and the analysis `sensitivity`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from quaver.calib.fanout import Fanout
from quaver.exporter.stages import STAGES, run_recipe, run_verb
from quaver.runtime.error_law import SAMPLING
from quaver.runtime.samplers import PLANS


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Put them on the command line."""
    add_run(verbs, shared)
    add_stages(verbs, shared)
    add_sensitivity(verbs, shared)


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
        if stage.name == "stats":
            add_sampling(verb)


def add_comparison(verb: argparse.ArgumentParser) -> None:
    """What `quaver validate` takes beside a recipe: more engines, and tables."""
    verb.add_argument("others", metavar="RECIPE_OR_BUNDLE", type=Path, nargs="*", help="engines for one joint report")
    verb.add_argument("--csv", metavar="FILE", type=Path, help="write the figures as a table, bounds in columns")
    verb.add_argument("--markdown", metavar="FILE", type=Path, help="write the figures as a table to paste")
    verb.set_defaults(verb=do_validate)


def add_sampling(verb: argparse.ArgumentParser) -> None:
    """What `quaver stats` takes beside a recipe: another sampling, whose file lies beside that of the recipe's own."""
    given = verb.add_argument_group("statistics of another sampling, beside those of the recipe's own")
    given.add_argument("--sampler", metavar="NAME", help=", ".join(PLANS))
    given.add_argument("--steps", metavar="N", type=int, help="steps of the sampler")
    given.add_argument("--guidance", metavar="W", type=float, help="how hard the prompt pulls")
    given.add_argument("--eta", metavar="E", type=float, help="of ddim, 0 deterministic to 1")
    verb.set_defaults(verb=do_stats)


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


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """What every verb that writes a bundle takes."""
    verb.add_argument("recipe", metavar="RECIPE", type=Path, help="a .toml file; its bundle is the folder beside it")
    verb.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], dest="overrides", help="replace a setting"
    )
    verb.add_argument("--out", metavar="DIR", type=Path, help="write the bundle there")
    verb.add_argument("--workers", metavar="N", type=int, default=1, help="processes that share capture, ranges, stats")
    verb.add_argument("--ray", metavar="ADDRESS", default="", help="a Ray cluster that shares them, auto: this one's")


def do_run(arguments: argparse.Namespace) -> list[Path]:
    """Run the chain."""
    return run_recipe(
        arguments.recipe,
        until=arguments.until,
        force=arguments.force,
        overrides=arguments.overrides,
        out=arguments.out,
        progress=arguments.progress,
        fanout=Fanout(arguments.workers, arguments.ray),
    )


def do_stats(arguments: argparse.Namespace) -> list[Path]:
    """Run the stage, as the recipe samples or otherwise."""
    return do_stage(arguments, sampling={name: getattr(arguments, name) for name in SAMPLING})


def do_stage(arguments: argparse.Namespace, *, sampling: Mapping[str, str | float | None] | None = None) -> list[Path]:
    """Run one stage."""
    return run_verb(
        arguments.recipe,
        arguments.stage,
        overrides=arguments.overrides,
        out=arguments.out,
        progress=arguments.progress,
        fanout=Fanout(arguments.workers, arguments.ray),
        sampling=sampling,
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
            written = joint.compare(sources, out, overrides=arguments.overrides, progress=arguments.progress)
    else:
        written = do_stage(arguments)
    for write, path in ((table.write_csv, arguments.csv), (table.write_markdown, arguments.markdown)):
        if path:
            written.append(write(path, table.method_rows(load_json(written[0], "validate"))))
    return written


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
