"""The whole chain on a model of the embedded one's shape, with a tiny random U-Net."""

import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest

from quaver.exporter.chain import changed, find, stale, stamp_now
from quaver.exporter.stages import STAGES, opened, run_recipe, run_verb
from quaver.runtime.artifact import digest_file
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, RecipeError
from quaver.runtime.generate import generate
from quaver.runtime.progress import quiet
from quaver.runtime.sample import varied
from quaver.runtime.session import open_bundle
from tests.exporter.hub_cache import as_snapshot

pytestmark = pytest.mark.slow


def reasons(recipe, *overrides):
    """Why each stage that is not current would run."""
    with opened(recipe, overrides, None, quiet()) as run:
        found = {stage.name: stale(stage, run) for stage in STAGES}
    return {name: reason for name, reason in found.items() if reason}


def test_a_recipe_becomes_a_report_and_everything_it_stands_on(built):
    bundle = built.with_suffix("")
    there = {path.name for path in bundle.rglob("*") if path.is_file()}
    assert there >= {
        "recipe.toml", "bundle.json", "prompts.jsonl", "unet.float.onnx", "text_encoder.onnx", "vae_decoder.onnx",
        "vocoder.onnx", "tokenizer.json", "scheduler_config.json", "moments.safetensors", "records.safetensors",
        "ranges.safetensors", "unet.ort-cpu.onnx", "unet.ort-cpu.sites.json", "error_stats.ort-cpu.safetensors",
        "report.json", "report.html",
    }  # fmt: skip
    assert not [name for name in there if name.startswith(".tmp")]
    assert json.loads((bundle / "report.json").read_text())["trajectories"] == 4


def test_what_was_just_built_is_current(built):
    assert reasons(built) == {}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.bins=8", {"trace"}),
        ("prompts.seed=1", {"prompts"}),
        ("sampling.eta=1.0", {"capture", "stats", "validate"}),
        ("capture.records=9", {"capture"}),
        ("ranges.observer=minmax", {"ranges"}),
        ("export.preset=float", {"export"}),
        ("stats.granularity=tensor", {"stats"}),
        ("validate.clips=0", {"validate"}),
    ],
)
def test_a_changed_setting_is_one_to_the_stages_that_read_it(built, setting, expected):
    assert reasons(built, setting) == dict.fromkeys(expected, "settings changed")


def test_an_edited_prompt_is_noticed_by_every_stage_that_reads_prompts(copied):
    prompts = copied.with_suffix("") / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace('"text": "', '"text": "very ', 1))
    assert reasons(copied) == dict.fromkeys(("capture", "stats", "validate"), "prompts.jsonl changed")


def test_another_model_and_a_lost_component_are_reasons_to_trace(copied, source, tmp_path):
    (copied.with_suffix("") / "vocoder.onnx").unlink()
    assert reasons(copied)["trace"] == "no vocoder.onnx"
    shutil.copytree(source, tmp_path / "model")
    stamps = []
    for note in ("", "touched"):
        (tmp_path / "model" / "note.txt").write_text(note)
        with opened(copied, [f"model.source={tmp_path / 'model'}"], None, quiet()) as run:
            stamps.append(stamp_now(find(STAGES, "trace"), run))
    assert changed(*stamps, "bundle.json") == "model changed"


def test_real_clips_and_networks_that_changed_are_reasons_to_validate(copied, tmp_path):
    clips, network = tmp_path / "clips", tmp_path / "ear.onnx"
    clips.mkdir()
    overrides = [f"validate.reference={clips}", f"validate.networks=['probe', 'onnx:{network}@16000', 'clap:some/id']"]
    stamps = []
    for path in (clips / "a.wav", network, clips / "a.wav"):
        path.write_bytes(path.read_bytes() + b"more" if path.exists() else b"")
        with opened(copied, overrides, None, quiet()) as run:
            stamps.append(stamp_now(find(STAGES, "validate"), run))
    reasons = [changed(before, now, "report.json") for before, now in pairwise(stamps)]
    assert reasons == ["ear.onnx changed", "clips changed"]


def test_other_weights_in_the_caches_of_feature_networks_are_reasons_to_validate(
    copied, tmp_path, hub_home, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pytest.importorskip("torch").hub, "get_dir", lambda: str(tmp_path / "torch"))
    panns, vggish = tmp_path / "panns_data/Cnn14_mAP=0.431.pth", tmp_path / "torch/checkpoints/vggish-10086976.pth"
    (tmp_path / "clap").mkdir()
    (tmp_path / "clap" / "model.safetensors").write_bytes(b"")
    as_snapshot(tmp_path / "clap", "laion/clap-htsat-unfused", hub_home)
    (clap,) = hub_home.rglob("model.safetensors")
    stamps = []
    for path in (None, panns, vggish, clap.resolve()):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"other weights")
        with opened(copied, ["validate.networks=['vggish', 'panns', 'clap']"], None, quiet()) as run:
            stamps.append(stamp_now(find(STAGES, "validate"), run))
    reasons = [changed(before, now, "report.json") for before, now in pairwise(stamps)]
    assert reasons == [f"{path.name} changed" for path in (panns, vggish, clap)]


def test_one_verb_refuses_a_bundle_that_lacks_what_it_reads(copied):
    (copied.with_suffix("") / "ranges.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"quaver run .*tiny.toml --until ranges"):
        run_verb(copied, "stats", progress=quiet())


def test_statistics_of_another_sampling_lie_beside_the_recipes_own_and_make_nothing_stale(copied):
    bundle, other = Bundle(copied.with_suffix("")), {"steps": 3, "eta": 1.0, "sampler": None}
    before = {path: path.read_bytes() for path in (bundle.recipe, bundle.error_stats("ort-cpu"))}
    with opened(copied, (), None, quiet()) as run:
        sampling = varied(run.recipe.sampling, **other)
        with pytest.raises(ArtifactError, match="is being written by process"):
            run_verb(copied, "stats", sampling=other, progress=quiet())
    assert run_verb(copied, "stats", sampling=other, progress=quiet()) == [bundle.error_stats("ort-cpu", sampling)]
    assert reasons(copied) == {} and {path: path.read_bytes() for path in before} == before
    list(generate(bundle, ["a low note"], [1], steps=3, eta=1.0, correct="auto", decode=False))
    own = run_verb(copied, "stats", sampling=dict.fromkeys(other), progress=quiet())
    assert own == [bundle.error_stats("ort-cpu")] and reasons(copied) == {}
    with pytest.raises(ArtifactError, match=r"needs capture, which is out of date .*--until capture"):
        run_verb(copied, "stats", sampling=other, overrides=["capture.records=9"], progress=quiet())
    with pytest.raises(RecipeError, match=r"sampling\.eta is 1\.0, expected 0: euler"):
        run_verb(copied, "stats", sampling={**other, "sampler": "euler"}, progress=quiet())


def kill_in(recipe, stage, *overrides):
    """Start a run that is asked for a stage, and kill it soon after the stage began."""
    argv = [
        sys.executable,
        "-m",
        "quaver.exporter.cli",
        "run",
        str(recipe),
        "--force",
        stage,
        *(f"--set={o}" for o in overrides),
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        while f"{stage}: asked for" not in (line := child.stderr.readline()):
            assert line, "the run ended before its stage"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.1)
        child.send_signal(signal.SIGKILL)


def test_a_killed_build_loses_nothing_and_the_next_run_makes_the_plan(copied):
    pytest.importorskip("tensorrt_rtx")
    copied.write_text(copied.read_text().replace('["ort-cpu"]', '["ort-cpu", "tensorrt-rtx"]'))
    bundle, one = copied.with_suffix(""), ["build.compute_capabilities=['SM86']"]
    run_recipe(copied, until="export", overrides=one, progress=quiet())
    before = digest_file(bundle / "unet.tensorrt-rtx.onnx")
    kill_in(copied, "build", *one)
    run_recipe(copied, until="build", overrides=one, progress=quiet())
    assert digest_file(bundle / "unet.tensorrt-rtx.onnx") == before
    assert json.loads((bundle / "unet.tensorrt-rtx.plan.json").read_text())["built"]
    assert not list(bundle.rglob(".tmp-*"))


def test_a_graph_whose_export_was_interrupted_before_its_sites_is_neither_run_nor_current(copied, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    bundle = Bundle(copied.with_suffix(""))
    before = digest_file(bundle.qdq("ort-cpu")), digest_file(bundle.sites("ort-cpu"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("quaver.exporter.export.save_json", interrupted)
        run_verb(copied, "export", overrides=["export.preset=float"], progress=quiet())
    assert digest_file(bundle.qdq("ort-cpu")) != before[0] and digest_file(bundle.sites("ort-cpu")) == before[1]
    with pytest.raises(ArtifactError, match=r"unet\.ort-cpu\.onnx is not"), open_bundle(bundle):
        pass
    assert reasons(copied)["export"] == "settings changed"
    run_recipe(copied, until="export", progress=quiet())
    assert (digest_file(bundle.qdq("ort-cpu")), digest_file(bundle.sites("ort-cpu"))) == before


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(copied):
    # Far more trajectories than end before the signal arrives.
    long = ["--force", "stats", "--set", "stats.trajectories=100000"]
    argv = [sys.executable, "-m", "quaver.exporter.cli", "run", str(copied), *long]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(
        argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heard
    ) as child:
        while "stats: asked for" not in (line := child.stderr.readline()):
            assert line
        child.send_signal(signal.SIGINT)
        last = child.stderr.read().splitlines()[-1]
    assert child.returncode == 130
    assert last == "quaver: interrupted: nothing is lost, and the same command goes on from here"
    bundle = copied.with_suffix("")
    assert run_recipe(copied, progress=quiet()) == [bundle / "report.json", bundle / "report.html"]
    assert reasons(copied) == {}


def test_generate_reads_the_bundle_and_writes_sound(built, tmp_path):
    argv = [
        sys.executable,
        "-m",
        "quaver.exporter.cli",
        "generate",
        str(built.with_suffix("")),
        "--prompt",
        "a low cello",
    ]
    out = tmp_path / "cello.wav"
    done = subprocess.run([*argv, "--out", str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{out}\n" and out.stat().st_size > 60_000
