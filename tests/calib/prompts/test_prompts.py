"""The stage `prompts`: what it writes and which sources it refuses."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from quaver.calib.prompts import PromptSettings, load_prompts, make_prompts
from quaver.calib.prompts.source import read_captions
from quaver.runtime.artifact import Stamp, load_lines
from quaver.runtime.bundle import Bundle
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress, quiet

SVG = "{http://www.w3.org/2000/svg}"
SMALL = PromptSettings(count=12, budget=6, held_out=5)


def make(tmp_path: Path, settings: PromptSettings) -> Bundle:
    bundle = Bundle(tmp_path / "bundle")
    assert make_prompts(bundle, settings, stamp=Stamp("prompts"), progress=quiet()) == bundle.prompts
    return bundle


def write(tmp_path: Path, content: str | bytes, name: str = "captions.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_grammar_fills_both_splits_with_distinct_captions(tmp_path: Path) -> None:
    bundle = make(tmp_path, SMALL)
    calib, held = load_prompts(bundle, "calib"), load_prompts(bundle, "validate")
    assert len(calib) >= 18 and len(held) == 5
    assert [row["origin"] for row in calib[:12]] == ["base"] * 12
    rows = load_lines(bundle.prompts, "prompts")
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)
    assert {name for row in calib for name in row["coverage"]} >= {"music", "speech", "reverberation"}


def test_the_same_settings_write_the_same_bytes(tmp_path: Path) -> None:
    first = make(tmp_path / "a", SMALL).prompts.read_bytes()
    assert first == make(tmp_path / "b", SMALL).prompts.read_bytes()
    assert first != make(tmp_path / "c", replace(SMALL, seed=1)).prompts.read_bytes()


def test_a_file_is_the_base_and_the_rest_of_it_is_held_back(tmp_path: Path) -> None:
    texts = [f"a soft low cello note {n}" for n in range(20)]
    source = write(tmp_path, "\n".join(texts) + "\n\n")
    bundle = make(tmp_path, replace(SMALL, source=str(source), tau=1.0))
    base = [row["text"] for row in load_prompts(bundle, "calib") if row["origin"] == "base"]
    held = [row["text"] for row in load_prompts(bundle, "validate")]
    assert len(base) == 12 and len(held) == 5
    assert set(base) | set(held) <= set(texts) and not set(base) & set(held)


def test_the_table_and_the_picture_show_before_and_after(tmp_path: Path) -> None:
    stream = io.StringIO()
    bundle = Bundle(tmp_path)
    source = write(tmp_path, "\n".join(f"a soft cello {n} & <b>" for n in range(17)))
    settings = replace(SMALL, source=str(source), tau=1.0)
    make_prompts(bundle, settings, stamp=Stamp("prompts"), progress=Progress(stream))
    table = {line.rsplit(maxsplit=4)[0].strip(): line.split()[-4:] for line in stream.getvalue().splitlines()}
    assert table["music"][:2] == ["12", "100%"] and table["speech"][:2] == ["0", "0%"] != table["speech"][2:]
    assert re.search(r"covered +2 of 16 +16 of 16\n", stream.getvalue())
    rows = load_prompts(bundle, "calib")
    drawn = ElementTree.fromstring(bundle.prompts_picture.read_text(encoding="utf-8"))
    titles = [title.text for title in drawn.iter(f"{SVG}title")][1:]
    assert sorted(titles) == sorted(row["text"] for row in rows)
    cells = sum(path.get("d", "").count("M") for path in drawn.iter(f"{SVG}path"))
    assert cells == sum(len(row["coverage"]) for row in rows)
    assert drawn.get("aria-label") == f"16 of 16 aspects covered by {len(rows)} prompts"


def test_a_users_aspects_and_generator_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aspects = write(
        tmp_path, "".join(f'[[aspect]]\nname = "{n}"\nwords = ["{n}"]\n' for n in ("<hum>", "buzz")), "mine.toml"
    )
    module = types.ModuleType("my_captions")
    module.write = lambda aspects: lambda targets, context, rng: f"the {targets[0].name} of machine {len(context)}"
    monkeypatch.setitem(sys.modules, "my_captions", module)
    source = write(tmp_path, "\n".join(f"a buzz {n}" for n in range(5)))
    settings = PromptSettings(
        str(source), str(aspects), generator="my_captions:write", count=4, held_out=1, budget=4, tau=1.0
    )
    bundle = make(tmp_path, settings)
    assert [row["coverage"] for row in load_prompts(bundle, "calib")] == [["buzz"]] * 4 + [["<hum>"]] * 4
    assert "<hum>" not in bundle.prompts_picture.read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match=r"unknown generator \(or 'llm'\) 'gramar'; did you mean 'grammar'"):
        make(tmp_path, replace(settings, generator="gramar"))


def test_rows_marked_validate_are_the_ones_held_back(tmp_path: Path) -> None:
    rows = [{"text": f"a piano {n}", "split": "validate" if n < 5 else "calib"} for n in range(17)]
    source = write(tmp_path, "\n".join(map(json.dumps, rows)), "captions.jsonl")
    bundle = make(tmp_path, replace(SMALL, source=str(source), tau=1.0))
    assert {row["text"] for row in load_prompts(bundle, "validate")} == {f"a piano {n}" for n in range(5)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no caption: write one a line"),
        ("a.txt", "\n  \n", "holds no caption"),
        ("a.txt", "Geräusch".encode("latin-1"), r"is not UTF-8 \(line 1, byte 3\): save it as UTF-8.* 'iconv -f"),
        ("a.txt", "a dog\na cat\na  dog", "line 3 repeats line 1, 'a dog': remove one"),
        ("a.txt", "a dog\n" + "x" * 10_000, r"line 2 is no caption of 1 to 512 printable characters \(it has 10000"),
        ("a.txt", "a dog\a", "line 1 is no caption"),
        ("a.jsonl", '{"text": "a dog"}\nnot json', "line 2 is no JSON object with a text"),
        ("a.jsonl", '{"caption": "a dog"}', r'write it as \{"text": "a dog barking"\}'),
        ("a.jsonl", '{"text": null}', "line 1 is no JSON object with a text"),
        ("a.jsonl", '{"text": "a dog", "split": "test"}', "of the split 'test': write 'calib' or 'validate', or none"),
    ],
)
def test_a_bad_source_is_one_clear_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_captions(write(tmp_path, content, name))


def test_a_missing_source_and_too_small_a_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"No such file.*or 'grammar'"):
        read_captions(tmp_path / "nowhere.txt")
    source = write(tmp_path, "a dog\na cat\n")
    with pytest.raises(RecipeError, match=r"asks for 17 captions.* has 2: lower one"):
        make(tmp_path, replace(SMALL, source=str(source)))


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"held_out": -1}, {"budget": -1}, {"i_max": -1}, {"tau": -0.1}, {"tau": float("nan")}]
)
def test_numbers_that_cannot_be_meant_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"prompts\.count must be at least 1; held_out"):
        make(tmp_path, replace(SMALL, **wrong))
