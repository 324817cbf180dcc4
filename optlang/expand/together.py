"""Expands tuple assignments into assignments to single names.

``a, b = b, a`` reads all right-hand sides before it writes a name. So all values but the last are first bound to new
names; the last can be assigned directly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from optlang.syntax import tree
from optlang.syntax.walk import mapped

Piece = TypeVar("Piece", bound=Any)


def one_by_one(node: Piece) -> Piece:
    """Return a tree, or part of one, in which every assignment has a single target or a call on the right."""
    if isinstance(node, tuple):
        found: list[Any] = []
        for item in node:
            new = one_by_one(item)
            found += new if isinstance(item, tree.Assign) and isinstance(new, tuple) else [new]
        return tuple(found)  # type: ignore[return-value]
    if isinstance(node, tree.Assign) and isinstance(node.value, tree.Tuple):
        return _separated(node, node.value.items)  # type: ignore[return-value]
    if not isinstance(node, tree.Node) or isinstance(node, tree.Expr):
        return node
    return mapped(node, one_by_one)  # type: ignore[no-any-return]


def _separated(node: tree.Assign, values: tuple[tree.Expr, ...]) -> tuple[tree.Assign, ...]:
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
