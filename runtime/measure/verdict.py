"""Ship or do not ship: every figure that a budget names is held against it with the worse bound of its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from quaver.runtime.measure.units import percent, spoken
from quaver.runtime.session import FLOAT

Rows = Sequence[Mapping[str, Any]]


class Budget(Protocol):
    """What an engine must keep."""

    @property
    def max_latent_error(self) -> float:
        """Of the mean relative error of the finished latent, upper bound."""

    @property
    def min_speedup(self) -> float:
        """Of float seconds over this engine's for one U-Net call, lower bound."""


def verdict(target: str, rows: Rows, call: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Ship if the best correction's error and the speed-up of an engine keep the budget with their worse bounds."""
    best = best_row(rows)
    error, speed = best["latent_error"], corrected_speedup(call, best)
    checks = [
        {
            "passed": error["high"] <= budget.max_latent_error,
            "sentence": f"Latent error {percent(error['value'])}, at most {percent(error['high'])};"
            f" the budget is {percent(budget.max_latent_error)}.",
        },
        {
            "passed": speed["low"] >= budget.min_speedup,
            "sentence": f"One U-Net call with {spoken(best['name'])} is {speed['value']:.2f}× as fast as float,"
            f" at least {speed['low']:.2f}×; the budget is {budget.min_speedup:.2f}×.",
        },
    ]
    ship = all(check["passed"] for check in checks)
    where = "keeps" if ship else "does not keep"
    sentence = f"{target} with {spoken(best['name'])} {where} the budget of its recipe."
    word = "Ship" if ship else "Do not ship"
    return {"ship": ship, "word": word, "correction": best["name"], "sentence": sentence, "checks": checks}


def corrected_speedup(call: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Float seconds over those of this engine's call and of what a correction adds to it, an interval."""
    added = row["added_s"] / call["engines"][FLOAT]["median_s"]
    return {name: 1 / (1 / max(value, 1e-9) + added) for name, value in call["speedup"].items()}


def best_row(rows: Rows) -> Mapping[str, Any]:
    """The correction whose finished latents are closest to the float ones."""
    return min(rows, key=lambda row: row["latent_error"]["value"])


def joint_verdict(engines: Rows) -> dict[str, Any]:
    """The verdict over several engines: how many ship, and which of those is closest, fastest and smallest."""
    if len(engines) == 1:
        return {name: engines[0]["verdict"][name] for name in ("ship", "word", "sentence")}
    shipped = [engine for engine in engines if engine["verdict"]["ship"]]
    if not shipped:
        sentence = "None of the engines keeps the budget of its recipe."
        return {"ship": False, "word": "Do not ship", "sentence": sentence}
    if len(shipped) == 1:
        return {"ship": True, "word": f"1 of {len(engines)} ships", "sentence": f"It is {shipped[0]['name']}."}
    firsts: dict[str, list[str]] = {}
    for word, engine in (
        ("most accurate", min(shipped, key=lambda e: best_row(e["corrections"])["latent_error"]["value"])),
        ("fastest", max(shipped, key=lambda e: e["call"]["speedup"]["value"])),
        ("smallest", min(shipped, key=lambda e: e["bytes"])),
    ):
        firsts.setdefault(engine["name"], []).append(word)
    sentence = "; ".join(f"{name} is the {listed(words)} of them" for name, words in firsts.items())
    return {"ship": True, "word": f"{len(shipped)} of {len(engines)} ship", "sentence": f"{sentence}."}


def listed(words: Sequence[str]) -> str:
    """Words with commas and a last "and"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
