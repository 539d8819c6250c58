"""The analysis that measures sensitivities on a finished bundle, and the rules it proposes.

    unet.float.onnx, ranges, records -> code every layer for the first target -> measure (calib.sensitivity) ->
    which layers to keep -> measure the others together -> sensitivity.json, media/sensitivity.svg

Every layer gets the formats that the recipe gives most of them, those that it keeps float too. An input and a weight
are coded; the output that some kernels want coded as well is not. What was measured is used again as long as the files
and the settings it came from stay, so another `keep` or `snr` costs the check alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.graph import Layer, layers
from quaver.calib.ranking import draw_ranking
from quaver.calib.reconstruct.coding import Coding
from quaver.calib.reconstruct.replay import Graph, read_graph
from quaver.calib.records import Records, load_records
from quaver.calib.rules import Rule, preset, resolve
from quaver.calib.sensitivity import (
    Sensitivity,
    SensitivitySettings,
    draw,
    ends_are_sensitive,
    keep_for,
    keep_share,
    measure,
    predicted,
    ranks,
    together,
)
from quaver.exporter.export import ExportSettings, read_ranges
from quaver.exporter.modelfile import load_model
from quaver.exporter.placement import place
from quaver.exporter.rounding import code_layers
from quaver.exporter.targets import Target, find_target
from quaver.runtime.artifact import Stamp, atomic, digest_json, load_json, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.family import family_of
from quaver.runtime.progress import Progress

KIND = "sensitivity"
PICTURE = "sensitivity.svg"
ROWS = 20  # of the table; the file has all


@dataclass(frozen=True)
class Coded:
    """A float network, how each layer that the target can code is coded, and its records."""

    graph: Graph
    found: Sequence[Layer]
    codings: Mapping[str, Coding]
    rule: Rule
    target: Target
    drawn: Records


def propose(
    bundle: Bundle, settings: SensitivitySettings, exported: ExportSettings, *, stamp: Stamp, progress: Progress
) -> Path:
    """Write sensitivity.json and its picture: powers [L, S], the layers by rank, the proposal and its check.

    Raises: RecipeError for formats that cannot be measured; whatever placement raises.
    """
    coded = code(bundle, settings, exported)
    feeds = family_of(bundle).feeds
    asked = {name: value for name, value in asdict(settings).items() if name not in ("keep", "snr")}
    origin = digest_json({"settings": asked, "export": asdict(exported), "inputs": stamp.inputs})
    found = earlier(bundle, origin)
    if found is None:
        found = measure(coded.graph, coded.codings, coded.drawn, feeds, batch=settings.batch, progress=progress)
    kept = keep_for(found, settings.snr) if settings.snr else keep_share(found, settings.keep)
    names = {found.layers[layer] for layer in kept}
    others = {name: coding for name, coding in coded.codings.items() if name not in names}
    got = together(coded.graph, others, coded.drawn, feeds, batch=settings.batch)
    table = tabulate(coded, found, kept, got, settings) | {"origin": origin}
    with atomic(bundle.media(PICTURE)) as temporary:
        title = f"Output SNR when one layer alone is coded, {coded.rule.weight} weights, {coded.rule.activation} inputs"
        said = f"{len(found.layers)} layers, {len(coded.drawn.t)} records; {spoken_check(table['proposal'])}"
        temporary.write_text(draw_ranking(found, kept, title=title, said=said), encoding="utf-8")
    return save_json(bundle.sensitivity, table, stamp)


def code(bundle: Bundle, settings: SensitivitySettings, exported: ExportSettings) -> Coded:
    """What is to be measured, on the grids of the first target of [export].

    Raises: RecipeError when the formats are not integers or there is no target.
    """
    if not exported.targets:
        raise RecipeError("export.targets is empty: name 'ort-cpu', 'tensorrt-rtx' or both")
    model, target = load_model(bundle.float_unet), find_target(exported.targets[0], isa=exported.isa)
    found, ranges = layers(model), read_ranges(bundle)
    rule = usual_rule((*exported.rules, *preset(exported.preset)), [layer.name for layer in found])
    rule = replace(rule, weight=settings.weight or rule.weight, activation=settings.activation or rule.activation)
    if rule.weight not in ("int8", "int4") or rule.activation not in ("int8", "float"):
        raise RecipeError(
            f"sensitivity is measured for integers, not {rule.weight} weights with {rule.activation} inputs: "
            "set sensitivity.weight to 'int8' or 'int4', and sensitivity.activation to 'int8' or 'float'"
        )
    sites = place(found, [rule], target, ranges)
    codings = code_layers(model, found, sites, ranges, target, learning=False)
    records = load_records(bundle.samples)
    rows = draw(records.t, settings.records, np.random.default_rng(settings.seed))
    cond = {name: value[rows] for name, value in records.cond.items()}
    drawn = replace(records, x_t=records.x_t[rows], t=records.t[rows], cond=cond)
    inside = {name: replace(coding, output=None) for name, coding in codings.items()}
    return Coded(read_graph(model), found, inside, rule, target, drawn)


def usual_rule(rules: Sequence[Rule], names: Sequence[str]) -> Rule:
    """A rule for every layer with the formats that `rules` give most of those they quantize (none: int8, int8)."""
    decided = Counter((r.weight, r.activation) for r in resolve(rules, names).values() if r.quantized)
    weight, activation = decided.most_common(1)[0][0] if decided else ("int8", "int8")
    return Rule("*", weight, activation, "sensitivity: not among the worst")


def earlier(bundle: Bundle, origin: str) -> Sensitivity | None:
    """What was measured before on the same files with the same settings."""
    try:
        table = load_json(bundle.sensitivity, KIND)
        if table["origin"] != origin:
            return None
        rows = sorted(table["layers"], key=lambda row: row["order"])
        noise = np.array([row["noise"] for row in rows])
        names = tuple(row["name"] for row in rows)
        return Sensitivity(names, np.array(table["timesteps"]), np.array(table["signal"]), noise)
    except (ArtifactError, KeyError):
        return None


def tabulate(
    coded: Coded, found: Sensitivity, kept: Sequence[int], got: float, settings: SensitivitySettings
) -> dict[str, Any]:
    """The content of sensitivity.json: layers by rank, what was left out, the ends of the network, the proposal."""
    macs = {layer.name: layer.macs or 0 for layer in coded.found}
    snr, snr_t, whole = found.snr, found.snr_t, max(sum(macs.values()), 1)
    rows = [
        {
            "name": found.layers[layer],
            "order": layer,
            "snr": snr[layer],
            "worst_timestep": found.timesteps[snr_t[layer].argmin()],
            "worst_snr": snr_t[layer].min(),
            "macs": macs[found.layers[layer]] / whole,
            "noise": found.noise[layer],
        }
        for layer in found.ranking.tolist()
    ]
    names = [found.layers[layer] for layer in kept]
    rules = [
        Rule(escape(n), "float", "float", f"sensitivity: {snr[i]:.1f} dB alone")
        for n, i in zip(names, kept, strict=True)
    ]
    return {
        "target": coded.target.name,
        "weight": coded.rule.weight,
        "activation": coded.rule.activation,
        "records": len(coded.drawn.t),
        "timesteps": found.timesteps,
        "signal": found.signal,
        "layers": rows,
        "left_out": [layer.name for layer in coded.found if layer.name not in coded.codings],
        "ends": ranks(found, at_an_end),
        "ends_are_sensitive": ends_are_sensitive(found),
        "proposal": {
            "keep": None if settings.snr else settings.keep,
            "budget": settings.snr or None,
            "kept": names,
            "macs": sum(macs[name] for name in names) / whole,
            "predicted": predicted(found, kept),
            "measured": got,
            "rules": [asdict(rule) for rule in (*rules, coded.rule)],
        },
    }


def at_an_end(name: str) -> bool:
    """Whether a layer reads an input of the network, or writes its output."""
    return name in ("conv_in", "conv_out") or name.startswith(("time_embedding.", "class_embedding", "add_embedding."))


def describe(table: Mapping[str, Any]) -> str:
    """sensitivity.json in words: the table, the paper's claim, and the proposal as TOML to paste into a recipe."""
    return "\n".join((*table_lines(table), "", *claim_lines(table), "", *proposal_lines(table["proposal"])))


def table_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """The worst layers."""
    rows = table["layers"][:ROWS]
    yield f"each of {len(table['layers'])} layers alone in {table['weight']} weights, {table['activation']} inputs"
    yield f"{table['records']} records, both branches, on the grids of {table['target']}"
    wide = max(len(row["name"]) for row in rows)
    yield f"{'rank':>4}  {'layer':<{wide}}  {'SNR':>8}  {'worst at t':>16}  {'of MACs':>7}"
    for rank, row in enumerate(rows, 1):
        worst = f"{row['worst_snr']:.1f} dB at {row['worst_timestep']}"
        yield f"{rank:>4}  {row['name']:<{wide}}  {row['snr']:>5.1f} dB  {worst:>16}  {row['macs']:>7.2%}"
    if more := len(table["layers"]) - len(rows):
        yield f"      and {more} more, the last at {table['layers'][-1]['snr']:.1f} dB"
    if left := table["left_out"]:
        yield f"      not measured, since the target keeps them float: {', '.join(left)}"


def claim_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Where the ends of the network stand, and whether the paper's claim holds."""
    count, by_name = len(table["layers"]), {row["name"]: row for row in table["layers"]}
    yield "PTQ4ADM, Figure 3 and section 6.2: the first and the last layers are the sensitive ones"
    for name, rank in table["ends"].items():
        yield f"  {name}: rank {rank} of {count}, {by_name[name]['snr']:.1f} dB"
    verdict = {True: "holds here", False: "does not hold here", None: "cannot be said: one of them was not measured"}
    yield f"  conv_in and conv_out among the worst tenth: {verdict[table['ends_are_sensitive']]}"


def proposal_lines(proposal: Mapping[str, Any]) -> Iterator[str]:
    """The proposal, its check, and its rules."""
    yield f"# {spoken_check(proposal)}; {proposal['macs']:.1%} of the MACs stay float"
    if (budget := proposal["budget"]) and proposal["measured"] < budget:
        yield f"# misses {budget:.1f} dB: errors are not independent; ask for {2 * budget - proposal['measured']:.1f}"
    for rule in proposal["rules"]:
        yield "[[export.rules]]"
        yield from (f'{key} = "{rule[key]}"' for key in ("match", "weight", "activation", "reason"))


def spoken_check(proposal: Mapping[str, Any]) -> str:
    """What was kept, and what that gives."""
    return (
        f"{len(proposal['kept'])} kept float, the others together: predicted {proposal['predicted']:.1f} dB, "
        f"measured {proposal['measured']:.1f} dB"
    )
