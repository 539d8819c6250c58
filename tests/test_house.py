"""The rules of the house: who may import whom, what is packaged, what is pinned."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from quaver.runtime.config import read_toml

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "runtime": {"runtime"},
    "calib": {"calib", "runtime"},
    "exporter": {"exporter", "calib", "runtime"},
    "demo": {"demo", "runtime"},
}
BASE = {"numpy", "onnxruntime", "safetensors", "tokenizers", "array_api_compat", "tomli", "tomllib", "quaver"}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py") if "data" not in path.parts)
LAZY = [path for path in MODULES if path.relative_to(ROOT).parts[0] != "demo"]
PROJECT = read_toml(ROOT / "pyproject.toml")


def imports(path):
    """The modules a file imports at run time, anywhere in it, as absolute names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write quaver.…"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_from_exporter_to_calib_to_runtime_and_never_up(path):
    layer = path.relative_to(ROOT).parts[0]
    found = {module.split(".")[1] for module in imports(path) if module.startswith("quaver.")}
    assert found <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", LAZY, ids=name)
def test_heavy_libraries_are_reached_through_lazy_need_alone(path):
    found = {module.partition(".")[0] for module in imports(path)}
    assert found - BASE - set(sys.stdlib_module_names) == set()


def test_every_module_imports_with_nothing_but_the_base_install():
    modules = [".".join(("quaver", *path.relative_to(ROOT).with_suffix("").parts)) for path in LAZY]
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"dev", "all"}
    absent = {need.replace("-cu13", "").replace("-", "_") for need in requirements(*extras) - requirements()}
    code = (
        f"import importlib, sys; sys.modules.update(dict.fromkeys({absent}))\n"
        f"for name in {[module.removesuffix('.__init__') for module in modules]}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_list_is_the_tree():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    found = {".".join(("quaver", *path.parent.relative_to(ROOT).parts)) for path in MODULES}
    assert sorted(found) == sorted(listed)
    assert all((ROOT.joinpath(*package.split(".")[1:]) / "__init__.py").exists() for package in listed)


def test_files_are_named_by_nouns_of_the_theory():
    vague = {"utils", "util", "base", "common", "manager", "helper", "helpers", "misc"}
    assert not [name(path) for path in MODULES if path.stem in vague]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_version_installed_is_the_one_written():
    assert version("quaver") == PROJECT["project"]["version"]


def requirements(*names):
    project = PROJECT["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in names)]
    return {re.split(r"[\s\[<>=;!~]", line)[0] for lines in lists for line in lines} - {"quaver"}


def test_constraints_pin_everything_that_all_installs():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in pins if "==" in line}
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"all", "trt"}
    assert requirements(*extras) <= pinned
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+(; python_version (<|>=) '3\.11')?", line) for line in pins)


def test_all_is_every_extra_that_installs_without_a_gpu():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything[len("quaver[") : -1].split(",")) == set(extras) - {"all", "trt"}


def test_the_base_install_is_small():
    assert requirements() == {"array-api-compat", "numpy", "onnxruntime", "safetensors", "tokenizers", "tomli"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "quaver"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "data", "demo-*")
    shutil.copytree(ROOT, source, ignore=left_out)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_quaver_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {file.partition("/")[0] for file in names} == {"quaver", f"quaver-{version('quaver')}.dist-info"}
    code = {file for file in names if file.endswith(".py")}
    assert code == {f"quaver/{name(path)}" for path in MODULES}


@pytest.mark.slow
def test_the_wheel_holds_the_demo_weights_and_the_pages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [
        *(ROOT / "demo" / "model").rglob("*"),
        *ROOT.glob("calib/prompts/*.toml"),
        *ROOT.glob("runtime/measure/page/*.html"),
    ]
    assert {f"quaver/{name(path)}" for path in data if path.is_file()} <= names
    assert wheel.stat().st_size <= 31_000_000
