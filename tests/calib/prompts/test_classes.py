import numpy as np

from quaver.calib.prompts import PromptSettings, load_prompts, make_prompts
from quaver.calib.prompts.classes import class_prompts, class_rows
from quaver.runtime.artifact import Stamp
from quaver.runtime.bundle import Bundle
from quaver.runtime.progress import quiet


def test_every_class_is_drawn_once_before_any_is_drawn_again():
    drawn = class_prompts(5, 12, np.random.default_rng(0))
    names = {f"class {number}" for number in range(5)}
    assert set(drawn[:5]) == set(drawn[5:10]) == names and len(set(drawn[10:])) == 2
    assert drawn[:5] != drawn[5:10]


def test_classes_held_back_are_others_while_there_are_others():
    rows = list(class_rows(10, 6, 4, np.random.default_rng(0)))
    splits = {split: {row["text"] for row in rows if row["split"] == split} for split in ("calib", "validate")}
    assert {split: len(texts) for split, texts in splits.items()} == {"calib": 6, "validate": 4}
    assert not splits["calib"] & splits["validate"]


def test_a_model_without_classes_has_prompts_that_count_its_samples(tmp_path):
    settings = PromptSettings(source="classes", count=3, held_out=2)
    make_prompts(Bundle(tmp_path), settings, stamp=Stamp("prompts"), progress=quiet())
    calib, held = (load_prompts(Bundle(tmp_path), split) for split in ("calib", "validate"))
    assert [row["text"] for row in calib + held] == ["no class"] * 5
    assert len({row["id"] for row in calib + held}) == 5
