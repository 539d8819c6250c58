"""Clips as files: where they go, and what is left of them when something ends the run early."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from io import StringIO

import numpy as np
import pytest

from quaver.exporter import cli
from quaver.runtime.artifact import digest_folder
from quaver.runtime.audio import read_wav
from quaver.runtime.clips import generate_to_files, plan_files, slug, step_path, usual_place
from quaver.runtime.correct import Corrected
from quaver.runtime.errors import ArtifactError, EngineError, QuaverError
from quaver.runtime.generate import generate
from quaver.runtime.progress import Progress, quiet

PROMPTS = ["a soft low cello note", "a bright drum", "a low note", "cello", "drum"]
SEEDS = [3, 1, 4, 1, 5]
NAMES = [
    "001-a-soft-low-cello-note-seed3.wav",
    "002-a-bright-drum-seed1.wav",
    "003-a-low-note-seed4.wav",
    "004-cello-seed1.wav",
    "005-drum-seed5.wav",
]


def test_a_sample_is_named_after_prompt_and_seed_and_several_are_a_folder():
    assert usual_place(["A soft, low cello note!"], [3], ".wav") == "a-soft-low-cello-note-3.wav"
    assert usual_place(["class 7"], [0], ".png") == "class-7-0.png"
    assert usual_place(["a", "a"], [0, 1], ".wav") == "clips"


def written(bundle, out, prompts=PROMPTS, seeds=SEEDS, **options):
    return generate_to_files(bundle, prompts, seeds, out, threads=1, **{"progress": quiet()} | options)


def test_one_clip_goes_into_its_file_and_several_into_a_folder(made_bundle, tmp_path):
    (path,) = written(made_bundle, tmp_path / "new" / "cello.wav", PROMPTS[:1], [1])
    samples, rate = read_wav(path)
    assert (path, rate, samples.shape) == (tmp_path / "new" / "cello.wav", 16_000, (256,))
    drawn = next(generate(made_bundle, PROMPTS[:1], [1]))
    np.testing.assert_allclose(samples, drawn.waveforms[0], atol=1 / 32767)
    many = written(made_bundle, tmp_path / "clips", batch=2)
    assert [path.name for path in many] == NAMES == sorted(path.name for path in (tmp_path / "clips").iterdir())


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "/tmp/x", "..", "a\0b", "\n", "C:\\x", "é" * 300, "a" * 2000])
def test_no_prompt_leads_out_of_the_folder(tmp_path, prompt):
    (path,) = plan_files(tmp_path / "clips", [prompt], [1])
    assert path.parent == tmp_path / "clips"
    assert set(slug(prompt)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and 0 < len(slug(prompt)) <= 40
    path.touch()


def test_a_folder_may_have_a_dot_in_its_name(tmp_path):
    assert plan_files(tmp_path / "take.2", ["a", "b"], [0, 0])[1] == tmp_path / "take.2" / "002-b-seed0.wav"


def test_several_clips_into_one_file_are_refused(made_bundle, tmp_path):
    with pytest.raises(QuaverError, match="name a folder"):
        written(made_bundle, tmp_path / "one.wav")


def test_other_formats_are_refused_with_the_name_to_use(made_bundle, tmp_path):
    with pytest.raises(QuaverError, match=r"name it cello\.wav"):
        written(made_bundle, tmp_path / "cello.mp3", PROMPTS[:1], [0])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(made_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        written(made_bundle, tmp_path / "file" / "x.wav", PROMPTS[:1], [0])


def test_each_file_is_told_when_it_is_there_and_missing_makes_the_rest(made_bundle, tmp_path):
    told = []
    written(made_bundle, tmp_path, batch=2, on_file=lambda path: told.append((path.name, path.exists())))
    assert told == [(name, True) for name in NAMES]
    before = {name: (tmp_path / name).read_bytes() for name in NAMES}
    for name in NAMES[1:3]:
        (tmp_path / name).unlink()
    assert [path.name for path in written(made_bundle, tmp_path, missing=True)] == NAMES[1:3]
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == before
    said = StringIO()
    assert written(made_bundle, tmp_path, missing=True, progress=Progress(said)) == []
    assert said.getvalue() == "nothing is missing: 5 clips there already\n"


def test_previews_lie_beside_the_clip(made_bundle, tmp_path):
    paths = written(made_bundle, tmp_path, batch=2, steps=12, preview_every=4)
    steps = [step_path(path, done, 12) for path in paths for done in (4, 8)]
    assert steps[0].name == "001-a-soft-low-cello-note-seed3.step04.wav"
    assert sorted(tmp_path.iterdir()) == sorted([*paths, *steps])
    assert len({path.read_bytes() for path in [*paths, *steps]}) == 15
    with pytest.raises(QuaverError, match="every -1 steps, expected every 1 or more"):
        written(made_bundle, tmp_path, preview_every=-1)


def test_steps_whose_residual_found_no_room_in_the_noise_are_counted_and_told(
    made_bundle, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("quaver.runtime.generate.make_correct", lambda *_: lambda q, t, x: Corrected(q, 9.0))
    with caplog.at_level(logging.WARNING, logger="quaver"):
        written(made_bundle, tmp_path, PROMPTS[:3], SEEDS[:3], batch=2, steps=4)
        assert caplog.text == ""  # without noise there is nothing to take it off
        written(made_bundle, tmp_path, PROMPTS[:3], SEEDS[:3], batch=2, steps=4, eta=1.0)
    assert caplog.messages == ["the correction's residual exceeded the sampler's noise 4 times"] * 2


def test_an_engine_that_fails_in_the_second_batch_leaves_the_files_of_the_first(
    made_bundle, tmp_path, spoil_engine, monkeypatch
):
    spoil_engine(call=7)
    with pytest.raises(EngineError, match=r"step 2 of 5: .* seed 1, prompt 'cello'.* \(2 of 5 clips are written\)$"):
        written(made_bundle, tmp_path, batch=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES[:2]
    monkeypatch.undo()
    written(made_bundle, tmp_path, batch=2, missing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def command(bundle, out, *options):
    return [sys.executable, "-m", "quaver.exporter.cli", "generate", str(bundle.root), "--out", str(out), *options]


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(made_bundle, tmp_path):
    options = ("--prompt", "cello", "--seeds", "0-499", "--steps", "40", "--batch", "1", "--quiet")
    default = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731  a job of a script ignores it
    with subprocess.Popen(
        command(made_bundle, tmp_path, *options), stdout=-1, stderr=-1, text=True, preexec_fn=default
    ) as process:
        first = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    printed, there = {first, *rest.split()}, {str(path) for path in tmp_path.iterdir()}
    assert process.returncode == 130
    (count,) = re.findall(
        r"^quaver: interrupted: (\d+) of 500 clips are written; the same command with --missing makes the rest\n$", said
    )
    # a clip is put in place, counted, then printed: what stops the run between them leaves one more than the next tells
    assert len(printed) <= int(count) <= len(there) <= len(printed) + 1
    assert printed <= there
    assert all(read_wav(path)[0].shape == (256,) for path in there)


def test_a_reader_that_stops_reading_the_paths_does_not_stop_the_clips(made_bundle, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(made_bundle, tmp_path, "--prompt", "cello", "--seeds", "0-2"), stdout=write, check=False
    )
    os.close(write)
    assert (done.returncode, len(list(tmp_path.iterdir()))) == (0, 3)


def test_two_processes_read_one_bundle_while_a_third_holds_it_for_writing(tiny_bundle, tmp_path):
    fcntl, out = pytest.importorskip("fcntl"), [tmp_path / f"{i}.wav" for i in range(2)]
    with tiny_bundle.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = digest_folder(tiny_bundle.root), sorted(os.listdir(tiny_bundle.root))
        started = [subprocess.Popen(command(tiny_bundle, path, "--prompt", "cello", "--quiet")) for path in out]
        assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert out[0].read_bytes() == out[1].read_bytes()
    assert (digest_folder(tiny_bundle.root), sorted(os.listdir(tiny_bundle.root))) == before


def test_an_execution_provider_that_is_not_there_is_refused_before_anything_is_drawn(tiny_bundle, tmp_path, capsys):
    given = ["--prompt", "cello", "--out", str(tmp_path / "a.wav"), "--threads", "1", "--quiet"]
    assert cli.main(["generate", str(tiny_bundle.root), *given, "--provider", "quantum"]) == 1
    assert "no execution provider 'quantum'" in capsys.readouterr().err and not list(tmp_path.glob("*.wav"))
    assert cli.main(["generate", str(tiny_bundle.root), *given, "--provider", "cpu"]) == 0
