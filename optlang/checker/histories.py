"""Checks histories: pushes, and the bodies of ``for`` loops over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optlang.declarations.scope import Scope
from optlang.functions.table import BUILTINS, CLOSURE, COUNT, PUSH, RANDOM, WHOLE
from optlang.syntax.tree import Assign, Call, Every, Expr, For, If, Index, Name, Push, StateScope, Stmt
from optlang.syntax.walk import blocks, expressions, own_expressions, statements

#: Function groups not allowed in such a loop, because they wait for the model or draw numbers, with messages.
OUTSIDE = {WHOLE: "is the same for every entry", CLOSURE: "calls the closure", RANDOM: "draws random numbers"}


def check_histories(scope: Scope, body: tuple[Stmt, ...], others: Iterable[tuple[Stmt, ...]]) -> None:
    """Check how a rule uses its histories.

    Args:
        scope: The names of the rule.
        body: Its statements.
        others: The statements of functions and ``on`` blocks, where histories are not allowed.
    """
    _Histories(scope).block(body, {})
    for block in others:
        for statement in statements(block):
            if isinstance(statement, For) and statement.over_name in scope.histories:
                label, help = "inside a function or an `on` block", "move the loop out of it"
                _add(scope, "only a step can loop over a history", statement.over, label, help)
            _Histories(scope).pushes(statement)
            _Histories(scope).loose_entry(statement, {})


def _add(scope: Scope, message: str, place: Expr | Stmt, label: str, help: str) -> None:
    scope.findings.add("E316", message, place.span, label=label, help=help)


class _Histories:
    """Checks the statements of a rule; tracks the histories of enclosing loops by loop variable."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def block(self, body: Iterable[Stmt], around: Mapping[str, str]) -> None:
        """Check a block."""
        for statement in body:
            self.pushes(statement)
            self.loose_entry(statement, around)
            inside = around
            if isinstance(statement, For) and statement.over_name in self.scope.histories:
                inside = {**around, statement.name.name: statement.over_name}
            if around and isinstance(statement, If):
                self.conditional(statement)
            if around:
                self.inside(statement, around)
            for inner in blocks(statement):
                self.block(inner, inside)

    def pushes(self, statement: Stmt) -> None:
        """Report a push to something that is not a history."""
        if isinstance(statement, Push):
            name = next(name for name, _ in statement.items if name.name not in self.scope.histories)
            help = f"declare it: `history {name.text}: size 10`"
            _add(self.scope, f"`{name.text}` is not a history", name, "expected the name of a history", help)
            self.scope.excused.add(name.name)
        for expr in own_expressions(statement):
            for node in expressions(expr):
                if isinstance(node, Call) and isinstance(node.function, Name) and node.function.name == COUNT:
                    message = "`count` takes a history and returns how many of its entries are filled"
                    _add(
                        self.scope, message, node, "expected the name of a history", "declare it: `history s: size 10`"
                    )
                    self.scope.excused.add(COUNT)

    def loose_entry(self, statement: Stmt, around: Mapping[str, str]) -> None:
        """Report ``a[i] = x`` where i is not a position in a history."""
        if not isinstance(statement, Assign) or statement.at is None:
            return
        (target,) = statement.targets
        if statement.at.name not in around or target.name in self.scope.states or target.name in ("p", "g"):
            self.scope.findings.add(
                "E115",
                "part of a tensor cannot be assigned",
                statement.span,
                label="expected a name",
                help="assign the whole tensor, computed from its parts; in `for i in s:`, `a[i] = x` gives a local "
                "variable one value per entry of the history s",
            )
        elif statement.op != "=":
            help = (
                f"write `{target.text}[{statement.at.text}] = {target.text}[{statement.at.text}] {statement.op[0]} ...`"
            )
            self.scope.findings.add(
                "E115", f"`{statement.op}` changes one name at a time", statement.span, label="an entry", help=help
            )

    def conditional(self, node: If) -> None:
        """Report entries filled in conditionally: either all are filled or none."""
        for statement in statements((node,)):
            if isinstance(statement, Assign) and statement.at is not None:
                target, at = statement.targets[0].text, statement.at.text
                help = f"choose the value instead: `{target}[{at}] = x if CONDITION else y`"
                _add(
                    self.scope,
                    f"`{target}[{at}]` is assigned under a condition",
                    statement,
                    "not always assigned",
                    help,
                )

    def inside(self, statement: Stmt, around: Mapping[str, str]) -> None:
        """Check a statement inside a loop."""
        scope = self.scope
        if isinstance(statement, Every):
            message, help = "`every` cannot be used in a `for` over a history", "move the loop into it"
            _add(scope, message, statement, "this block", help)
        if isinstance(statement, Assign):
            for target in statement.targets:
                if target.name in scope.states and scope.states[target.name].scope is not StateScope.TENSOR:
                    help = "compute its new value in the loop, and assign it after the loop"
                    _add(
                        scope,
                        f"`{target.text}` does not belong to a single tensor",
                        target,
                        "assigned for every entry",
                        help,
                    )
        for expr in own_expressions(statement):
            places = {id(item) for e in expressions(expr) if isinstance(e, Index) for item in e.items}
            for node in expressions(expr):
                if isinstance(node, Name) and node.name in around and id(node) not in places:
                    message, history = f"`{node.text}` is an index into a history, not a number", around[node.name]
                    help = f"use it as an index: `{history}[{node.text}]`; the number of entries is `count({history})`"
                    _add(scope, message, node, "expected `[ ]` around it", help)
                if isinstance(node, Call) and isinstance(node.function, Name):
                    self.called(node, node.function.name)

    def called(self, node: Call, name: str) -> None:
        """Check a call inside a loop."""
        if name == PUSH:
            message, help = (
                "a history cannot change in a `for` over a history",
                "push before the loop, or after it",
            )
            _add(self.scope, message, node, "pushed here", help)
        elif name in BUILTINS and BUILTINS[name].group in OUTSIDE:
            reason = OUTSIDE[BUILTINS[name].group]
            help = "compute it before the loop, and assign it to a variable"
            _add(self.scope, f"`{name}` cannot be used in a `for` over a history: it {reason}", node, "used here", help)
