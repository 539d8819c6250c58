from dataclasses import fields
from pathlib import Path

import pytest

from quaver.exporter.recipe import Recipe, load_recipe
from quaver.exporter.stages import ANALYSES, STAGES
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import read_toml, to_config, to_table, to_toml, tomllib
from quaver.runtime.errors import RecipeError
from quaver.runtime.family import FAMILIES, find_family

COMMITTED = sorted((Path(__file__).parents[2] / "engines").glob("*.toml"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_recipe_loads_and_comes_back_from_its_resolved_form(path):
    recipe = load_recipe(path)
    assert to_config(Recipe, tomllib.loads(to_toml(to_table(recipe)))) == recipe


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_recipe_is_of_a_known_family_and_asks_it_what_it_can_draw(path):
    recipe = load_recipe(path)
    family = find_family(recipe.model.family)
    pictures = family.media == "pictures"
    assert (recipe.prompts.source == "classes") == (pictures and family.asks != "text")
    assert (recipe.prompts.aspects == "pictures") == (pictures and family.asks == "text")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_published_model_has_recipes_of_its_widths(family):
    found = find_family(family)
    widths = ("w8a8", "w4a8", "w8a16") if found.media == "sound" else ("w8a8", "w4a8")
    there = {path.stem: path for path in COMMITTED}
    for name in found.models:
        for width in widths:
            recipe = load_recipe(there[f"{name}-{width}"])
            assert (recipe.model.family, recipe.export.preset) == (family, f"{width[1]}w{width[3:]}a")
            assert recipe.sampling.sampler == found.models[name].sampling["sampler"]


def test_an_empty_recipe_is_all_defaults(tmp_path):
    (tmp_path / "r.toml").write_text("")
    assert load_recipe(tmp_path / "r.toml") == Recipe()


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "r.toml").write_text("[sampling]\nsteps = 5\neta = 1.0\n")
    recipe = load_recipe(tmp_path / "r.toml", ["sampling.steps=7"])
    assert (recipe.sampling.steps, recipe.sampling.eta) == (7, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampl]\nsteps = 5", r"r.toml: unknown section 'sampl'; did you mean 'sampling'\?"),
        ("[sampling]\nstep = 5", r"r.toml: unknown key in \[sampling\] 'step'; did you mean 'steps'\?"),
        ("[sampling]\nsteps = 'many'", r'r.toml: sampling.steps is a string \("many"\), expected an integer'),
        ("[sampling]\nsteps = 0", r"r.toml: sampling.steps is 0, expected 1 or more"),
        ("[sampling\n", r"r.toml is not TOML"),
        ("[export]\ntargets = ['ort-cp']", r"r.toml: unknown target 'ort-cp'; did you mean 'ort-cpu'\?"),
        ("[export]\ntargets = ['ort-cpu', 'ort-cpu']", r"r.toml: export.targets names 'ort-cpu' 2 times"),
        ("[export]\npreset = '8w8b'", r"r.toml: unknown preset '8w8b'; did you mean '8w8a'\?"),
        ("[export]\nisa = 'avx3'", r"r.toml: unknown export.isa 'avx3'; did you mean 'avx2'\?"),
        ("[build]\nbatch = [4, 2, 16]", r"r.toml: build.batch = \[4, 2, 16\]: expected 1 <= min"),
        ("[build]\ncompute_capabilities = ['SM88']", r"r.toml: unknown compute capability of tensorrt-rtx 'SM88'"),
        ("[build]\nhardware = 'ampere-plus'", r"r.toml: build.hardware does nothing for tensorrt-rtx"),
    ],
)
def test_what_cannot_be_meant_names_the_file_and_the_fix(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / "r.toml")
    assert "\n" not in str(caught.value) and str(caught.value).count("r.toml") == 1


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "demo-w8a8.toml").write_text("")
    with pytest.raises(RecipeError, match=r"no recipe .*demo-w8a.toml: did you mean .*demo-w8a8.toml\?"):
        load_recipe(tmp_path / "demo-w8a.toml")
    (tmp_path / "demo-w8a8").mkdir()
    with pytest.raises(RecipeError, match=r"is a folder, expected a recipe: did you mean .*demo-w8a8.toml\?"):
        load_recipe(tmp_path / "demo-w8a8")
    with pytest.raises(RecipeError, match=r"is not a recipe: expected a .toml file"):
        load_recipe(tmp_path / "demo.yaml")


def test_every_section_is_read_by_a_stage_and_every_stage_reads_sections_that_exist():
    read = {section for stage in (*STAGES, *ANALYSES) for section in stage.settings}
    assert read | {"machine"} == {field.name for field in fields(Recipe)}  # what a run may take is in no digest


def test_a_stage_reads_only_what_stages_before_it_write():
    bundle, recipe, written = Bundle(Path("b")), Recipe(), set()
    for stage in (*STAGES, *ANALYSES):
        inside = {path for path in stage.reads(bundle, recipe) if path.is_relative_to("b")}
        assert inside <= written, stage.name
        written |= {*stage.writes(bundle, recipe), *stage.beside(bundle, recipe)}


def test_the_stages_name_functions_that_take_what_they_are_given():
    import inspect

    from quaver.runtime.plug import plug

    for stage in (*STAGES, *ANALYSES):
        parameters = inspect.signature(plug(stage.run, {}, what="stage")).parameters
        positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(positional) == 1 + len(stage.settings), stage.name
        keywords = {"stamp", "progress"} | ({"fanout"} if stage.sharded else set())
        assert keywords == {p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_the_build_stage_says_of_every_plan_where_it_is_told_that_it_was_left_out():
    recipe = to_config(Recipe, {"export": {"targets": ["ort-cpu", "tensorrt-11", "tensorrt-rtx"]}})
    (build,) = [stage for stage in STAGES if stage.name == "build"]
    told = [path.name for path in build.beside(Bundle(Path("b")), recipe)]
    assert told == ["unet.tensorrt-11.plan.json", "unet.tensorrt-rtx.plan.json"]


def test_without_its_target_the_plan_is_neither_read_nor_written():
    recipe = to_config(Recipe, {"export": {"targets": ["ort-cpu"]}})
    (build,) = [stage for stage in STAGES if stage.name == "build"]
    assert build.reads(Bundle(Path("b")), recipe) == build.writes(Bundle(Path("b")), recipe) == []


def test_the_recipe_files_are_toml_that_anyone_can_read():
    assert COMMITTED and all(set(read_toml(path)) <= {field.name for field in fields(Recipe)} for path in COMMITTED)
