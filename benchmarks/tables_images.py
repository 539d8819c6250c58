"""Tables 1, 2 and 5 of D2-DPM on handwritten digits: quantized engines and their corrections, as sets of images.

    python -m benchmarks.tables_images [--tables 1 2 5] [--samples 10000] [--keep build/images] [--only]

    1    20 steps, scale 3.0, eta 0 and 1, W8A8 and W4A8         2    250 steps, scale 1.5, eta 0 and 1, W4A8
    5    250 steps, scale 1.5, eta 1, W4A8: S-D2 (SJC), the mean alone (DMC), mean and variance (DMC + DVC, D-D2)

`digits.cells` says what each method is. Statistics are fitted for every engine, eta and number of steps; engines stay
those calibrated at 20 steps.

Frechet, spatial     squared Frechet distance (digits probe) to the 1797 real images, in the places of FID and sFID
IS                   inception-style score of the probe's ten classes
precision, recall    of the probe's features, 3 neighbours, in percent
hit rate             share of images that the probe reads as the class asked for, in percent
latent error         against the float engine's image from the same noise, mean over images

An order that D2-DPM publishes holds here, is reversed or undecided by a paired bootstrap over images
(`benchmarks.orders`). Images lie in parts below --keep under what they depend on: killed, it goes on; asked for more,
it draws the rest. `--only` draws and prints nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digits.cells import FP, Q_DIFFUSION, TABLES, TARGET, Cell, bit_operations, cells, draw, make_engine
from benchmarks.digits.measures import floors, make_judge, measure
from benchmarks.digits.published import orders
from benchmarks.figures import publish, table
from benchmarks.orders import HOLDS, Measured, Order, order
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.cost import file_bytes

WANTED = 10_000
SUMS = ("IS", "precision", "recall", "hit rate")  # of these more is better


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is missing, and print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.tables_images")
    parser.add_argument("--tables", type=int, nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--samples", type=int, default=WANTED)
    parser.add_argument("--keep", type=Path, default=Path("build/images"))
    parser.add_argument("--only", action="store_true", help="draw, print nothing")
    given = parser.parse_args(argv)
    wanted = list(dict.fromkeys(cell for number in given.tables for cell in cells(TABLES[number])))
    engines = {key: make_engine(*key, given.keep) for key in dict.fromkeys(cell.engine for cell in wanted)}
    images = {cell: draw(cell, engines[cell.engine], given.samples, given.keep) for cell in wanted}
    if not given.only:
        report(given.tables, images, {key: cost(bundle) for key, bundle in engines.items()})


def report(
    numbers: Sequence[int],
    images: Mapping[Cell, np.ndarray],
    costs: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]],
) -> None:
    """Print the tables, and which published orders hold."""
    count = len(next(iter(images.values())))
    judge = make_judge(count)
    found = {
        cell: measure(drawn, None if cell.method == FP else images[cell.reference], judge)
        for cell, drawn in images.items()
    }
    rows = [
        {"table": number, **line(cell, found[cell], costs[cell.engine])}
        for number in numbers
        for cell in cells(TABLES[number])
    ]
    held = [verdict for number in numbers for verdict in verdicts(number, found)]
    kinds = dict.fromkeys(verdict["measure"] for verdict in held)
    print(table(verdict for verdict in held if verdict["measure"] == "Frechet"), end="\n\n")
    publish(
        "tables_images",
        rows,
        figures={
            "cells": rows,
            "floors": {cell.name: floors(drawn, judge) for cell, drawn in images.items() if cell.method == FP},
            "orders": held,
            "verdicts": {kind: Counter(v["here"] for v in held if v["measure"] == kind) for kind in kinds},
        },
        reached={f"at least {WANTED} images a cell": count >= WANTED, **claims(found)},
    )


def cost(bundle: Bundle) -> dict[str, tuple[float, float]]:
    """Megabytes of the file and G bit operations of a call, of the float graph and of the engine."""
    return {
        "MB": (file_bytes(bundle.float_unet) / 1e6, file_bytes(bundle.qdq(TARGET)) / 1e6),
        "GBOPs": bit_operations(bundle),
    }


def line(cell: Cell, found: Mapping[str, Measured], costs: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """A row of a table."""
    said = {"steps": cell.steps, "eta": f"{cell.eta:g}", "bits": cell.width or "float", "method": cell.method}
    said |= {name: values[cell.method != FP] for name, values in costs.items()}
    return said | {name: measured.interval for name, measured in found.items()} | latent(found)


def latent(found: Mapping[str, Measured]) -> dict[str, Any]:
    """The latent error, empty where a cell is its own reference."""
    return {"latent error": found["latent error"].interval if "latent error" in found else ""}


def verdicts(number: int, found: Mapping[Cell, Mapping[str, Measured]]) -> list[dict[str, Any]]:
    """What becomes here of every order that a table of D2-DPM publishes."""
    shape, lines = TABLES[number], []
    for width, eta in product(shape.widths, shape.etas):
        for kind, better, worse in orders(number, width, eta):
            of = {m: Cell(m, "" if m == FP else width, shape.steps, shape.guidance, eta) for m in (better, worse)}
            verdict = compare(found, kind, of[better], of[worse])
            said = {"table": number, "bits": width, "eta": f"{eta:g}", "measure": kind}
            said |= {"paper says": f"{better} before {worse}", "difference": verdict.difference}
            lines.append(said | {"here": verdict.verdict})
    return lines


def compare(found: Mapping[Cell, Mapping[str, Measured]], kind: str, first: Cell, second: Cell) -> Order:
    """Whether `first` is better than `second`; the difference is below zero where it is."""
    sign = -1.0 if kind in SUMS else 1.0
    sides = {"first": found[first][kind], "second": found[second][kind]}
    return order(
        {name: Measured(sign * m.value, sign * m.resampled, sign * m.seeds) for name, m in sides.items()},
        "first",
        "second",
    )


def claims(found: Mapping[Cell, Mapping[str, Measured]]) -> dict[str, bool]:
    """Of every sampling and width: whether `auto` is nearer to the float engine's own images than no correction."""
    mine = [cell for cell in found if cell.method == "auto"]
    return {
        f"{cell.name} is nearer to the float engine's images than no correction": compare(
            found, "latent error", cell, replace(cell, method=Q_DIFFUSION)
        ).verdict
        == HOLDS
        for cell in mine
    }


if __name__ == "__main__":
    main()
