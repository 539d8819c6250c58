"""The table of report.json in docs/validation.md, held against reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quaver.runtime.artifact import Stamp, load_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.report import SCHEMA, ValidateSettings, validate
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings

PAGE = Path(__file__).parents[3] / "docs" / "validation.md"
# whose keys are names, digests or settings
OPEN = {"stamp", "settings", "sampling", "environment", "digests", "measures", "splits", "products", "batch", "missed"}
INTERVAL = {"value", "low", "high"}


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([^`]+)` \| ((?:`\w+` ?)+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {path: set(re.findall(r"`(\w+)`", keys)) for path, keys in rows}


def objects(value: Any, path: str = "report") -> Iterator[tuple[str, set[str]]]:
    """Every object of a report with the path of its row; the engines of a call share one."""
    if isinstance(value, list):
        for item in value:
            yield from objects(item, f"{path}[]")
    elif isinstance(value, dict) and not value.keys() & {"missing"} and set(value) != INTERVAL:
        yield path, set(value)
        for key, child in value.items():
            name = "*" if path.endswith("call.engines") else key
            if key not in OPEN:
                yield from objects(child, name if path == "report" else f"{path}.{name}")


def keys_of(report: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, keys in objects(report):
        found.setdefault(path, set()).update(keys)
    same = {"references[].call": "engines[].call.engines.*", "references[].generation": "engines[].generation"}
    for alias, path in same.items():
        assert found.pop(alias, set()) <= documented()[path]
    found.pop("engines[].call.engines", None)
    return found


def test_every_key_is_documented_and_every_documented_key_is_there(report: dict[str, Any]):
    assert keys_of(report | {"stamp": {}}) == documented()


@pytest.mark.parametrize("generations", [0, 1])
def test_a_report_that_was_measured_has_the_documented_keys(bundle: Bundle, generations: int):
    counts = {"latency_runs": 2, "latency_warmup": 1, "batch": 4, "clips": 1, "generations": generations}
    settings = ValidateSettings(corrections=("none", "d2-deterministic"), trajectories=4, **counts)
    validate(bundle, settings, SamplingSettings(steps=4, guidance=2.0), stamp=Stamp("validate"), progress=quiet())
    found, said = keys_of(load_json(bundle.report_json, "validate")), documented()
    assert f"schema {SCHEMA}\n" in PAGE.read_text(encoding="utf-8")
    assert found.keys() <= said.keys()
    assert {path: keys for path, keys in found.items() if keys != said[path]} == {}
    assert ("engines[].generation" in found) == bool(generations)
