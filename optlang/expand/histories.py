"""Expands histories into states: the entries, their count, and the position of the oldest entry.

``history s: size k`` becomes the states ``s`` (k entries), ``s.count`` (the number of filled entries, which are the
last ones) and ``s.start`` (the row of the oldest entry). ``push s <- x`` becomes an assignment to each of them,
``count(s)`` a read of the second. A ``for`` over a history is kept. In a rule the entries of ``s`` are ordered, oldest
first; in memory they are a ring buffer, so that a push writes one row (:mod:`optlang.ir.histories`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from optlang.core.texts import text_of
from optlang.functions.table import COUNT, EMPTY, PUSH
from optlang.rule import State
from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.walk import rebuilt


def counter(name: str) -> str:
    """Return the name of the state that counts the entries of a history, which no rule can write."""
    return f"{name}.count"


def starter(name: str) -> str:
    """Return the name of the state that holds the row of a history's oldest entry."""
    return f"{name}.start"


def sizes_of(parsed: tree.Tree) -> dict[str, tree.Expr]:
    """Return the sizes of the histories that a rule declares, by name."""
    declared = (item for item in parsed.items if isinstance(item, tree.History))
    return {name.name: item.size for item in declared for name in item.names}


def initial_text(state: State, parsed: tree.Tree) -> str:
    """Return a readable initial value of a state."""
    if state.name in sizes_of(parsed):
        return f"no entries, room for {text_of(parsed, sizes_of(parsed)[state.name])}"
    return "0" if state.initial is None else text_of(parsed, state.initial)


def without_histories(parsed: tree.Tree) -> tree.Tree:
    """Return a rule with its histories as states. A push to something else is kept, for the checker to report."""
    sizes = sizes_of(parsed)
    return replace(parsed, items=rebuilt(parsed.items, lambda new, old: _expanded(new, sizes))) if sizes else parsed


def _expanded(node: tree.Node, sizes: Mapping[str, tree.Expr]) -> tree.Node | tuple[tree.Node, ...]:
    """Return the expansion of a declaration, a ``push`` or a ``count(s)``."""
    match node:
        case tree.Call(function=tree.Name(name=name), arguments=(tree.Argument(name=None, value=tree.Name() as over),)):
            return _name(node.span, over, counter(over.name)) if name == COUNT and over.name in sizes else node
        case tree.History():
            return _declared(node)
        case tree.Push(items=items) if all(name.name in sizes for name, _ in items):
            pushed = (_pushed(node.span, name, value, sizes[name.name]) for name, value in items)
            return tuple(assignment for assignments in pushed for assignment in assignments)
    return node


def _declared(node: tree.History) -> tree.StateDecl:
    """Return the states of a history declaration."""
    items = []
    for name in node.names:
        maker = EMPTY if node.type is None else "zeros"
        initial = _call(node.size.span, maker, node.size)
        items.append(tree.StateItem(name.span, name, None, initial, None))
        count = _name(name.span, name, counter(name.name))
        items.append(tree.StateItem(name.span, count, "scalar", None, f"{name.name}_count"))
        start = _name(name.span, name, starter(name.name))
        items.append(tree.StateItem(name.span, start, "scalar", None, f"{name.name}_start"))
    return tree.StateDecl(node.span, tree.StateScope.TENSOR, tuple(items), None)


def _pushed(span: Span, name: tree.Name, value: tree.Expr, size: tree.Expr) -> tuple[tree.Assign, ...]:
    """Return the assignments for a push."""
    count, start = (_name(name.span, name, of(name.name)) for of in (counter, starter))
    one = tree.Number(name.span, "1", Fraction(1))
    more = _call(name.span, "min", tree.Binary(name.span, "+", count, one), size)
    # Uses the span of the value, so that errors in it are reported where it is stored.
    pushed = tree.Assign(span, (name,), "=", _call(value.span, PUSH, name, value))
    following = tree.Binary(name.span, "%", tree.Binary(name.span, "+", start, one), size)
    return pushed, tree.Assign(span, (count,), "=", more), tree.Assign(span, (start,), "=", following)


def _name(span: Span, history: tree.Name, name: str) -> tree.Name:
    return tree.Name(span, name, f"{COUNT}({history.text})")


def _call(span: Span, name: str, *values: tree.Expr) -> tree.Call:
    return tree.Call(span, tree.Name(span, name, name), tuple(tree.Argument(v.span, None, v) for v in values))
