"""Names to functions through literal tables of "module:function".

A table is data, so that listing what there is imports nothing. Wherever a name is accepted, so is a user's own
function, spelled "package.module:function".
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from quaver.runtime.errors import RecipeError, unknown


def plug(name: str, table: Mapping[str, str], *, what: str) -> Any:
    """The object that `name` stands for in `table`, or the one a dotted path names.

    Raises: RecipeError naming the nearest entry of the table, or the part of the path that is not there.
    """
    spec = table.get(name, name)
    module, colon, attribute = spec.partition(":")
    if not colon:
        raise RecipeError(unknown(what, name, table) + ", or your own function as 'package.module:function'")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "-"):
            raise  # the module is there and something it imports is not
        raise RecipeError(f"{what} {name!r}: no module {error.name!r} on the import path") from error
    except AttributeError as error:
        raise RecipeError(f"{what} {name!r}: {module} has no {attribute!r}") from error
