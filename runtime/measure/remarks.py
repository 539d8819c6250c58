"""What whoever reads a report should know first, and what it was asked for and lacks.

An interval of few samples is narrower than it says: of n pairs the least and the largest hold the median in
1 - 2^(1 - n) of cases, and nothing that is drawn again from them lies outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quaver.runtime.measure.hearing import REAL_FLOOR
from quaver.runtime.measure.quality import FEWEST
from quaver.runtime.measure.trajectories import Pairs
from quaver.runtime.measure.units import counted
from quaver.runtime.measure.verdict import best_row

Rows = Sequence[Mapping[str, Any]]
MEDIAN = 6  # pairs whose range holds the median in 97% of cases; of five it is 94%


def notes(pairs: Pairs, references: Rows, engines: Rows) -> list[str]:
    """What whoever reads the figures should know first."""
    found = []
    if (prompts := len(set(pairs.prompts))) < len(pairs.prompts):
        said = f"{len(pairs.prompts)} trajectories from {prompts} held-out prompts: each is drawn several times"
        alone = ", and intervals hold for other seeds of these prompts, not for other prompts"
        found.append(f"{said}{alone if prompts < FEWEST else ''}.")
    if len(pairs.prompts) < FEWEST:
        found.append(f"{len(pairs.prompts)} trajectories are too few for 95% intervals: compare {FEWEST} or more.")
    if len(references) > 1:
        found.append("The engines come from different float models: each error is against an engine's own.")
    rates = sorted({row["rate"] for row in references if row["rate"]})
    if len(rates) > 1:
        found.append(f"Clips have different sample rates ({', '.join(f'{rate} Hz' for rate in rates)}).")
    if (fewest := min((engine["call"]["runs"] for engine in engines), default=MEDIAN)) < MEDIAN:
        few = counted(fewest, "pair of calls")
        found.append(f"{few}, too few for a 95% interval of the speed-up: time {MEDIAN} or more.")
    for kind, why in (("silent", "silent"), ("clipped", "louder than full scale, and clipped in their files")):
        counts = [(row["name"], row[kind]) for row in references]
        counts += [(engine["name"], best_row(engine["corrections"])[kind]) for engine in engines]
        numbers = sorted({number for _, number in counts})
        if len(numbers) == 1 and numbers[0]:
            found.append(f"{numbers[0]} of {len(pairs.prompts)} clips are {why}, by float and by every engine.")
        elif any(numbers):
            said = ", ".join(f"{number} by {name}" for name, number in counts)
            found.append(f"Of {len(pairs.prompts)} clips each, some are {why}: {said}.")
    return found


def unmeasured(engines: Rows) -> Iterator[str]:
    """Which set measures were asked for and are not there, each with what brings it."""
    for engine in engines:
        for found in engine["sets"]:
            if "missing" in found:
                yield f"{found['network']}: {found['missing']}"
            elif engine["settings"]["reference"] and all(row["name"] != REAL_FLOOR for row in found["floors"]):
                yield f"{found['network']}: {found['note']}"
