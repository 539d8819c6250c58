"""Settings: TOML to nested frozen dataclasses and back.

A settings class lies beside the code that uses it; a table of the file becomes one of them, key by key. A key that no
class has is an error naming the nearest one it has; a value of another type is an error with observed and expected.

    value in TOML                type of the field
    true, 3, 3.0, "text"         bool, int, float (an integer will do), str, Path, Literal
    [1, 2]                       tuple[int, ...], tuple[int, int], list[int]
    [table], { k = v }           a dataclass, Mapping[str, T]
    [[table]]                    tuple[dataclass, ...]
    absent                       the default; None when the field may be None
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from quaver.runtime.errors import RecipeError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises: RecipeError when it is not there or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error


def override(table: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of `table` with each "section.key=value" set; a value that is not TOML is taken as text.

    Raises: RecipeError when one has no "=" or goes through a value that is no table.
    """
    result = deepcopy(dict(table))
    for setting in settings:
        name, equals, text = setting.partition("=")
        *sections, key = name.strip().split(".")
        if not equals or not key or not all(sections):
            raise RecipeError(f"cannot set {setting!r}: expected section.key=value, for example sampling.steps=20")
        at = result
        for section in sections:
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise RecipeError(f"cannot set {setting!r}: {section} is a value, not a section")
        at[key] = _value(text.strip())
    return result


def to_config(kind: type[T], table: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass `kind` from a table; `where` is its dotted name in messages.

    Raises: RecipeError on an unknown key, a missing one, or a value of another type.
    """
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise RecipeError(unknown("section" if not where else f"key in [{where}]", key, hints))
    values = {key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in table.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{where}.{field.name} is missing: add it to the recipe".lstrip("."))
    try:
        return kind(**values)
    except ValueError as error:  # a settings class that checks itself
        raise RecipeError(f"[{where}] {error}") from error


def to_table(config: Any) -> dict[str, Any]:
    """The nested dictionary of a dataclass, in the order of its fields, without those that are None."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def to_toml(table: Mapping[str, Any]) -> str:
    """A nested dictionary as TOML, plain values before tables."""
    return "\n\n".join(_blocks(table, "")).strip() + "\n"


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _first(arguments, value, where, kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise RecipeError(unknown(where, str(value), map(str, arguments)))
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return to_config(kind, value, where=where)
    if origin in (tuple, list) and isinstance(value, list):
        return _sequence(origin, arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is kind:
        return value
    raise RecipeError(f"{where} is {_described(value)}, expected {_named(kind)}")


def _first(kinds: Sequence[Any], value: Any, where: str, union: Any) -> Any:
    """The value as the first member of a union that takes it."""
    options = [kind for kind in kinds if kind is not NoneType]
    if len(options) == 1:
        return _convert(options[0], value, where)
    for kind in options:
        try:
            return _convert(kind, value, where)
        except RecipeError:
            continue
    raise RecipeError(f"{where} is {_described(value)}, expected {_named(union)}")


def _sequence(origin: Any, kinds: Sequence[Any], values: list[Any], where: str) -> Any:
    if origin is tuple and Ellipsis not in kinds:
        if len(kinds) != len(values):
            raise RecipeError(f"{where} has {len(values)} values, expected {len(kinds)}")
    else:
        kinds = [kinds[0]] * len(values)
    pairs = enumerate(zip(kinds, values, strict=True))
    return origin(_convert(kind, value, f"{where}[{index}]") for index, (kind, value) in pairs)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_table(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _blocks(table: Mapping[str, Any], name: str) -> Iterable[str]:
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    if lines:
        yield "\n".join([f"[{name}]"] * bool(name) + lines)
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _blocks(value, f"{name}.{_key(key)}".lstrip("."))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())} }}"
    return str(value)


def _key(name: str) -> str:
    bare = name and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if bare else _string(name)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _described(value: Any) -> str:
    return f"{_WORDS.get(type(value), type(value).__name__)} ({_toml(value)})"


def _named(kind: Any) -> str:
    if isinstance(kind, type) and is_dataclass(kind):
        return "a table"
    origin = get_origin(kind)
    return _WORDS.get(kind) or _WORDS.get(origin) or str(kind).replace("NoneType", "nothing")


_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a string",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}
