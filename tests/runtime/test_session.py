"""Opening a bundle: what is said of one that is half-built, edited, or none."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil

import pytest

from quaver.runtime.artifact import Stamp, digest_file, save_json
from quaver.runtime.backends import onnxruntime
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import ArtifactError, EngineError, RecipeError
from quaver.runtime.generate import binding
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import open_bundle, sampling_of


def opened(bundle, **kwargs):
    """Open and close."""
    with open_bundle(bundle, threads=1, **kwargs) as session:
        return session


def test_defaults_are_the_recipes_then_the_cards(tiny_bundle):
    with open_bundle(tiny_bundle) as session:
        assert sampling_of(session) == SamplingSettings(steps=5, guidance=2.0)
        tiny_bundle.recipe.write_text("[sampling]\nsteps = 8\neta = 0.5\n")
        assert sampling_of(session) == SamplingSettings(steps=8, eta=0.5, guidance=2.0)
        assert sampling_of(session, steps=3, eta=0.0).steps == 3
        with pytest.raises(RecipeError, match=r"sampling\.eta is 2"):
            sampling_of(session, eta=2.0)
        tiny_bundle.recipe.write_text("[sampling]\nsteps = 'many'\n")
        with pytest.raises(RecipeError, match=r"sampling\.steps is a string .*expected an integer"):
            sampling_of(session)
        tiny_bundle.recipe.write_text("[sampling]\nsteps = 8\nseed = 0\n")
        with pytest.raises(ArtifactError, match=r"samples with seed, which .* '.*--force trace' makes it anew"):
            sampling_of(session)


@pytest.mark.parametrize(
    "name", ["vae_decoder.onnx", "text_encoder.onnx", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"]
)
def test_a_half_built_bundle_says_what_it_lacks_and_the_command(tiny_bundle, name):
    (tiny_bundle.root / name).unlink()
    with pytest.raises(ArtifactError, match=rf"lacks {name}: 'quaver run RECIPE'"):
        opened(tiny_bundle)


def test_the_command_names_the_recipe_when_it_lies_beside_the_bundle(tiny_bundle):
    tiny_bundle.root.with_name("tiny.toml").write_text("")
    tiny_bundle.component("vocoder").unlink()
    with pytest.raises(ArtifactError, match=r"'quaver run .*tiny\.toml'"):
        opened(tiny_bundle)


def test_a_bundle_whose_path_a_shell_would_take_apart_opens_and_its_commands_can_be_typed(tiny_bundle):
    root = tiny_bundle.root.parent / "für später" / "my demo"
    root.parent.mkdir()
    moved = Bundle(tiny_bundle.root.rename(root))
    opened(moved)
    recipe = root.with_name("my demo.toml")
    recipe.write_text("")
    moved.component("vocoder").unlink()
    with pytest.raises(ArtifactError, match="lacks vocoder") as error:
        opened(moved)
    (typed,) = re.findall("'(.*)'", str(error.value))
    assert shlex.split(typed) == ["quaver", "run", str(recipe)]


def test_a_missing_engine_says_which_there_are(tiny_bundle):
    with pytest.raises(ArtifactError, match=r"no engine 'tensorrt-rtx' \(it has: float, ort-cpu\)"):
        opened(tiny_bundle, engine_file="tensorrt-rtx")


def test_a_target_of_tensorrt_is_its_plan_and_never_quietly_its_graph(tiny_bundle):
    shutil.copyfile(tiny_bundle.qdq("ort-cpu"), tiny_bundle.qdq("tensorrt-rtx"))
    with pytest.raises(
        ArtifactError, match=r"no plan for tensorrt-rtx: 'quaver build RECIPE' .* by its path: .*\.onnx"
    ):
        opened(tiny_bundle, engine_file="tensorrt-rtx")
    tiny_bundle.plan("tensorrt-rtx").write_bytes(b"a plan")
    with pytest.raises(ArtifactError, match=r"unet\.tensorrt-rtx\.plan has no unet\.tensorrt-rtx\.plan\.json"):
        opened(tiny_bundle, engine_file="tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"has no unet\.tensorrt-rtx\.plan\.json"):
        opened(tiny_bundle, engine_file=tiny_bundle.plan("tensorrt-rtx"))
    session = opened(tiny_bundle, engine_file=tiny_bundle.qdq("tensorrt-rtx"))
    assert session.engine.backend == "onnxruntime" and session.target is None


def test_an_execution_provider_is_the_engines_and_onnxruntimes_alone(tiny_bundle, monkeypatch):
    assert opened(tiny_bundle, provider="cpu").engine.backend == "onnxruntime"
    there = onnxruntime.find_provider
    monkeypatch.setattr(onnxruntime, "find_provider", lambda name: there("cpu" if name == "cuda" else name))
    elsewhere = opened(tiny_bundle, provider="cuda")
    assert binding(elsewhere, SamplingSettings()).backend == "onnxruntime on cuda"  # other kernels, other errors
    with pytest.raises(EngineError, match=r"no execution provider 'quantum' \(it has: .*cpu"):
        opened(tiny_bundle, provider="quantum")
    tiny_bundle.plan("tensorrt-rtx").write_bytes(b"a plan")
    with pytest.raises(EngineError, match=r"are onnxruntime's, and .*\.plan is run by tensorrt: name none"):
        opened(tiny_bundle, engine_file="tensorrt-rtx", provider="cuda")


def test_an_edited_component_is_noticed(tiny_bundle):
    shutil.copyfile(tiny_bundle.component("vocoder"), tiny_bundle.component("vae_decoder"))
    with pytest.raises(ArtifactError, match=r"vae_decoder\.onnx is not what was traced.*RECIPE --force trace'"):
        opened(tiny_bundle)


def test_an_edited_schedule_is_noticed_before_it_is_corrected_by_statistics_of_another(tiny_bundle):
    card = json.loads(tiny_bundle.card.read_text())
    name = tiny_bundle.scheduler.relative_to(tiny_bundle.root).as_posix()
    tiny_bundle.card.write_text(json.dumps({**card, "digests": {name: digest_file(tiny_bundle.scheduler)}}))
    opened(tiny_bundle)
    config = json.loads(tiny_bundle.scheduler.read_text())
    tiny_bundle.scheduler.write_text(json.dumps({**config, "beta_end": 0.03}))
    with pytest.raises(ArtifactError, match=r"scheduler_config\.json is not what was traced.*--force trace'"):
        opened(tiny_bundle)


def written(bundle, digest):
    """A bundle whose files say what their graphs are."""
    card = json.loads(bundle.card.read_text())
    bundle.card.write_text(json.dumps({**card, "digests": {"unet.float.onnx": digest(bundle.float_unet)}}))
    save_json(bundle.sites("ort-cpu"), {"digest": digest(bundle.qdq("ort-cpu"))}, Stamp("export"))
    return bundle


@pytest.mark.parametrize(("engine", "stage"), [("ort-cpu", "export"), ("float", "trace")])
def test_an_edited_denoiser_is_noticed_with_the_stage_that_writes_it(tiny_bundle, engine, stage):
    opened(written(tiny_bundle, digest_file), engine_file=engine)
    wrong = written(tiny_bundle, lambda path: "sha256:0")
    with pytest.raises(ArtifactError, match=rf"unet\.{engine}\.onnx is not what was written.*RECIPE --force {stage}'"):
        opened(wrong, engine_file=engine)


def test_sites_without_the_digest_of_their_graph_are_told_with_the_command_that_writes_it(tiny_bundle, caplog):
    with caplog.at_level(logging.WARNING, logger="quaver"):
        opened(written(tiny_bundle, digest_file))
        assert caplog.text == ""
        save_json(tiny_bundle.sites("ort-cpu"), {"sites": []}, Stamp("export"))
        opened(tiny_bundle, engine_file="float")
        assert caplog.text == ""
        opened(tiny_bundle)
    (said,) = caplog.messages
    assert "unet.ort-cpu.sites.json does not say the digest of unet.ort-cpu.onnx" in said
    assert "'quaver run RECIPE --force export' writes both" in said


def test_what_is_no_bundle_is_said_so(tmp_path):
    with pytest.raises(ArtifactError, match=r"no bundle at .*quaver run"):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"bundle\.json, so it is no bundle yet"):
        opened(tmp_path / "empty")


def test_a_misspelt_bundle_is_answered_with_those_of_like_names(tiny_bundle):
    beside = tiny_bundle.root.parent
    tiny_bundle.root.rename(beside / "demo-w8a8")
    (beside / "demo-w8a7").mkdir()  # no bundle
    with pytest.raises(ArtifactError, match=r"no bundle at \S*demo-w8a9: did you mean \S*/demo-w8a8\?$"):
        opened(beside / "demo-w8a9")
    (beside / "demo-w4a8.toml").write_text("")
    with pytest.raises(ArtifactError, match=r"did you mean \S*/demo-w8a8 or \S*/demo-w4a8\?$"):
        opened(beside / "demo-w8a9")
    with pytest.raises(ArtifactError, match=r"did you mean \S*/demo-w8a8 "):
        opened(beside / "demo-w8a8.toml")
    for name, says in (
        ("something else", "'quaver run RECIPE' makes it"),
        ("demo-w4a8", r"'quaver run \S*/demo-w4a8\.t"),
    ):
        with pytest.raises(ArtifactError, match=says):
            opened(beside / name)


@pytest.mark.parametrize("damage", [b"", b"not json", b'{"stamp": {"kind": "trace"}}'])
def test_a_damaged_card_is_one_line(tiny_bundle, damage):
    tiny_bundle.card.write_bytes(damage)
    with pytest.raises(ArtifactError, match="quaver"):
        opened(tiny_bundle)


def test_a_denoiser_that_was_traced_alone_cannot_generate_and_says_why(tiny_bundle):
    card = json.loads(tiny_bundle.card.read_text())
    tiny_bundle.card.write_text(json.dumps({**card, "components": {}}))
    with pytest.raises(ArtifactError, match=r"traced without text_encoder, vae_decoder, vocoder.*model\.source"):
        opened(tiny_bundle)


def test_every_graph_is_closed_with_the_session(made_bundle):
    session = opened(made_bundle)
    assert session.engine.session is None
    assert all(engine.session is None for engine in session.parts.engines.values())
