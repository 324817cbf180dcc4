"""Expands ``iterate n until c`` into a call that may end the step, assigned to a name that nothing reads."""

from __future__ import annotations

from typing import Any

from optlang.functions.table import HALT
from optlang.syntax import tree

#: The target of the call; no rule can write this name.
UNREAD = "no name"


def without_iterations(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the items of a rule with its first ``iterate`` as a statement."""
    first = next((i for i, item in enumerate(items) if isinstance(item, tree.Iterate)), len(items))
    return (*items[:first], *map(_halting, items[first : first + 1]), *items[first + 1 :])


def _halting(node: tree.Iterate) -> tree.Assign:
    until = tree.Bool(node.span, False) if node.until is None else node.until
    arguments = tuple(tree.Argument(value.span, None, value) for value in (node.count, until))
    call = tree.Call(node.span, tree.Name(node.span, HALT, "iterate"), arguments)
    return tree.Assign(node.span, (tree.Name(node.span, UNREAD, "iterate"),), "=", call)
