"""Claims about the world of the embedded model."""

from __future__ import annotations

import numpy as np

from quaver.demo import world


def test_held_out_combinations_are_never_trained_on_and_never_shared():
    train, validation, test = (set(world.combinations(split)) for split in ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    assert len(train) + len(validation) + len(test) == sum(len(i.registers) for i in world.INSTRUMENTS)


def test_every_instrument_of_the_test_is_heard_in_training_in_another_register():
    trained = {name for name, _ in world.combinations("train")}
    assert {name for name, _ in world.combinations("test") + world.combinations("validation")} <= trained


def test_every_family_of_a_held_out_combination_is_heard_in_its_register_on_another_instrument():
    trained = {(world.BY_NAME[name].family, register) for name, register in world.combinations("train")}
    held = world.combinations("test") + world.combinations("validation")
    assert {(world.BY_NAME[name].family, register) for name, register in held} <= trained


def test_a_partial_caption_names_the_instrument_and_says_what_it_says():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sound = world.draw_sound(rng, "test")
        text, said = world.partial_caption(sound, rng)
        assert sound.instrument in text and {"family", "instrument"} <= said
        assert ("texture" in said) == any(text.endswith(f" {word}") for word in world.WORDS[sound.texture])


def test_a_caption_names_what_it_says():
    rng = np.random.default_rng(0)
    for _ in range(500):
        sound = world.draw_sound(rng, "test")
        text, instrument = world.caption(sound, rng), world.BY_NAME[sound.instrument]
        assert any(name in text for name in (instrument.name, *instrument.synonyms))
        assert any(word in text for word in world.WORDS[sound.texture])


def test_labels_follow_the_order_of_the_attributes():
    sound = world.Sound("cello", "middle", "scale", "loud", "reverb")
    assert sound.labels() == (4, 1, 3, 2, 1)


def test_captions_are_distinct_and_seeded():
    once, again = (world.captions(200, np.random.default_rng(3), "validation") for _ in range(2))
    assert once == again and len(set(once)) == 200
