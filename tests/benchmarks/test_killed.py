"""The harness that kills, on a chain of two stages that only sleep."""

import json
import sys

import numpy as np

from benchmarks.killed import differences, disturb, follow, leftovers, plan

CHAIN = """
import sys, time
for stage in ("prompts", "trace"):
    print(f"{stage}: no file", file=sys.stderr, flush=True)
    time.sleep(0.3)
    print(f"{stage}: 0.3 s", file=sys.stderr, flush=True)
"""
COMMAND = [sys.executable, "-c", CHAIN]


def test_a_course_says_what_ended_and_where_it_was_killed():
    alone, killed = follow(COMMAND), follow(COMMAND, "trace", 0.1)
    assert (alone.hit, alone.done, set(alone.seconds)) == ("", {"prompts", "trace"}, {"prompts", "trace"})
    assert (killed.hit, killed.done) == ("trace", {"prompts"})


def test_every_stage_is_hit_and_the_last_run_is_left_alone():
    courses, _ = disturb(COMMAND, {"prompts": 0.3, "trace": 0.3}, 3, np.random.default_rng(0))
    hits = [course.hit for course in courses]
    assert {"prompts", "trace"} <= {*hits} and len(hits) >= 4 and hits[-1] == ""


def test_a_plan_has_every_stage_and_keeps_their_order():
    found = plan(["a", "b", "c"], 20, np.random.default_rng(0))
    assert len(found) == 20 and found == sorted(found) and {*found} == {"a", "b", "c"}


def test_timings_do_not_count_and_bytes_do(tmp_path):
    for name, made, text in (("one", "now", "same"), ("other", "later", "same"), ("third", "now", "else")):
        folder = tmp_path / name
        (folder / ".shards").mkdir(parents=True)
        kept = dict.fromkeys(("sets", "sites", "coverage", "ranges", "sampling", "digests"), 1)
        engine = {"name": name, "corrections": [{"name": "none", "added_s": len(made)}], "call": made, **kept}
        (folder / "report.json").write_text(json.dumps({"made": made, "engines": [engine]}))
        (folder / "ranges.safetensors").write_text(text)
    assert differences(tmp_path / "one", tmp_path / "other") == []
    assert differences(tmp_path / "one", tmp_path / "third") == ["ranges.safetensors"]
    assert leftovers(tmp_path / "one") == [".shards"]
