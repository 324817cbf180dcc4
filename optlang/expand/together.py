"""Several names that get a value each, written as assignments to one name.

In ``a, b = b, a`` every right side is read before a name is written. So all values but the last get names of their own
first; the last one may be written at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from optlang.syntax import tree
from optlang.syntax.walk import mapped

Piece = TypeVar("Piece", bound=Any)


def one_by_one(node: Piece) -> Piece:
    """Return a tree, or a piece of one, in which every assignment is to one name, or of one call."""
    if isinstance(node, tuple):
        found: list[Any] = []
        for item in node:
            new = one_by_one(item)
            found += new if isinstance(item, tree.Assign) and isinstance(new, tuple) else [new]
        return tuple(found)  # type: ignore[return-value]
    if isinstance(node, tree.Assign) and isinstance(node.value, tree.Tuple):
        return _written_out(node, node.value.items)  # type: ignore[return-value]
    if not isinstance(node, tree.Node) or isinstance(node, tree.Expr):
        return node
    return mapped(node, one_by_one)  # type: ignore[no-any-return]


def _written_out(node: tree.Assign, values: tuple[tree.Expr, ...]) -> tuple[tree.Assign, ...]:
    *targets, last = node.targets
    *others, final = values
    held = [replace(target, name=f"{target.name}.new", text=target.text) for target in targets]
    places = [target.span.to(value.span) for target, value in zip(node.targets, values, strict=True)]
    read = (tree.Assign(place, (name,), "=", value) for place, name, value in zip(places, held, others, strict=False))
    written = (
        tree.Assign(place, (target,), "=", replace(name, span=value.span))
        for place, target, name, value in zip(places, targets, held, others, strict=False)
    )
    return (*read, tree.Assign(places[-1], (last,), "=", final), *written)
