import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from quaver.exporter.chain import Stage, changed, find, open_run, run_all, run_one
from quaver.exporter.memory import Need
from quaver.runtime.artifact import Stamp, load_json, read_stamp, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.progress import quiet


@dataclass(frozen=True)
class One:
    text: str = "hello"


@dataclass(frozen=True)
class Two:
    factor: int = 2


@dataclass(frozen=True)
class Fake:
    one: One = field(default_factory=One)
    two: Two = field(default_factory=Two)


CALLS: list[str] = []


def write_text(bundle, settings, *, stamp, progress):
    CALLS.append("text")
    return save_json(bundle.root / "text.json", {"text": settings.text}, stamp)


def measure(bundle, one, two, *, stamp, progress):
    CALLS.append("length")
    length = len(load_json(bundle.root / "text.json", "text")["text"]) * two.factor
    (bundle.root / "length.html").write_text("<p>")
    return save_json(bundle.root / "length.json", {"length": length}, stamp)


def publish(bundle, *, stamp, progress):
    CALLS.append("page")
    return save_json(bundle.root / "page.json", load_json(bundle.root / "length.json", "length"), stamp)


def left_out(bundle, *settings, stamp, progress):
    CALLS.append("extra")


def fails(bundle, *, stamp, progress):
    raise ArtifactError("the disk is full")


def files(*names):
    return lambda bundle, recipe: [bundle.root / name for name in names]


CHAIN = (
    Stage("text", "", "FAKES:write_text", ("one",), files(), files("text.json")),
    Stage(
        "length", "", "FAKES:measure", ("one", "two"), files("text.json"), files("length.json"), files("length.html")
    ),
    Stage("extra", "", "FAKES:left_out", (), files("text.json"), files("extra.json"), optional=True),
    Stage("page", "", "FAKES:publish", (), files("length.json"), files("page.json")),
)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open a run of the fake chain on one bundle, with a recipe of one's choice."""
    monkeypatch.setitem(sys.modules, "FAKES", sys.modules[__name__])
    CALLS.clear()

    @contextmanager
    def start(recipe=None, chain=CHAIN):
        with open_run(Path("r.toml"), recipe or Fake(), Bundle(tmp_path / "bundle"), chain, progress=quiet()) as run:
            CALLS.clear()
            yield run

    return start


def calls(opened, recipe=None, **how):
    with opened(recipe) as run:
        run_all(run, **how)
    return CALLS[:]


def test_a_first_run_calls_every_stage_in_order_and_a_second_none_but_the_one_left_out(opened):
    assert calls(opened) == ["text", "length", "extra", "page"]
    assert calls(opened) == ["extra"]


def test_a_changed_setting_runs_the_stages_that_read_it_and_those_behind_them(opened):
    calls(opened)
    assert calls(opened, Fake(two=Two(3))) == ["length", "extra", "page"]


def test_a_stage_whose_files_stay_the_same_ends_it_there(opened, tmp_path):
    calls(opened)
    (tmp_path / "bundle" / "text.json").unlink()
    assert calls(opened) == ["text", "extra"]


def test_an_edited_file_makes_the_stages_behind_it_stale(opened, tmp_path):
    calls(opened)
    path = tmp_path / "bundle" / "text.json"
    save_json(path, {"text": "edited"}, read_stamp(path))
    assert calls(opened) == ["length", "extra", "page"]
    assert load_json(tmp_path / "bundle" / "page.json", "page")["length"] == 12


def test_a_missing_file_beside_an_artifact_makes_its_stage_stale(opened, tmp_path):
    calls(opened)
    (tmp_path / "bundle" / "length.html").unlink()
    assert calls(opened) == ["length", "extra"]


def test_until_stops_there_and_force_runs_what_is_current(opened):
    assert calls(opened, until="length") == ["text", "length"]
    assert calls(opened, until="length", force="text") == ["text"]


@pytest.mark.parametrize("how", [{"until": "pag"}, {"force": "pag"}])
def test_a_stage_that_is_none_is_answered_with_the_nearest(opened, how):
    with pytest.raises(RecipeError, match=r"unknown stage 'pag'; did you mean 'page'\?"):
        calls(opened, **how)


def test_a_stage_that_needs_more_memory_than_it_may_take_is_refused_before_it_starts(opened):
    with opened() as run:
        short = replace(run, needs={"length": lambda bundle, recipe, fanout: Need(3 * 10**9)}, memory=10**9)
        with pytest.raises(RecipeError, match=r"length needs about 3\.0 GB .* 1\.0 GB are free: .*machine\.memory=3$"):
            run_all(short)
        assert CALLS == ["text"]
        run_all(replace(short, memory=3 * 10**9))
        assert CALLS == ["text", "length", "extra", "page"]


def test_a_stage_whose_need_is_not_known_runs(opened):
    with opened() as run:
        run_all(replace(run, needs={"length": lambda bundle, recipe, fanout: None}, memory=1))
    assert CALLS == ["text", "length", "extra", "page"]


def test_the_paths_returned_are_those_of_the_last_stage(opened, tmp_path):
    with opened() as run:
        assert run_all(run, until="length") == [
            tmp_path / "bundle" / "length.json",
            tmp_path / "bundle" / "length.html",
        ]


def test_the_bundle_keeps_the_resolved_recipe(opened, tmp_path):
    calls(opened, Fake(two=Two(3)))
    assert (tmp_path / "bundle" / "recipe.toml").read_text() == '[one]\ntext = "hello"\n\n[two]\nfactor = 3\n'


def test_one_stage_alone_refuses_what_is_missing_with_the_command_to_type(opened):
    with opened() as run, pytest.raises(ArtifactError, match=r"page needs text.*quaver run r.toml --until text"):
        run_one(run, "page")


def test_one_stage_alone_refuses_what_is_out_of_date_with_the_command_to_type(opened):
    calls(opened)
    message = r"page needs length, which is out of date \(settings changed\): quaver run r.toml --until length"
    with opened(Fake(two=Two(3))) as run, pytest.raises(ArtifactError, match=message):
        run_one(run, "page")


def test_the_command_to_type_has_the_settings_that_were_given(opened):
    with opened() as run, pytest.raises(ArtifactError, match=r"--until text --set 'one\.text=a b' --out d$"):
        run_one(replace(run, options=("--set", "one.text=a b", "--out", "d")), "page")


def test_a_stage_that_was_refused_leaves_the_bundles_settings_alone(opened, tmp_path):
    calls(opened)
    before = (tmp_path / "bundle" / "recipe.toml").read_text()
    with opened(Fake(two=Two(3))) as run, pytest.raises(ArtifactError):
        run_one(run, "page")
    assert (tmp_path / "bundle" / "recipe.toml").read_text() == before
    with opened(Fake(two=Two(3))) as run:
        run_one(run, "length")
    assert "factor = 3" in (tmp_path / "bundle" / "recipe.toml").read_text()


def test_one_stage_alone_runs_although_it_is_current(opened):
    calls(opened)
    with opened() as run:
        run_one(run, "length")
    assert CALLS == ["length"]


def test_what_a_stage_raises_comes_through_and_the_next_run_goes_on_from_it(opened):
    broken = tuple(replace(stage, run="FAKES:fails") if stage.name == "page" else stage for stage in CHAIN)
    with opened(chain=broken) as run, pytest.raises(ArtifactError, match="the disk is full"):
        run_all(run)
    assert calls(opened) == ["extra", "page"]


def test_a_stage_that_leaves_its_file_without_the_stamp_is_not_believed(opened):
    silent = (replace(CHAIN[0], run="FAKES:left_out"),)
    with opened(chain=silent) as run, pytest.raises(ArtifactError, match=r"text ended and is still out of date"):
        run_all(run)


def test_a_second_process_is_told_who_holds_the_bundle(opened, tmp_path):
    code = (
        "import sys; from pathlib import Path; from quaver.exporter.lock import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    with opened() as run:
        second = [sys.executable, "-c", code, str(run.bundle.lock)]
        done = subprocess.run(second, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert f"is being written by process {os.getpid()}: wait for it, or add --out DIR" in last
    assert subprocess.run(second, check=False).returncode == 0


def test_a_killed_run_drops_its_lock_and_its_remainder_and_the_next_goes_on(opened, tmp_path):
    calls(opened, until="text")
    bundle = tmp_path / "bundle"
    code = (
        "import sys, time; from pathlib import Path; from quaver.exporter.lock import locked\n"
        "from quaver.runtime.artifact import atomic\n"
        "with locked(Path(sys.argv[1]) / '.lock'), atomic(Path(sys.argv[1]) / 'length.json') as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(bundle)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ArtifactError, match=f"process {other.pid}"):
            calls(opened)
        other.send_signal(signal.SIGKILL)
    assert calls(opened) == ["length", "extra", "page"]
    assert not list(bundle.glob(".tmp-*"))


def test_unfinished_work_goes_when_a_stage_ends_and_when_a_killed_one_is_found_complete(opened, tmp_path):
    shards = Bundle(tmp_path / "bundle").shards("length")
    for expected in (["text", "length", "extra", "page"], ["extra"]):
        shards.mkdir(parents=True)
        (shards / "000000.safetensors").write_text("of a run that was killed before it could remove it")
        assert calls(opened) == expected
        assert not shards.parent.exists()


def test_a_bundle_in_the_way_of_a_file_is_one_line(tmp_path):
    (tmp_path / "bundle").write_text("a file")
    with (
        pytest.raises(ArtifactError, match="cannot write"),
        open_run(Path("r.toml"), Fake(), Bundle(tmp_path / "bundle"), CHAIN, progress=quiet()),
    ):
        pass


def test_what_changed_is_said_in_words():
    old = Stamp("k", settings="a", inputs={"x": "1", "y": "1"})
    assert changed(old, old, "f") is None
    assert changed(old, replace(old, settings="b"), "f") == "settings changed"
    assert changed(old, replace(old, inputs={"x": "2", "z": "1"}), "f") == "x, y, z changed"
    assert changed(None, old, "f") == "f is damaged, or carries no stamp"


def test_files_of_one_name_in_other_folders_keep_a_digest_each(opened, tmp_path):
    outside = [tmp_path / folder / "w.bin" for folder in ("a", "b")]
    for path in outside:
        path.parent.mkdir()
        path.write_text("weights")
    chain = (replace(CHAIN[0], reads=lambda bundle, recipe: [*outside, outside[0], bundle.root / "w.bin"]),)
    with opened(chain=chain) as run:
        (run.bundle.root / "w.bin").write_text("weights")
        run_all(run)
    assert [*read_stamp(tmp_path / "bundle" / "text.json").inputs] == ["w.bin", "b/w.bin", "bundle/w.bin"]
    for path in (*outside, tmp_path / "bundle" / "w.bin"):
        path.write_text("edited")
        with opened(chain=chain) as run:
            run_all(run)
        assert CALLS == ["text"], path


def test_stages_are_found_by_name():
    assert find(CHAIN, "page").name == "page"
