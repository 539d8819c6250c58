"""What the files of a bundle say of its engine: where it computes in which format, and what it was calibrated on.

width[e, t]  = amax[e, t] - amin[e, t]           of edge e at timestep t
relative     = width[e, t] / max_t width[e, t]   1 where an edge is widest; one scale serves all t
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quaver.runtime.artifact import load_json, load_lines, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure.bops import bit_operations, float_operations

Rows = Sequence[Mapping[str, Any]]
VARYING = 12  # edges whose ranges are listed
FLOATS = {"float", "float16", ""}


def site_facts(bundle: Bundle, target: str) -> dict[str, Any]:
    """Kernel types of an engine with their share of the work, and every layer that stayed float, with its reason.

    Raises: ArtifactError when the list of sites is damaged.
    """
    path = bundle.sites(target)
    if not path.exists():
        return {"missing": f"No {path.name} here: 'quaver export RECIPE' writes it."}
    found = load_json(path, "export")
    layers, sites = {row["name"]: row for row in found["layers"]}, found["sites"]
    total = max(sum(row["macs"] or 0 for row in layers.values()), 1)
    share = {name: (row["macs"] or 0) / total for name, row in layers.items()}
    reasons = {site["layer"]: site["reason"] for site in sites if site["role"] == "layer"}
    types: dict[str, list[str]] = {}
    for name, kind in kernel_types(layers, sites).items():
        types.setdefault(kind, []).append(name)
    kinds = [
        {"type": kind, "layers": len(names), "macs": sum(share[name] for name in names)}
        for kind, names in types.items()
    ]
    kept = [
        {"layer": name, "op": layers[name]["op"], "macs": share[name], "reason": reason}
        for name, reason in reasons.items()
        if name in layers
    ]
    return {
        "layers": found["coverage"]["layers"],
        "of_layers": found["coverage"]["of_layers"],
        "by_macs": found["coverage"]["by_macs"],
        "bits": bits(sites),
        "bops": {
            "stored": bit_operations(found),
            "kernels": bit_operations(found, stored=False),
            "float": float_operations(found),
        },
        "kernels": sorted(kinds, key=lambda row: -row["macs"]),
        "kept": kept,
        "products": dict(Counter(site["format"] for site in sites if site["role"] == "product")),
    }


def kernel_types(layers: Mapping[str, Mapping[str, Any]], sites: Rows) -> dict[str, str]:
    """Of every layer what its kernel multiplies: "Conv uint8 × int8", "Gemm float32 × int8", "MatMul float32"."""
    formats: dict[str, dict[str, str]] = {}
    floats: dict[str, str] = {}
    for site in sites:
        formats.setdefault(site["layer"], {})[site["role"]] = site["format"]
        floats.setdefault(site["layer"], site.get("compute", "float32"))
    found = {}
    for name, layer in layers.items():
        own, plain = formats.get(name, {}), floats.get(name, "float32")
        weight, given = own.get("weight", plain), own.get("input", own.get("part", plain))
        pair = plain if weight in FLOATS | {plain} and given == plain else f"{given} × {weight}"
        found[name] = f"{layer['op']} {pair}"
    return found


def bits(sites: Rows) -> str:
    """Bits of weights and activations as papers write them, "W8A8": the fewest that most coded layers have."""
    width = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "float8": 8, "uint16": 16, "int16": 16, "float16": 16}

    def most(roles: set[str]) -> int:
        seen = Counter(width.get(site["format"], 32) for site in sites if site["role"] in roles)
        return seen.most_common(1)[0][0] if seen else 32

    return f"W{most({'weight'})}A{most({'input', 'part'})}"


def prompt_facts(bundle: Bundle) -> dict[str, Any]:
    """How many prompts of each split name each aspect of sound, and how much of them says the same.

    Raises: ArtifactError when the prompts are missing or damaged.
    """
    rows = load_lines(bundle.prompts, "prompts")
    splits = Counter(str(row.get("split")) for row in rows)
    calibrated = [row for row in rows if row.get("split") == "calib" and "coverage" in row]
    if not calibrated:
        return {"missing": "These prompts carry no coverage: rows of samples stand in for text, or none calibrates."}
    counts = {
        split: Counter(name for row in rows if row.get("split") == split for name in row.get("coverage", ()))
        for split in ("calib", "validate")
    }
    vectors = Counter(tuple(sorted(row["coverage"])) for row in calibrated)
    n = len(calibrated)
    return {
        "splits": dict(splits),
        "aspects": [
            {"name": name, **{split: found[name] for split, found in counts.items()}}
            for name, _ in (counts["calib"] + counts["validate"]).most_common()
        ],
        "uncovered": vectors[()],
        "distinct": len(vectors),
        "redundancy": sum(c * (c - 1) for c in vectors.values()) / max(n * (n - 1), 1),
    }


def range_facts(bundle: Bundle) -> dict[str, Any]:
    """How the ranges of edges move over the timesteps: over all edges, and of those that move most.

    Raises: ArtifactError when the ranges are damaged.
    """
    if not bundle.ranges.exists():
        return {"missing": f"No {bundle.ranges.name} here: 'quaver ranges RECIPE' writes it."}
    tensors, meta = load_tensors(bundle.ranges, "ranges")
    if not {"amin_t", "amax_t", "timesteps"} <= tensors.keys():
        return {"missing": "These ranges are not kept per timestep: they came from another tool's checkpoint."}
    order = np.argsort(-tensors["timesteps"])  # from noise to sound
    amin, amax = (np.asarray(tensors[name], np.float64)[:, order] for name in ("amin_t", "amax_t"))
    width = amax - amin
    seen = np.flatnonzero(np.isfinite(width).all(axis=1) & (width.min(axis=1, initial=np.inf) > 0))
    relative = width[seen] / width[seen].max(axis=1, keepdims=True)
    if not len(seen):
        return {"missing": "No edge has a finite range at every timestep."}
    widest = seen[np.argsort(relative.min(axis=1), kind="stable")][:VARYING]
    return {
        "edges": len(meta["edges"]),
        "timesteps": tensors["timesteps"][order].tolist(),
        **{name: np.quantile(relative, q, axis=0).tolist() for name, q in (("low", 0.1), ("mid", 0.5), ("high", 0.9))},
        "varying": [
            {
                "edge": meta["edges"][e],
                "amin": amin[e].tolist(),
                "amax": amax[e].tolist(),
                "ratio": float(width[e].max() / width[e].min()),
            }
            for e in widest
        ],
    }
