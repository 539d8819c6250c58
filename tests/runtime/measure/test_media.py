from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from quaver.runtime.audio import read_wav
from quaver.runtime.bundle import Bundle
from quaver.runtime.measure import media
from quaver.runtime.measure.media import Voice
from quaver.runtime.measure.trajectories import Take

NONE = np.zeros((0, 0))


def test_every_clip_is_the_sound_of_its_own_take(tmp_path: Path):
    rng, place = np.random.default_rng(0), Bundle(tmp_path)
    takes = [Take(np.zeros((1, 3, 1)), rng.uniform(-1, 1, (3, 256)), NONE) for _ in range(2)]
    voices = [Voice(None, "float", takes[0], 16000), Voice("w8a8", "auto", takes[1], 16000, [0.1, 0.2, 0.3])]
    rows = [list(media.write_voice(place, voice, i, 2)) for i, voice in enumerate(voices)]
    clips = media.shown_clips([("a", 7), ("b", 8), ("c", 9)], rows)
    assert [(clip["prompt"], clip["seed"]) for clip in clips] == [("a", 7), ("b", 8)]
    for i, clip in enumerate(clips):
        assert [(take["engine"], take["correction"]) for take in clip["takes"]] == [(None, "float"), ("w8a8", "auto")]
        assert [take["latent_error"] for take in clip["takes"]] == [None, (0.1, 0.2)[i]]
        for shown, take in zip(clip["takes"], takes, strict=True):
            found, _ = read_wav(place.media(shown["file"]))
            assert found == pytest.approx(take.waveforms[i], abs=1 / 32767)


def test_clips_take_the_place_of_those_of_an_earlier_report(tmp_path: Path):
    staged, place = Bundle(tmp_path / "staged"), Bundle(tmp_path / "place")
    for bundle, name in ((staged, "clip-000.wav"), (place, "clip-001.wav"), (place, "heatmap.svg")):
        bundle.media(name).parent.mkdir(parents=True, exist_ok=True)
        bundle.media(name).write_text(name)
    media.move_media(staged, place)
    assert sorted(path.name for path in place.media("x").parent.iterdir()) == ["clip-000.wav", "heatmap.svg"]
    assert not staged.media("x").parent.exists()
    media.move_media(staged, place)  # a report without clips
    assert [path.name for path in place.media("x").parent.iterdir()] == ["heatmap.svg"]


def test_a_take_of_pictures_becomes_png_files_and_one_that_ends_at_latents_none(tmp_path: Path):
    picture = -np.ones((1, 1, 2, 3))
    picture[0, 0, 1, 2] = 1.0
    take = Take(np.zeros((1, 1, 1)), NONE, NONE, picture)
    (row,) = media.write_voice(Bundle(tmp_path), Voice("w8a8", "none", take, 0), 1, 1)
    data = Bundle(tmp_path).media(row["file"]).read_bytes()
    assert row["file"].endswith(".png") and "rate" not in row
    assert struct.unpack(">IIBB", data[16:26]) == (3, 2, 8, 2)
    start = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[start : start + struct.unpack(">I", data[start - 8 : start - 4])[0]])
    assert rows == b"\0" + bytes(9) + b"\0" + bytes(6) + b"\xff\xff\xff"
    silent = Take(np.zeros((1, 1, 1)), NONE, NONE)
    assert list(media.write_voice(Bundle(tmp_path), Voice("w8a8", "none", silent, 0), 1, 1)) == []


def test_levels_count_what_is_silent_and_what_is_clipped():
    waveforms = np.array([[0.0005, -0.0009, 0, 0], [0.5, -1.5, 1.2, 0], [0.5, 0.2, 0, -1.0]])
    assert media.levels(waveforms) == {"silent": 1, "clipped": 1}
    assert media.level(waveforms[1]) == {"peak": 1.5, "silent": False, "clipped": 0.5}
    assert media.levels(NONE) == {"silent": 0, "clipped": 0}
