"""The pieces that rules are made of: every ``.opt`` file of this folder is a transform.

``optlang.transforms.momentum(beta=0.9)`` is a link of ``optlang.chain``. In a rule, the same transform is
``g |> momentum(0.9)``. Transforms of one's own are read with ``load``.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from optlang.chaining import Link, Transform
from optlang.checker.check import check_text
from optlang.diagnostics import raise_errors
from optlang.source import Source
from optlang.syntax import tree
from optlang.syntax.library import transform_files
from optlang.syntax.parse import parse
from optlang.syntax.suggest import nearest


def names() -> list[str]:
    """Return the names of the library's transforms."""
    return list(transform_files())


def path(name: str) -> Path:
    """Return the file of a transform, to read or to start one of one's own from.

    Args:
        name: The name of the transform.

    Raises:
        KeyError: There is no such transform; the message names the nearest.
    """
    if name not in transform_files():
        close = nearest(name, names())
        hint = f"; did you mean {close}?" if close else f"; there are {', '.join(names())}"
        raise KeyError(f"the library has no transform named {name!r}{hint}")
    return transform_files()[name]


def load(transform: str | os.PathLike[str]) -> Transform:
    """Return a transform of one's own.

    Args:
        transform: Its text, a path, or a string that ends in ``.opt``. There may be functions (``def``) beside it.

    Raises:
        FileNotFoundError: If the file is not there.
        OptlangError: If the text has errors.
        ValueError: If it holds something else, or not one transform.
    """
    if isinstance(transform, os.PathLike) or (transform.strip().endswith(".opt") and "\n" not in transform.strip()):
        return _read(Source(Path(transform).read_text(encoding="utf-8"), os.fspath(transform)), True)
    return _read(Source(transform), True)


def _read(source: Source, own: bool) -> Transform:
    """Return the transform in a text."""
    raise_errors(check_text(source)[1])
    parsed = parse(source)
    found = [item for item in parsed.items if isinstance(item, tree.TransformDecl)]
    if len(found) != 1 or not all(isinstance(item, tree.TransformDecl | tree.Def) for item in parsed.items):
        raise ValueError(f"{source.name} does not hold one transform, and functions beside it")
    doc = parsed.doc.value if parsed.doc else f"The transform {found[0].name.name}."
    text = source.text[parsed.doc.span.end :] if parsed.doc else source.text
    return Transform(found[0].name.name, found[0].parameters[1:], doc, text.strip() if own else None)


@cache
def _transform(name: str) -> Transform:
    """Return a transform of the library."""
    file = path(name)
    return _read(Source(file.read_text(encoding="utf-8"), file.name), False)


class _Transforms(ModuleType):
    """This module, with each transform as attribute and as item."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in transform_files():
            try:
                path(name)
            except KeyError as error:
                raise AttributeError(f"module 'optlang.transforms': {error.args[0]}") from None
        return _transform(name)

    def __getitem__(self, name: str) -> Transform:
        return _transform(name)

    def __contains__(self, name: object) -> bool:
        return name in transform_files()

    def __dir__(self) -> list[str]:
        return [*names(), "Link", "Transform", "load", "names", "path"]


__all__ = ["Link", "Transform", "load", "names", "path"]

sys.modules[__name__].__class__ = _Transforms
