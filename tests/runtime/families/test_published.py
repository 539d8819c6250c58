"""The families of published models: what their networks are fed and what their cards say, on stand-in engines."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.runtime.errors import QuaverError
from quaver.runtime.families import ldm, make_an_audio, tango
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
    for model in find_family(name).models.values():
        schedule = read_schedule(model.scheduler)
        SamplingSettings(**model.sampling)
        assert len(schedule.alpha_bar) == 1000 and schedule.alpha_bar_final == schedule.alpha_bar[0]
        assert (schedule.prediction == "v_prediction") == (name == "tango")
        assert len(model.latent) == 3 and model.licence
        assert bool(model.sample_rate) == (find_family(name).media == "sound")


def test_make_an_audio_without_its_vocoder_ends_at_the_mel():
    assert make_an_audio.fit({"components": {"vocoder": "sha256:"}}, None) is make_an_audio.FAMILY
    family = make_an_audio.fit({"components": {"text_encoder": "", "vae_decoder": ""}}, None)
    assert (family.media, family.components) == ("mels", ("text_encoder", "vae_decoder"))
    parts = Parts({}, {"vae_decoder": Engine(lambda latents: latents[:, :1] * 2, "latents")})
    assert family.decode(parts, np.ones((2, 4, 10, 8)))["mel"].tolist() == np.full((2, 1, 10, 8), 2).tolist()
