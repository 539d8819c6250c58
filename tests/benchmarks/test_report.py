from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from quaver.runtime.artifact import Stamp, save_json


def test_report_says_how_large_the_page_is_and_whether_it_has_the_size_that_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    row = {"name": "none", "latent_error": {"value": 0.05}}
    engine = {"name": "a", "verdict": {"word": "Ship"}, "corrections": [row], "call": {"speedup": {"value": 1.5}}}

    def compare(sources, out, *, overrides):
        assert sources == [Path("a")] and "validate.corrections=['none', 'auto']" in overrides
        assert not (out / "left").exists()
        save_json(out / "report.json", {"engines": [engine], "clips": [{}] * 4}, Stamp("validate"))
        (out / "report.html").write_text("<audio><audio>" + " " * 10_000_000)
        return [out / "report.json", out / "report.html"]

    monkeypatch.setattr(report, "compare", compare)
    (tmp_path / "compare" / "left").mkdir(parents=True)
    report.main(["a", "--corrections", "none", "auto", "--keep", str(tmp_path)])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["figures"]["page bytes"] == 10_000_014 and line["figures"]["players"] == 2
    assert list(line["reached"].values()) == [False, True, False]
