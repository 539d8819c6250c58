"""The families of published models: what their networks are fed and what their cards say, on stand-in engines."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.errors import QuaverError
from quaver.runtime.families import audioldm2, ldm, make_an_audio, sdxl, tango, unconditional
from quaver.runtime.family import FAMILIES, Parts, find_family
from quaver.runtime.rows import fed_by_rows, row_number
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.schedule import read_schedule


class Engine:
    """Answers with a function of its inputs."""

    def __init__(self, answer, *inputs):
        self.answer, self.inputs = answer, inputs

    def __call__(self, feeds):
        return self.answer(**feeds)


class Words:
    """A tokenizer that pads to 4: one id a letter."""

    def encode_batch(self, prompts):
        return [Encoding([*map(ord, p), 0, 0, 0, 0][:4], [1] * len(p) + [0] * (4 - len(p))) for p in prompts]


class Encoding:
    def __init__(self, ids, attention_mask):
        self.ids, self.attention_mask, self.overflowing = ids, attention_mask, []


STATES = Engine(lambda input_ids, attention_mask: np.stack([input_ids, input_ids], -1), "input_ids", "attention_mask")


@pytest.mark.parametrize("family", [tango, make_an_audio])
def test_every_token_conditions_and_the_unet_is_fed_all_rows(family):
    parts = Parts({}, {"text_encoder": STATES}, Words())
    rows = family.embed(parts, ["ab", ""])
    assert rows["encoder_hidden_states"].shape == (2, 4, 2) and rows["encoder_hidden_states"].dtype == np.float32
    assert rows["encoder_hidden_states"][0, :, 0].tolist() == [97, 98, 0, 0]
    fed = family.FAMILY.feeds(np.zeros((2, 8, 4, 4)), np.zeros(2), rows)
    assert list(fed)[:3] == ["sample", "timestep", "encoder_hidden_states"]
    if family is tango:
        assert fed["encoder_attention_mask"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_class_is_looked_up_and_no_class_is_the_last_row():
    table = np.arange(12.0).reshape(6, 2)
    parts = Parts({"classes": 5}, {"class_encoder": Engine(lambda class_label: table[class_label][:, None])})
    rows = ldm.embed(parts, ["3", "class 0", "row 1", "", "no class"])
    assert rows["encoder_hidden_states"].tolist() == [[[6, 7]], [[0, 1]], [[2, 3]], [[10, 11]], [[10, 11]]]


@pytest.mark.parametrize("prompt", ["5", "cat", "class -1", "2.5"])
def test_what_is_no_class_is_refused(prompt):
    with pytest.raises(QuaverError, match="is none: say 0 to 4"):
        ldm.class_number(prompt, 5)


def test_an_unconditional_model_has_no_rows():
    parts = Parts({"classes": 0}, {})
    assert ldm.embed(parts, ["", "no class"]) == {}
    with pytest.raises(QuaverError, match="from noise alone and cannot heed 'a bed': give no prompt"):
        ldm.embed(parts, ["a bed"])


def test_a_table_of_classes_belongs_to_a_model_that_draws_them():
    assert ldm.fit({"classes": 10}, None).components == ("class_encoder", "image_decoder")
    assert ldm.fit({"classes": 0}, None).components == ("image_decoder",)


def test_a_family_says_what_it_asks_for_and_gives_an_example_that_all_its_models_take():
    assert [ldm.fit({"classes": n}, None).asks for n in (10, 0)] == ["number", "nothing"]
    assert [ldm.class_number(ldm.FAMILY.example, n) for n in (10, 0)] == [10, 0]
    fed = fed_by_rows(tango.FAMILY)
    assert (tango.FAMILY.asks, fed.asks, row_number(fed.example, 1)) == ("text", "number", 0)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"onnx"}))
def test_what_was_published_can_be_sampled_as_its_authors_do(name):
    for key, model in find_family(name).models.items():
        schedule = read_schedule(model.scheduler)
        SamplingSettings(**model.sampling)
        assert len(schedule.alpha_bar) == 1000
        assert schedule.alpha_bar_final == (1.0 if key == "ddpm-cifar10" else schedule.alpha_bar[0])
        assert (schedule.prediction == "v_prediction") == (key in ("tango", "sd21"))
        assert len(model.latent) == 3 and model.licence.startswith(("CC BY", "MIT", "Apache", "CreativeML"))
        assert bool(model.sample_rate) == (find_family(name).media == "sound")


class Pair(Words):
    """A second tokenizer, whose ids are negative."""

    def encode_batch(self, prompts):
        return [Encoding([-i for i in e.ids], e.attention_mask) for e in super().encode_batch(prompts)]


def test_audioldm2_hears_its_language_model_turn_by_turn():
    """A model that says the sum of what it is told, of 4 special rows of 1, "ab", and a row of 1 at the end."""
    told = Engine(lambda text_embeds, states: np.pad(states, ((0, 0), (4, 1), (0, 0)), constant_values=1))
    engines = {
        "text_encoder": Engine(lambda input_ids, attention_mask: input_ids[:, :2], "input_ids", "attention_mask"),
        "text_encoder_2": STATES,
        "projection_model": told,
        "language_model": Engine(lambda told, told_mask: (told * told_mask[..., None]).sum(1, keepdims=True)),
    }
    rows = audioldm2.embed(Parts({"turns": 3}, engines, Words(), Pair()), ["ab", ""])
    first = 5 - 97 - 98
    assert rows["encoder_hidden_states"][:, :, 0].tolist() == [[first, 2 * first, 4 * first], [5, 10, 20]]
    assert rows["encoder_hidden_states_1"][0, :, 0].tolist() == [-97, -98, 0, 0]
    assert rows["encoder_attention_mask_1"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert {value.dtype for value in rows.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("zero", [True, False])
def test_sdxl_joins_two_encoders_and_says_the_size_of_the_picture(zero):
    def states(input_ids):
        return np.stack([input_ids, input_ids], -1).astype(np.float32)

    second = Engine(lambda input_ids: np.concatenate([states(input_ids), np.full((2, 1, 2), 5)], 1), "input_ids")
    engines = {"text_encoder": Engine(states, "input_ids"), "text_encoder_2": second}
    card = {"nothing_is_zero": zero, "upscale": 8, "latent_shape": [4, 6, 10]}
    rows = sdxl.embed(Parts(card, engines, Words(), Pair()), ["ab", ""])
    assert rows["encoder_hidden_states"][0].tolist() == [[97, 97, -97, -97], [98, 98, -98, -98], [0] * 4, [0] * 4]
    assert rows["text_embeds"].tolist() == [[5, 5], [0, 0] if zero else [5, 5]]
    assert rows["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] * 2


def test_a_picture_of_noise_is_its_sample_unless_there_is_a_decoder():
    pixels = np.zeros((1, 3, 4, 4))
    family = unconditional.fit({"components": {}}, None)
    assert family.components == () and family.decode(Parts({}, {}), pixels)["image"] is pixels
    family = unconditional.fit({"components": {"image_decoder": "sha256:"}}, None)
    decoder = Parts({}, {"image_decoder": Engine(lambda latents: latents + 1, "latents")})
    assert family.components == ("image_decoder",) and family.decode(decoder, pixels)["image"].min() == 1


def test_make_an_audio_without_its_vocoder_ends_at_the_mel():
    assert make_an_audio.fit({"components": {"vocoder": "sha256:"}}, None) is make_an_audio.FAMILY
    family = make_an_audio.fit({"components": {"text_encoder": "", "vae_decoder": ""}}, None)
    assert (family.media, family.components) == ("mels", ("text_encoder", "vae_decoder"))
    parts = Parts({}, {"vae_decoder": Engine(lambda latents: latents[:, :1] * 2, "latents")})
    assert family.decode(parts, np.ones((2, 4, 10, 8)))["mel"].tolist() == np.full((2, 1, 10, 8), 2).tolist()
