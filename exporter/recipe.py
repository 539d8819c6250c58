"""A recipe: the settings of every stage, one section each, in one TOML file.

Every section and key has a default, so that a recipe says only what it wants otherwise; the resolved one lies in the
bundle as `recipe.toml`. The classes lie beside the code that reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from quaver.calib.capture import CaptureSettings
from quaver.calib.error_stats import StatsSettings
from quaver.calib.prompts import PromptSettings
from quaver.calib.ranges import RangeSettings
from quaver.calib.reconstruct import ReconstructSettings
from quaver.calib.sensitivity import SensitivitySettings
from quaver.exporter.build import BuildSettings, check_settings, plan_targets
from quaver.exporter.export import ExportSettings
from quaver.exporter.memory import MachineSettings
from quaver.exporter.trace import ModelSettings
from quaver.runtime.config import override, read_toml, to_config
from quaver.runtime.errors import RecipeError
from quaver.runtime.measure.report import ValidateSettings
from quaver.runtime.sample import SamplingSettings


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe, in the order in which the chain meets them."""

    model: ModelSettings = field(default_factory=ModelSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    ranges: RangeSettings = field(default_factory=RangeSettings)
    reconstruct: ReconstructSettings = field(default_factory=ReconstructSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    build: BuildSettings = field(default_factory=BuildSettings)
    stats: StatsSettings = field(default_factory=StatsSettings)
    validate: ValidateSettings = field(default_factory=ValidateSettings)
    sensitivity: SensitivitySettings = field(default_factory=SensitivitySettings)  # no stage of the chain: an analysis
    machine: MachineSettings = field(default_factory=MachineSettings)  # no stage's either: changing it makes none stale

    def __post_init__(self) -> None:
        if targets := plan_targets(self.export.targets):
            check_settings(self.build, targets)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, with each "section.key=value" of `overrides` put in its place.

    Raises: RecipeError when the file is missing or no recipe, naming the nearest file, section or key.
    """
    path = Path(path)
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, expected a recipe: did you mean {path.with_suffix('.toml')}?")
    if path.suffix != ".toml":
        raise RecipeError(f"{path} is not a recipe: expected a .toml file, for example engines/demo-w8a8.toml")
    if not path.exists():
        raise RecipeError(f"no recipe {path}{nearest(path)}")
    table = read_toml(path)
    try:
        return to_config(Recipe, override(table, overrides))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def nearest(path: Path) -> str:
    """The recipe beside a missing one whose name is nearest to it, as the end of a message."""
    there = {file.name: file for file in path.parent.glob("*.toml")}
    near = get_close_matches(path.name, list(there), n=1, cutoff=0.4) or sorted(there)[:1]
    return f": did you mean {there[near[0]]}?" if near else ": name a .toml file that exists"
