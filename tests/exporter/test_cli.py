import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quaver.calib.fanout import Fanout
from quaver.exporter import cli
from quaver.exporter.chain import Stage
from quaver.exporter.stages import STAGES
from quaver.exporter.verbs import looks, recipe
from quaver.runtime.artifact import Stamp, save_json, save_lines, save_tensors
from quaver.runtime.errors import ArtifactError

pytestmark = pytest.mark.usefixtures("logging_as_before")


def run(*argv):
    return subprocess.run(
        [sys.executable, "-m", "quaver.exporter.cli", *argv], capture_output=True, text=True, check=False
    )


def status(capsys, *argv):
    """Exit status, stdout and stderr of a command line run in this process."""
    try:
        code = cli.main(list(argv))
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu", "x.toml"], r"unknown verb 'rnu'; did you mean 'run'?"),
        (["exprot", "x.toml"], r"unknown verb 'exprot'; did you mean 'export'?"),
        ([], "required: VERB"),
        (["run"], "required: RECIPE"),
        (["generate", "b", "--prompt", "x", "--seed", "one"], "'one' is no seed: write 3, or 0-7"),
        (["generate", "b", "--prompt", "x", "--seeds", "7-0"], "'7-0' is no seed"),
        (["generate", "b", "--prompt", "x", "--seeds", "0-4294967295"], "up to 100,000 of them"),
        (["generate", "b", "--prompt", "x", "--row", "1"], "--row: not allowed with argument --prompt"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_right(capsys, argv, message):
    code, out, err = status(capsys, *argv)
    assert (code, out) == (2, "") and message in err


def test_a_model_that_is_conditioned_must_be_told_what_to_draw(capsys):
    code, out, err = status(capsys, "generate", "b")
    assert (code, out) == (1, "") and "what to draw of b: one of the arguments --prompt --prompts --row is req" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "nothing.json"], "nothing.json does not exist"),
        (["run", "r.toml", "--workers", "0"], "--workers is 0, expected 1 or more"),
        (["generate", "no/bundle", "--prompt", "x"], "no bundle at no/bundle: 'quaver run"),
        (["generate", "b", "--prompt", " \n"], "prompt 1 is empty"),
        (["generate", "b", "--prompt", "x" * 30_000], "prompt 1 has 30000 characters, expected at most 20000"),
        (["generate", "b", "--prompt", "x", "--seed", "-1"], "seed -1 is out of range"),
        (["generate", "b", "--prompt", "x", "--batch", "0"], "batch is 0, expected 1 or more"),
        (["generate", "b", "--prompts", "none.txt"], "cannot read none.txt (No such file or directory): --prompts"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_exits_with_1(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = status(capsys, *argv)
    assert (code, out) == (1, "")
    assert err.startswith("quaver: ") and message in err and err.count("\n") == 1


def test_debug_shows_the_traceback_before_the_line(capsys):
    code, _, err = status(capsys, "show", "nothing.json", "--debug")
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("quaver: nothing.json")


@pytest.mark.parametrize(
    ("error", "left", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: nothing is lost, and the same command goes on from here"),
        (KeyboardInterrupt("interrupted: 2 of 3"), 130, "quaver: interrupted: 2 of 3\n"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), 1, "cannot write /x/y: the disk is full"),
    ],
)
def test_what_happens_to_the_machine_is_one_line_too(capsys, monkeypatch, error, left, message):
    def verb(arguments):
        raise error

    monkeypatch.setattr(looks, "do_doctor", verb)
    code, out, err = status(capsys, "doctor")
    assert (code, out) == (left, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), ZeroDivisionError()])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def verb(arguments):
        raise error

    monkeypatch.setattr(looks, "do_doctor", verb)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_stdout_is_the_written_paths_and_nothing_else(capsys, monkeypatch, tmp_path):
    def stage(path, *, until, force, overrides, out, progress, fanout):
        progress.say("working")
        assert fanout == Fanout(workers=4)
        assert (until, force, overrides) == ("ranges", "trace", ["a.b=1", "c.d=2"])
        return [tmp_path / "report.json", tmp_path / "report.html"]

    monkeypatch.setattr(recipe, "run_recipe", stage)
    options = "--until ranges --force trace --set a.b=1 --set c.d=2 --workers 4"
    argv = ["run", "r.toml", *options.split()]
    code, out, err = status(capsys, *argv)
    assert code == 0 and err == "working\n"
    assert out == f"{tmp_path / 'report.json'}\n{tmp_path / 'report.html'}\n"
    assert status(capsys, *argv, "--quiet")[2] == ""


def test_every_stage_is_a_verb_and_one_that_wrote_nothing_prints_nothing(capsys, monkeypatch):
    called = []
    monkeypatch.setattr(recipe, "run_verb", lambda path, name, **options: called.append(name) or [])
    for stage in STAGES:
        assert status(capsys, stage.name, "r.toml")[:2] == (0, "")
    assert called == [stage.name for stage in STAGES] and all(isinstance(stage, Stage) for stage in STAGES)


def test_stats_says_which_other_sampling_it_is_to_fit(capsys, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(
        recipe, "run_verb", lambda path, name, **options: said.append(options["sampling"]) or [tmp_path]
    )
    options = ["--steps", "50", "--eta", "1", "--sampler", "ddim", "--guidance", "3"]
    assert status(capsys, "stats", "r.toml", *options)[:2] == (0, f"{tmp_path}\n")
    assert status(capsys, "stats", "r.toml", "--eta", "0")[0] == 0
    status(capsys, "validate", "r.toml")
    nothing = dict.fromkeys(("sampler", "steps", "eta", "guidance"))
    assert said == [{"sampler": "ddim", "steps": 50, "eta": 1.0, "guidance": 3.0}, {**nothing, "eta": 0.0}, None]


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ([], []),
        (["--keep", "5%"], ["sensitivity.keep=5", "sensitivity.snr=0"]),
        (["--snr", "35", "--weight", "int4"], ["sensitivity.snr=35.0", "sensitivity.weight=int4"]),
    ],
)
def test_sensitivity_turns_its_options_into_settings_and_prints_what_was_found(
    capsys, monkeypatch, tmp_path, options, overrides
):
    def analyse(path, name, *, overrides, **others):
        seen.append((name, overrides))
        return [save_json(tmp_path / "sensitivity.json", {}, Stamp("sensitivity"))]

    seen = []
    monkeypatch.setattr(recipe, "run_verb", analyse)
    monkeypatch.setattr("quaver.exporter.proposal.describe", lambda table: "the table")
    code, out, _ = status(capsys, "sensitivity", "r.toml", *options)
    assert (code, seen) == (0, [("sensitivity", overrides)]) and out.startswith("the table\n")
    assert status(capsys, "sensitivity", "r.toml", "--keep", "5%", "--snr", "3")[0] == 2


def asked(monkeypatch):
    """What `quaver generate` asks for, instead of making it."""
    seen = {}

    def note(*given, **named):
        seen.update(named, given=given)
        named["on_file"](Path("a.wav"))

    monkeypatch.setattr("quaver.runtime.clips.generate_to_files", note)
    return seen


def test_generate_passes_everything_on(capsys, monkeypatch):
    seen = asked(monkeypatch)
    options = "--seed 3 --sampler euler --steps 5 --guidance 2 --eta 1 --correct d2-stochastic --engine float --batch 2"
    options += " --threads 3 --provider cuda"
    argv = ["generate", "b", *options.split(), "--interpolate-stats", "--missing", "--preview-every", "7", "--prompt"]
    assert status(capsys, *argv, "A soft, low cello note!")[:2] == (0, "a.wav\n")
    assert seen.pop("given") == (Path("b"), ["A soft, low cello note!"], [3], None)
    del seen["progress"], seen["on_file"]
    assert seen == {
        "engine_file": "float", "sampler": "euler", "steps": 5, "guidance": 2.0, "eta": 1.0, "batch": 2,
        "correct": "d2-stochastic", "interpolate": True, "missing": True, "preview_every": 7,
        "threads": 3, "provider": "cuda",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "pairs", "out"),
    [
        ("--prompt a --prompt b --seeds 0-2", [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)], None),
        ("--prompt a --seed 4 --seed 2", [("a", 4), ("a", 2)], None),
        ("--prompts p.txt --out x", [("one note", 0), ("two", 0)], Path("x")),
        ("--row 5 --row 0", [("row 5", 0), ("row 0", 0)], None),
    ],
)
def test_every_prompt_is_drawn_with_every_seed(capsys, monkeypatch, tmp_path, options, pairs, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("one note\n\ntwo\n")
    seen = asked(monkeypatch)
    assert status(capsys, "generate", "b", *options.split())[0] == 0
    _, prompts, seeds, place = seen["given"]
    assert ([*zip(prompts, seeds, strict=True)], place) == (pairs, out)


@pytest.mark.parametrize(("rows", "code"), [({}, 1), ({"rows": 8}, 0)])
def test_a_row_is_no_prompt_of_a_model_that_reads_text(capsys, monkeypatch, tmp_path, rows, code):
    card = {"family": "audioldm", "latent_shape": [1, 2, 2], "sample_rate": 16_000, "components": {}, **rows}
    save_json(tmp_path / "bundle.json", card, Stamp("trace"))
    seen = asked(monkeypatch)
    assert status(capsys, "generate", str(tmp_path), "--row", "3")[0] == code
    assert bool(seen) == (code == 0)


def test_a_reader_that_stops_reading_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "quaver.exporter.cli", "doctor"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_starts_without_what_is_slow_to_import():
    code = "import sys, quaver.exporter.cli; print(*{name.split('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    installed = importlib.metadata.packages_distributions()
    foreign = {name for name in names if name in installed} - set(sys.stdlib_module_names)
    assert "numpy" in foreign
    assert foreign <= {"numpy", "safetensors", "array_api_compat", "quaver", "_distutils_hack"}


def test_the_script_says_its_version():
    assert run("--version").stdout.startswith("quaver ")


def test_show_tells_kind_origin_and_content(capsys, tmp_path):
    stamp = Stamp("ranges", settings="sha256:" + "a" * 64, inputs={"unet.float.onnx": "sha256:" + "b" * 64})
    path = save_tensors(
        tmp_path / "ranges.safetensors", {"amin": np.zeros(3, np.float32)}, stamp, meta={"edges": ["x"]}
    )
    out = status(capsys, "show", str(path))[1]
    assert "kind ranges, schema 1, settings aaaaaaaaaaaa\n" in out
    assert "made from unet.float.onnx bbbbbbbbbbbb\n" in out
    assert "  amin  F32 [3]\n" in out and '  edges = ["x"]\n' in out


def test_show_counts_rows_and_lists_a_bundle(capsys, tmp_path):
    save_lines(tmp_path / "prompts.jsonl", [{"id": i} for i in range(7)], Stamp("prompts"))
    save_json(tmp_path / "bundle.json", {"family": "audioldm"}, Stamp("trace"))
    (tmp_path / ".lock").write_text("1")
    assert "7 rows" in status(capsys, "show", str(tmp_path / "prompts.jsonl"))[1]
    assert '  family = "audioldm"' in status(capsys, "show", str(tmp_path / "bundle.json"))[1]
    listed = status(capsys, "show", str(tmp_path))[1].splitlines()
    assert [line.split()[1:] for line in listed] == [["trace", "bundle.json"], ["prompts", "prompts.jsonl"]]


def test_show_lists_files_that_are_not_quavers_among_the_others(capsys, tmp_path):
    save_json(tmp_path / "bundle.json", {"family": "audioldm"}, Stamp("trace"))
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    listed = status(capsys, "show", str(tmp_path))[1].splitlines()
    assert [line.split()[1:] for line in listed] == [["-", "a.safetensors"], ["trace", "bundle.json"]]
    assert "no stamp\n  w  F32 [2]\n" in status(capsys, "show", str(tmp_path / "a.safetensors"))[1]


def test_show_of_a_damaged_file_is_one_line(capsys, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    code, out, err = status(capsys, "show", str(tmp_path / "a.safetensors"))
    assert (code, out) == (1, "") and "cannot be shown" in err and err.count("\n") == 1


def test_doctor_names_the_versions_the_extras_and_the_processor(capsys):
    code, out, _ = status(capsys, "doctor")
    assert code == 0
    first = [line.split()[0] for line in out.splitlines()]
    assert first[:3] == ["quaver", "python", "base"] and first[-5:] == ["processor", "int8", "plans", "plans", "gpu"]
    assert {"calib", "export", "trt-rtx", "trt", "metrics", "llm", "ray", "dev"} <= set(first)
    assert f"numpy {np.__version__}" in out


@pytest.mark.parametrize(("isa", "words"), [("avx2", "saturating pairs"), ("arm", "exact dot products")])
def test_doctor_says_how_the_exporter_codes_for_this_machine(monkeypatch, isa, words):
    from quaver.exporter import doctor

    monkeypatch.setattr(doctor, "detect_isa", lambda: isa)
    assert words in [*doctor.processor_lines()][-1]


def test_a_missing_extra_is_answered_with_what_to_type(monkeypatch):
    from quaver.exporter import doctor

    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "torch" else "1")
    assert any(line.endswith("missing torch: pip install 'quaver[export]'") for line in doctor.extra_lines())


def test_errors_of_quaver_are_shown_as_they_are():
    assert cli.explain(ArtifactError("as it is")) == "as it is"


def test_several_engines_are_judged_together_in_a_folder_beside_the_first(capsys, monkeypatch, tmp_path):
    from quaver.runtime.measure import joint

    def compare(sources, out, *, overrides, progress):
        assert [path.name for path in sources] == ["a", "b.toml"] and overrides == ["validate.clips=1"]
        save_json(out / "report.json", {"references": [], "engines": []}, Stamp("validate"))
        return [out / "report.json", out / "report.html"]

    monkeypatch.setattr(joint, "compare", compare)
    monkeypatch.setattr("quaver.runtime.measure.table.method_rows", lambda report: [{"Method": "float"}])
    argv = ["validate", str(tmp_path / "a"), str(tmp_path / "b.toml"), "--set", "validate.clips=1"]
    code, out, _ = status(capsys, *argv, "--csv", str(tmp_path / "t.csv"), "--markdown", str(tmp_path / "t.md"))
    assert code == 0
    names = ("compare/report.json", "compare/report.html", "t.csv", "t.md")
    assert out.splitlines() == [str(tmp_path / name) for name in names]
    assert (tmp_path / "t.csv").read_text() == "Method\nfloat\n"


def test_bench_prints_its_table_or_its_figures(capsys, monkeypatch, tmp_path):
    from quaver.runtime.measure import bench, joint

    monkeypatch.setattr(joint, "find_subjects", lambda sources: list(sources))
    monkeypatch.setattr(bench, "bench", lambda subjects, **options: {"engines": [len(subjects), options["batches"]]})
    monkeypatch.setattr(bench, "describe", lambda report: "a table")
    monkeypatch.setattr(bench, "bench_rows", lambda report: [{"Engine": "a"}])
    assert status(capsys, "bench", "a", "b", "--csv", str(tmp_path / "t.csv"))[:2] == (0, "a table\n")
    assert (tmp_path / "t.csv").read_text() == "Engine\na\n"
    code, out, _ = status(capsys, "bench", "a", "--json", "--batches", "4")
    assert code == 0 and '"engines": [\n  1,' in out and "4" in out
