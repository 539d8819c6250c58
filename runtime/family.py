"""A model family: what goes into its U-Net, and how its latents become something to hear or see.

A family is one record of plain functions in one file of `families/`; nothing else in the project names a family's
tensors. The functions read a bundle through `Parts`. A bundle says what it is in its card, `bundle.json`:

    family         a name of `FAMILIES`
    latent_shape   [C, T, F]: channels, time, frequency (or height, width)
    length         "fixed", or "free" when the graph of the U-Net takes others than T too
    rows           how many rows of samples stand in for prompts (`rows`); absent where prompts are text
    given          whether the samples hold x_t and t as well, records already
    inputs         what a network calls its inputs, where its family does not say (`families/onnx`)
    sample_rate    Hz of the waveform
    embedding      size of a conditioning row
    classes        how many classes stand in for prompts, 0 of a model that draws from noise alone; else absent
    sampler        defaults: sampler, steps, eta, guidance
    components     digests of the graphs beside the U-Net, by name (to notice edits)
    words          phrases that name the classes its probe hears, by attribute (`measure.agreement`); {} without a probe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quaver.runtime.artifact import load_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.engine import Engine
from quaver.runtime.errors import ArtifactError
from quaver.runtime.guide import Rows
from quaver.runtime.plug import plug
from quaver.runtime.schedule import Schedule, load_schedule

Array = Any  # numpy.ndarray, torch.Tensor, or any other array of the array API
Card = Mapping[str, Any]

FAMILIES = {
    "audioldm": "quaver.runtime.families.audioldm:FAMILY",
    "audioldm2": "quaver.runtime.families.audioldm2:FAMILY",
    "ldm": "quaver.runtime.families.ldm:FAMILY",
    "make-an-audio": "quaver.runtime.families.make_an_audio:FAMILY",
    "onnx": "quaver.runtime.families.onnx:FAMILY",
    "sdxl": "quaver.runtime.families.sdxl:FAMILY",
    "stable-diffusion": "quaver.runtime.families.stable_diffusion:FAMILY",
    "tango": "quaver.runtime.families.tango:FAMILY",
    "unconditional": "quaver.runtime.families.unconditional:FAMILY",
}


@dataclass(frozen=True)
class Parts:
    """What a family's functions read: the card, the graphs beside the U-Net by name, the tokenizers or the rows."""

    card: Card
    engines: Mapping[str, Engine]
    tokenizer: Any = None
    tokenizer_2: Any = None  # of a second text encoder
    rows: Rows = field(default_factory=dict)  # conditioning [N, ...] by name, of samples
    uncond: Rows = field(default_factory=dict)  # and its unconditional row [1, ...]


@dataclass(frozen=True)
class Published:
    """A model as its authors published it: what neither its weights nor its configuration say, or only together.

    hub          hub ids of its diffusers folder or its original files
    latent       [C, T, F] that it was trained with
    scheduler    keys of a diffusers scheduler_config.json
    sampling     keys of the table [sampling]: how its authors draw from it
    sample_rate  Hz; 0 for pictures
    tokenizer    hub id of a folder with its tokenizer.json
    """

    hub: tuple[str, ...]
    latent: tuple[int, int, int]
    scheduler: Mapping[str, Any]
    sampling: Mapping[str, Any]
    licence: str
    sample_rate: int = 0
    text_encoder: str = ""
    tokenizer: str = ""
    vocoder: str = ""


def latent_diffusion(beta_start: float, beta_end: float, **more: Any) -> dict[str, Any]:
    """The scheduler of latent diffusion (arXiv:2112.10752) with its ends, and `more` keys of diffusers."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        **more,
    }


@dataclass(frozen=True)
class Family:
    """What a model family is.

    components   graphs beside the U-Net that a bundle must have, by name
    embed        parts, prompts [B] -> conditioning rows, each [B, ...]; "" is the unconditional prompt
    feeds        x_t [N, C, T, F], t [N] int64, rows [N, ...] -> inputs of the U-Net by name
    decode       parts, latents [B, C, T, F] -> what they are of by name, among them "waveform" [B, N]; {} when the
                 bundle ends at latents
    fit          the family as one model has it, where its card and schedule say what `feeds` must know
    free_length  whether its U-Net takes latents of any length T
    asks         what a prompt is to it: "text", the "number" of a row or class, or "nothing" that it would heed
    example      a prompt that any of its models takes
    models       what was published of it, by name; the first says what a checkpoint without a configuration leaves open
    """

    name: str
    media: str  # "sound", "mels", "pictures" or "latents"
    components: tuple[str, ...]
    embed: Callable[[Parts, Sequence[str]], Rows]
    feeds: Callable[[Array, Array, Rows], dict[str, Array]]
    decode: Callable[[Parts, Array], dict[str, Array]]
    fit: Callable[[Card, Schedule], Family] | None = None
    free_length: bool = False
    asks: str = "text"
    example: str = "a sound"
    models: Mapping[str, Published] = field(default_factory=dict)


def find_family(name: str) -> Family:
    """The family of a name in `FAMILIES`, or of a user's own `package.module:FAMILY`.

    Raises: RecipeError naming the nearest one.
    """
    return plug(name, FAMILIES, what="model family")


def family_of(bundle: Bundle) -> Family:
    """The family of a bundle, fitted to its model.

    Raises: ArtifactError when its card or schedule is missing or damaged.
    """
    from quaver.runtime.rows import fed_by_rows  # it is written in terms of this module

    card = read_card(bundle)
    family = find_family(card["family"])
    family = family.fit(card, load_schedule(bundle.scheduler)) if family.fit else family
    return fed_by_rows(family) if "rows" in card else family


def read_card(bundle: Bundle) -> Card:
    """The card of a bundle.

    Raises: ArtifactError when it is missing, damaged, or lacks what every card says.
    """
    card = load_json(bundle.card, "trace")
    shape = card.get("latent_shape")
    whole = isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    for key, good in {
        "family": isinstance(card.get("family"), str),
        "latent_shape": whole,
        "sample_rate": isinstance(card.get("sample_rate"), int),
        "components": isinstance(card.get("components"), dict),
    }.items():
        if not good:
            raise ArtifactError(
                f"{bundle.card} says {key} = {card.get(key)!r}, which cannot be: 'quaver trace RECIPE' writes it anew"
            )
    return card
