"""The world of the embedded model: which sounds exist, how they are played, how people say so.

A clip is one `Sound`: instrument x register x texture x loudness x reverb, drawn uniformly over the combinations
that exist. Whole (instrument, register) combinations are kept for validation and for the test, so that the model
is judged on combinations it has never heard. Captions come from a small grammar with synonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAMILIES = ("keyboard", "mallets", "organ", "guitar", "strings", "brass", "reed", "flute", "drums")
REGISTERS = ("low", "middle", "high")
TEXTURES = ("single note", "chord", "arpeggio", "scale", "repeated rhythm", "drum hit", "drum pattern")
LOUDNESSES = ("soft", "medium", "loud")
REVERBS = ("dry", "reverb")
ATTRIBUTES = {
    "family": FAMILIES,
    "register": REGISTERS,
    "texture": TEXTURES,
    "loudness": LOUDNESSES,
    "reverb": REVERBS,
}


@dataclass(frozen=True)
class Instrument:
    """One General MIDI program with the registers it really plays and the names people give it."""

    name: str
    family: str
    program: int
    registers: tuple[str, ...]
    synonyms: tuple[str, ...] = ()


INSTRUMENTS = (
    Instrument("piano", "keyboard", 0, REGISTERS, ("grand piano", "acoustic piano")),
    Instrument("harpsichord", "keyboard", 6, REGISTERS, ("cembalo",)),
    Instrument("clavinet", "keyboard", 7, REGISTERS, ("clavichord keyboard",)),
    Instrument("vibraphone", "mallets", 11, ("middle", "high"), ("vibes",)),
    Instrument("marimba", "mallets", 12, REGISTERS, ("wooden mallets",)),
    Instrument("church organ", "organ", 19, REGISTERS, ("pipe organ", "organ")),
    Instrument("accordion", "organ", 21, REGISTERS, ("squeezebox",)),
    Instrument("nylon guitar", "guitar", 24, REGISTERS, ("classical guitar", "acoustic guitar", "guitar")),
    Instrument("electric guitar", "guitar", 27, REGISTERS, ("clean electric guitar",)),
    Instrument("violin", "strings", 40, ("middle", "high"), ("fiddle",)),
    Instrument("viola", "strings", 41, ("middle", "high"), ("alto violin",)),
    Instrument("cello", "strings", 42, ("low", "middle"), ("violoncello",)),
    Instrument("trumpet", "brass", 56, ("middle", "high"), ("brass trumpet",)),
    Instrument("trombone", "brass", 57, ("low", "middle"), ("slide trombone",)),
    Instrument("french horn", "brass", 60, ("low", "middle"), ("horn", "orchestral horn")),
    Instrument("alto saxophone", "reed", 65, ("middle", "high"), ("saxophone", "sax", "alto sax")),
    Instrument("clarinet", "reed", 71, ("middle", "high"), ("woodwind clarinet",)),
    Instrument("flute", "flute", 73, ("middle", "high"), ("concert flute",)),
    Instrument("piccolo", "flute", 72, ("high",), ("piccolo flute",)),
    Instrument("pan flute", "flute", 75, ("middle", "high"), ("panpipes", "pan pipes")),
    Instrument("drums", "drums", 0, REGISTERS),
)
BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}

# Whole combinations nobody trains on; another instrument of the family is trained in that register, so that a model
# has heard what it must compose. Drums stay: each drum register is an instrument of its own.
TEST = {
    ("piano", "middle"),
    ("church organ", "high"),
    ("electric guitar", "low"),
    ("cello", "middle"),
    ("trombone", "low"),
    ("flute", "high"),
    ("clarinet", "middle"),
}
VALIDATION = {("harpsichord", "middle"), ("accordion", "low"), ("violin", "high"), ("marimba", "high")}

DRUM_NAMES = {"low": ("kick drum", "bass drum"), "middle": ("snare drum", "snare"), "high": ("hi-hat", "cymbal")}
WORDS = {
    "low": ("low", "deep", "low-pitched", "bass register"),
    "middle": ("middle", "mid-range", "medium-pitched", "mid-register"),
    "high": ("high", "high-pitched", "treble", "bright high"),
    "soft": ("soft", "quiet", "gentle", "faint"),
    "medium": ("", "moderate", "medium loud", ""),
    "loud": ("loud", "strong", "powerful", "forceful"),
    "single note": ("note", "single note", "sustained note", "long tone"),
    "chord": ("chord", "held chord", "several notes at once"),
    "arpeggio": ("arpeggio", "broken chord", "rolling arpeggio"),
    "scale": ("scale", "scale run", "stepwise scale"),
    "repeated rhythm": ("repeated rhythm", "repeated notes", "staccato rhythm"),
    "drum hit": ("hit", "single hit", "stroke"),
    "drum pattern": ("pattern", "beat", "groove"),
    "dry": ("", "dry", "without reverb", ""),
    "reverb": ("with reverb", "in a large hall", "echoing in a church", "with a long reverb tail"),
}


def vocabulary() -> dict[str, list[list[str]]]:
    """The phrases that name each class of each attribute, in the order of `ATTRIBUTES`: what a caption can say."""
    found = {
        name: [[word for word in WORDS.get(c, ()) if word] for c in classes] for name, classes in ATTRIBUTES.items()
    }
    found["family"] = [
        [phrase for i in INSTRUMENTS if i.family == family for phrase in (i.name, *i.synonyms)] for family in FAMILIES
    ]
    for register, names in DRUM_NAMES.items():
        found["family"][FAMILIES.index("drums")] += names
        found["register"][REGISTERS.index(register)] += names
    return found


@dataclass(frozen=True)
class Sound:
    """One clip, as the attributes a caption names and a listener hears."""

    instrument: str
    register: str
    texture: str
    loudness: str
    reverb: str

    @property
    def family(self) -> str:
        return BY_NAME[self.instrument].family

    def labels(self) -> tuple[int, ...]:
        """Class index of each attribute, in the order of `ATTRIBUTES`."""
        return tuple(names.index(getattr(self, attribute)) for attribute, names in ATTRIBUTES.items())


def combinations(split: str) -> list[tuple[str, str]]:
    """(instrument, register) pairs of a split: "train", "validation" or "test"."""
    held = {"test": TEST, "validation": VALIDATION}
    if split in held:
        return sorted(held[split])
    every = [(i.name, r) for i in INSTRUMENTS for r in i.registers]
    return [pair for pair in every if pair not in TEST | VALIDATION]


def textures_of(instrument: str) -> tuple[str, ...]:
    """The textures an instrument plays: the drums have two of their own."""
    return TEXTURES[5:] if instrument == "drums" else TEXTURES[:5]


def draw_sound(rng: np.random.Generator, split: str) -> Sound:
    """Draw a sound uniformly over the combinations of a split and over the other attributes."""
    pairs = combinations(split)
    instrument, register = pairs[rng.integers(len(pairs))]
    names = textures_of(instrument)
    return Sound(
        instrument,
        register,
        names[rng.integers(len(names))],
        LOUDNESSES[rng.integers(3)],
        REVERBS[rng.integers(2)],
    )


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def caption(sound: Sound, rng: np.random.Generator) -> str:
    """Say a sound in words: a synonym of each attribute, in one of three word orders."""
    register, loudness = _pick(rng, WORDS[sound.register]), _pick(rng, WORDS[sound.loudness])
    texture, reverb = _pick(rng, WORDS[sound.texture]), _pick(rng, WORDS[sound.reverb])
    if sound.instrument == "drums":
        name, register = _pick(rng, DRUM_NAMES[sound.register]), ""
    else:
        name = _pick(rng, (sound.instrument, sound.instrument, *BY_NAME[sound.instrument].synonyms))
    order = rng.integers(3)
    if order == 0:
        words = f"{loudness} {register} {name} {texture}"
    elif order == 1:
        words = f"{loudness} {register} {texture} on a {name}" if register else f"{loudness} {texture} on a {name}"
    else:
        words = f"{name} playing a {loudness} {register} {texture}"
    text = " ".join(f"{words} {reverb}".split())
    return f"{_article(text)} {text}"


def partial_caption(sound: Sound, rng: np.random.Generator) -> tuple[str, set[str]]:
    """Name the instrument and leave things open, as people do: the words, and the attributes they say."""
    if sound.instrument == "drums":
        return _pick(rng, DRUM_NAMES[sound.register]), {"family", "instrument", "register"}
    kept = {part for part in ("register", "texture") if rng.random() < 0.5}
    words = {part: _pick(rng, WORDS[getattr(sound, part)]) if part in kept else "" for part in ("register", "texture")}
    text = f"{words['register']} {sound.instrument} {words['texture']}"
    return " ".join(text.split()), kept | {"family", "instrument"}


def _article(text: str) -> str:
    return "an" if text[0] in "aeiou" else "a"


def captions(n: int, rng: np.random.Generator, split: str = "train") -> list[str]:
    """Draw n distinct captions of a split."""
    seen: dict[str, None] = {}
    while len(seen) < n:
        seen[caption(draw_sound(rng, split), rng)] = None
    return list(seen)
