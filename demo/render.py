"""Sound to waveform: FluidR3's recorded instruments played by fluidsynth, then levelled and, if asked, put in a hall.

The reverb is a convolution with exponentially decaying noise, h[n] = g[n] exp(-6.9 n / (RT60 fs)); the level is set
on the loudest 64 ms, so that "soft" and "loud" mean the same for every instrument.
"""

from __future__ import annotations

from dataclasses import dataclass

import fluidsynth
import numpy as np
from scipy.signal import fftconvolve, resample_poly

from quaver.demo.spectrogram import SAMPLE_RATE, SAMPLES
from quaver.demo.world import BY_NAME, Sound

SOUNDFONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
RATE = 2 * SAMPLE_RATE  # rendered at twice the rate and decimated, or the samples alias
ROOTS = {"low": (38, 45), "middle": (57, 62), "high": (74, 80)}
DRUM_KEYS = {"low": (35, 36, 41), "middle": (38, 40, 37), "high": (42, 46, 49)}
LEVEL_DB = {"soft": -34.0, "medium": -23.0, "loud": -12.0}
VELOCITY = {"soft": 60, "medium": 90, "loud": 118}
CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 12), (0, 3, 7, 12))
SCALES = ((0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12))


@dataclass(frozen=True)
class Note:
    """One key press: start and length in seconds, key 0..127."""

    start: float
    length: float
    key: int


def score(sound: Sound, rng: np.random.Generator) -> list[Note]:
    """The notes that play a sound's texture in its register."""
    if sound.instrument == "drums":
        return _drum_score(sound, rng)
    root = int(rng.integers(ROOTS[sound.register][0], ROOTS[sound.register][1] + 1))
    chord, steps = CHORDS[rng.integers(len(CHORDS))], SCALES[rng.integers(len(SCALES))]
    if sound.texture == "single note":
        return [Note(0.03, rng.uniform(0.8, 1.2), root + int(rng.integers(0, 8)))]
    if sound.texture == "chord":
        length = rng.uniform(0.8, 1.2)
        return [Note(0.03, length, root + step) for step in chord]
    if sound.texture == "arpeggio":
        return _sequence((*chord[:3], 12, *chord[2:0:-1]) * 2, root, 0.13, 11, rng)
    if sound.texture == "scale":
        return _sequence(steps if rng.random() < 0.5 else steps[::-1], root, 0.2, 8, rng)
    return _sequence((0,) * 8, root + int(rng.integers(0, 8)), 0.22, 7, rng, held=0.4)


def _sequence(
    steps: tuple[int, ...], root: int, beat: float, n: int, rng: np.random.Generator, held: float = 0.95
) -> list[Note]:
    beat *= rng.uniform(0.92, 1.08)
    return [Note(0.03 + i * beat, held * beat, root + step) for i, step in enumerate(steps[:n])]


def _drum_score(sound: Sound, rng: np.random.Generator) -> list[Note]:
    keys = DRUM_KEYS[sound.register]
    if sound.texture == "drum hit":
        return [Note(0.03, 0.5, keys[rng.integers(len(keys))])]
    beat, rests = 0.21 * rng.uniform(0.92, 1.08), rng.random(8) < 0.25
    main, accent = keys[0], keys[1]
    return [Note(0.03 + i * beat, 0.15, accent if i % 4 == 2 else main) for i in range(8) if i == 0 or not rests[i]]


class Player:
    """A fluidsynth synthesizer with the sound font loaded; `close` frees it."""

    def __init__(self, soundfont: str = SOUNDFONT) -> None:
        self.synth = fluidsynth.Synth(samplerate=float(RATE), gain=0.5)
        for effect in ("synth.reverb.active", "synth.chorus.active"):
            self.synth.setting(effect, 0)
        self.font = self.synth.sfload(soundfont)
        if self.font < 0:
            raise FileNotFoundError(f"no sound font at {soundfont}; install it: apt-get install fluid-soundfont-gm")

    def close(self) -> None:
        self.synth.delete()

    def play(self, notes: list[Note], *, drums: bool, program: int, velocity: int) -> np.ndarray:
        """Play notes for the length of one clip: float64 [SAMPLES] at 16 kHz, mono."""
        channel = 9 if drums else 0
        self.synth.system_reset()
        self.synth.program_select(channel, self.font, 128 if drums else 0, program)
        events = sorted([(n.start, 1, n.key) for n in notes] + [(n.start + n.length, 0, n.key) for n in notes])
        pieces, now, end = [], 0, SAMPLES * 2
        for time, on, key in events:
            at = min(int(time * RATE), end)
            pieces.append(self.synth.get_samples(at - now)) if at > now else None
            now = max(now, at)
            self.synth.noteon(channel, key, velocity) if on else self.synth.noteoff(channel, key)
        pieces.append(self.synth.get_samples(end - now))
        stereo = np.concatenate(pieces).reshape(-1, 2) / 32768.0
        return resample_poly(stereo.mean(axis=1), 1, 2)[:SAMPLES]


def reverberate(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a hall of RT60 about 1.6 s; the tail outlasts every dry note."""
    n = np.arange(SAMPLES)
    hall = rng.standard_normal(SAMPLES) * np.exp(-6.9 * n / (rng.uniform(1.4, 1.8) * SAMPLE_RATE))
    hall = hall / np.sqrt(np.sum(hall**2))
    return wave + 0.8 * fftconvolve(wave, hall)[:SAMPLES]


def level(wave: np.ndarray, decibels: float) -> np.ndarray | None:
    """Scale so that the loudest 64 ms have this RMS level; None for a silent clip."""
    power = np.mean(wave[: len(wave) // 1024 * 1024].reshape(-1, 1024) ** 2, axis=1).max()
    if power < 1e-10:
        return None
    return np.clip(wave * 10 ** (decibels / 20) / np.sqrt(power), -1, 1)


def render(sound: Sound, player: Player, rng: np.random.Generator) -> np.ndarray | None:
    """One clip of a sound: float64 [SAMPLES] at 16 kHz in [-1, 1], or None when nothing sounded."""
    drums = sound.instrument == "drums"
    velocity = VELOCITY[sound.loudness] + int(rng.integers(-6, 7))
    wave = player.play(score(sound, rng), drums=drums, program=BY_NAME[sound.instrument].program, velocity=velocity)
    if sound.reverb == "reverb":
        wave = reverberate(wave, rng)
    return level(wave, LEVEL_DB[sound.loudness] + rng.uniform(-1.5, 1.5))
