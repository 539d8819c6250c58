"""What `quaver show` says of error statistics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from quaver.exporter.show import describe
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.error_law import Gaussian, save_stats
from tests.runtime.gaussians import gaussian_stats, joint


def test_simulated_and_deployed_statistics_stand_side_by_side_with_what_laws_took_off(tmp_path: Path) -> None:
    stats, other = gaussian_stats(*joint(0.6)), gaussian_stats(*joint(0.3))
    stats = replace(stats, simulated=Gaussian(other.mean, other.cov))
    meta = {"held_out": {"path": [0.5, 0.25, 0.125]}}
    lines = describe(save_stats(tmp_path / "e.safetensors", stats, Stamp("stats"), meta=meta)).splitlines()
    assert len({len(line) for line in lines[-4:]}) == 1  # one width a column
    names, row = (re.split(r"  +", line.strip()) for line in lines[-4:-2])
    found = dict(zip(names, map(float, row), strict=True))
    assert (found["t"], found["path law"]) == (951, 0.5)
    assert (found["deployed rho^2"], found["simulated rho^2"]) == (0.36, 0.09)


def test_a_bundle_lists_the_samplings_that_its_statistics_are_of(tmp_path: Path) -> None:
    bundle, stats = Bundle(tmp_path), gaussian_stats(*joint(0.6))
    assert stats.binding
    other = replace(stats.binding, sampler="ddim", steps=50, eta=1.0, guidance=7.5)
    for path, bound in ((bundle.error_stats("ort-cpu"), stats.binding), (bundle.error_stats("ort-cpu", other), other)):
        save_stats(path, replace(stats, binding=bound), Stamp("stats"))
    assert [line.split()[-3:] for line in describe(tmp_path).splitlines()] == [
        ["error_stats.ort-cpu.ddim-50-eta1-g7.5.safetensors", "of", "ddim-50-eta1-g7.5"],
        ["error_stats.ort-cpu.safetensors", "of", "ddim-3-g3"],
    ]
