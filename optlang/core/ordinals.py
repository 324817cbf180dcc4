"""Ordinals that identify the calls of a rule that must stay distinct.

These are random draws, sums over the model and evaluations of the closure. Calls are numbered in source order,
independently of formatting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from optlang.functions.table import EVALUATIONS, RANDOMS
from optlang.rule import Rule
from optlang.syntax import tree as ast
from optlang.syntax.walk import block_expressions, body_of, expressions, own_expressions, statements

#: Functions that sum over the whole model.
SUMS: tuple[str, ...] = ("total", "gnorm")

#: Functions by group. Each group is numbered separately, so that adding a sum does not change what is drawn.
GROUPS: tuple[Collection[str], ...] = (RANDOMS, SUMS, EVALUATIONS)


class Ordinals:
    """The ordinals of the calls and loops of a rule.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._known: dict[Collection[str], dict[int, int]] = {}

    def around(self, name: str) -> dict[int, int]:
        """Return the ordinals, by ``id``, of the calls of a function and of the calls and loops that enclose them."""
        group = next(names for names in GROUPS if name in names)
        if group not in self._known:
            self._known[group] = self._numbered(self._leading_to(group))
        return self._known[group]

    def _leading_to(self, names: Collection[str]) -> set[str]:
        """Return the given functions and the rule's functions that call them, directly or not."""
        leading, before = {*names}, 0
        while len(leading) > before:
            before = len(leading)
            functions = self.rule.functions.items()
            leading |= {
                name for name, function in functions if any(_calls(block_expressions(body_of(function)), leading))
            }
        return leading

    def _numbered(self, names: Collection[str]) -> dict[int, int]:
        """Return the ordinals of the calls of the given functions, and of the loops around them."""
        rule, found = self.rule, dict[int, int]()
        for block in (rule.body, *rule.events.values(), *map(body_of, rule.functions.values())):
            for statement in statements(block):
                loops = isinstance(statement, (ast.Repeat, ast.For))
                if loops and any(_calls(block_expressions((statement,)), names)):
                    found[id(statement)] = len(found)
                for top in own_expressions(statement):
                    for call in _calls(expressions(top), names):
                        found[id(call)] = len(found)
        return found


def _calls(nodes: Iterable[ast.Expr], names: Collection[str]) -> Iterator[ast.Call]:
    """Yield the calls of the given functions."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) and node.function.name in names:
            yield node
