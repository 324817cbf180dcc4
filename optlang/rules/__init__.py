"""The library: every ``.opt`` file of this folder is an optimizer class.

``optlang.rules.AdamW`` is a class, so is ``optlang.rules["adamw"]``. A class is compiled when it is first asked for,
and kept; listing the library neither compiles anything nor imports torch.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from optlang.classes import class_of
from optlang.source import Source
from optlang.syntax.library import rule_files
from optlang.syntax.suggest import nearest


def _find(name: str) -> str:
    """Return the class name that ``name`` stands for, whatever its capitals."""
    for known in rule_files():
        if known.lower() == name.lower():
            return known
    close = nearest(name, rule_files())
    hint = f"; did you mean {close}?" if close else f"; there are {', '.join(rule_files())}"
    raise KeyError(f"the library has no rule named {name!r}{hint}")


@cache
def _class(name: str) -> Any:
    """Compile a rule of the library, by its class name."""
    file = rule_files()[name]
    # Pickles name the class by where it is found, which is here.
    return class_of(Source(file.read_text(encoding="utf-8"), file.name), name, module=__name__)


def names() -> list[str]:
    """Return the names of the library's classes."""
    return list(rule_files())


def path(name: str) -> Path:
    """Return the file of a rule, to read or to start a rule of one's own from.

    Args:
        name: The class name; capitals do not count.

    Raises:
        KeyError: There is no such rule; the message names the nearest.
    """
    return rule_files()[_find(name)]


class _Rules(ModuleType):
    """This module, with a class for each rule as attribute and as item."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in rule_files():
            try:
                close = _find(name)
            except KeyError as error:
                raise AttributeError(f"module 'optlang.rules': {error.args[0]}") from None
            raise AttributeError(f"module 'optlang.rules': did you mean {close}?")
        return _class(name)

    def __getitem__(self, name: str) -> Any:
        return _class(_find(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(name.lower() == known.lower() for known in rule_files())

    def __dir__(self) -> list[str]:
        return [*names(), "names", "path"]


sys.modules[__name__].__class__ = _Rules
