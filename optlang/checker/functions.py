"""Checks a rule's functions: parameters, recursion, ``return``, and the number of results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from optlang.declarations.scope import FIXED, Scope
from optlang.functions.table import BUILTINS, Builtin
from optlang.source import Span
from optlang.syntax.suggest import listing
from optlang.syntax.tree import Call, Def, Every, Expr, For, If, Name, Repeat, Return, Stmt
from optlang.syntax.walk import blocks, body_of, called, statements


def signature(function: Def) -> str:
    """Return the signature of a function as written in a call: ``f(x, y = ...)``."""
    shown = [p.name.text + (" = ..." if p.default is not None else "") for p in function.parameters]
    return f"{function.name.text}({', '.join(shown)})"


def declare_function(function: Def, scope: Scope) -> None:
    """Check the signature of a ``def`` and add it to the scope."""
    name = function.name
    if scope.declare(name.name, name.text, name.span):
        scope.functions[name.name] = function
    seen: dict[str, Span] = {}
    optional: Name | None = None
    for parameter in function.parameters:
        own = parameter.name
        if own.name in seen:
            scope.findings.add(
                "E205",
                f"`{own.text}` is declared twice",
                own.span,
                label="second parameter of this name",
                help="give it another name",
                related=(("first declared here", seen[own.name]),),
            )
        elif own.name in FIXED:
            scope.free(own.name, own.text, own.span)
        if parameter.default is not None:
            optional = own
        elif optional is not None:
            scope.findings.add(
                "E208",
                f"`{own.text}` has no default but follows `{optional.text}`, which has one",
                own.span,
                label="expected `= VALUE`",
                help="put the parameters without a default first",
            )
        seen[own.name] = own.span


def check_functions(scope: Scope) -> bool:
    """Check the structure of all functions; return whether they can be inlined."""
    for function in scope.functions.values():
        _check_returns(function, scope)
    return not _recursion(scope)


def _recursion(scope: Scope) -> bool:
    """Report recursive functions, directly or indirectly."""
    state: dict[str, str] = {}
    found = False

    def visit(name: str, chain: tuple[str, ...]) -> None:
        nonlocal found
        state[name] = "open"
        for callee in called(body_of(scope.functions[name])):
            if callee.name not in scope.functions:
                continue
            if state.get(callee.name) == "open":
                found = True
                loop = (*chain[chain.index(callee.name) :], callee.name)
                scope.findings.add(
                    "E212",
                    f"`{callee.text}` calls itself" + (f": {' -> '.join(loop)}" if len(loop) > 2 else ""),
                    callee.span,
                    label="recursive call",
                    help="functions are inlined where they are called, so they cannot recurse; write the steps one "
                    "after another",
                )
            elif callee.name not in state:
                visit(callee.name, (*chain, callee.name))
        state[name] = "done"

    for name in scope.functions:
        if name not in state:
            visit(name, (name,))
    return found


# Returns ----------------------------------------------------------------------------------------------------


def _check_returns(function: Def, scope: Scope) -> None:
    if not isinstance(function.body, tuple):
        return
    if not always_returns(function.body):
        last = function.body[-1].span if function.body else function.span
        some = any(isinstance(s, Return) for s in statements(function.body))
        scope.findings.add(
            "E213",
            f"`{function.name.text}` " + ("does not return a value on every path" if some else "returns nothing"),
            function.name.span if not some else last,
            label="expected a `return` after this" if some else "expected a `return` in its body",
            help="end every path with `return EXPRESSION`",
        )
    _check_unreachable(function.body, scope)
    _check_loops(function.body, scope)
    counts = {len(r.values): r for r in reversed(list(statements(function.body))) if isinstance(r, Return)}
    if len(counts) > 1:
        first, *rest = sorted(counts.values(), key=lambda r: r.span)
        here, before = _values(len(rest[0].values)), _values(len(first.values))
        scope.findings.add(
            "E214",
            f"`{function.name.text}` returns {here} here and {before} elsewhere",
            rest[0].span,
            label=f"expected {before}",
            help="every `return` of a function must give the same number of values",
            related=((f"returns {before} here", first.span),),
        )


def _check_unreachable(block: Sequence[Stmt], scope: Scope) -> None:
    for statement, following in pairwise(block):
        if always_returns((statement,)):
            scope.findings.add(
                "E213",
                "nothing after a `return` is executed",
                following.span,
                label="unreachable",
                help="remove it, or move it before the `return`",
            )
            break
    for statement in block:
        for body in blocks(statement):
            _check_unreachable(body, scope)


def _check_loops(block: Sequence[Stmt], scope: Scope) -> None:
    """Report a ``return`` in a block that is repeated or conditional on the step."""
    words = {Repeat: "repeat", For: "for", Every: "every"}
    for loop in statements(block):
        if type(loop) not in words:
            continue
        for inner in (s for body in blocks(loop) for s in statements(body)):
            if isinstance(inner, Return):
                scope.findings.add(
                    "E213",
                    f"`return` cannot be used inside `{words[type(loop)]}`",
                    inner.span,
                    label="would leave the block early",
                    help="assign the result to a variable there, and return it after the block",
                )


def always_returns(block: Sequence[Stmt]) -> bool:
    """Return whether every path through a block ends in ``return``."""
    for statement in block:
        if isinstance(statement, Return):
            return True
        if (
            isinstance(statement, If)
            and statement.other is not None
            and always_returns(statement.other)
            and all(always_returns(body) for _, body in statement.branches)
        ):
            return True
    return False


def result_count(function: Def) -> int:
    """Return the number of results of a function."""
    returns = [s for s in statements(body_of(function)) if isinstance(s, Return)]
    return len(returns[0].values) if returns else 1


def _names(count: int) -> str:
    return "one name is" if count == 1 else f"{count} names are"


def _values(count: int) -> str:
    return "one value" if count == 1 else f"{count} values"


def check_result_count(wanted: Sequence[Name], value: Expr, scope: Scope) -> None:
    """Check that a value has as many results as there are targets."""
    called = value.function if isinstance(value, Call) and isinstance(value.function, Name) else None
    function = scope.functions.get(called.name) if called is not None else None
    builtin = BUILTINS.get(called.name) if called is not None and function is None else None
    if function is None and (builtin is None or not builtin.results):
        if len(wanted) > 1:
            scope.findings.add(
                "E214",
                f"one value cannot be assigned to {len(wanted)} names",
                value.span,
                label="expected a call of a function that returns several values",
                help="write a value for each: `a, b = x, y`",
            )
        return
    if builtin is not None and len(wanted) == 1:
        assert isinstance(value, Call)
        check_one_result(value, scope)
        return
    assert called is not None
    given = result_count(function) if function is not None else len(builtin.results) if builtin is not None else 1
    if given != len(wanted):
        names = f"write {'one name' if given == 1 else f'{given} names'} there"
        if builtin is not None:
            names = f"write `{', '.join(builtin.results)} = {called.text}(...)`, or select one: {_pick(builtin)}"
        scope.findings.add(
            "E214",
            f"`{called.text}` returns {_values(given)}, but {_names(len(wanted))} on the left of `=`",
            value.span,
            label=f"gives {_values(given)}",
            help=names,
            related=(("defined here", function.name.span),) if function is not None else (),
        )


def check_one_result(node: Call, scope: Scope) -> None:
    """Check that a call inside an expression has one result."""
    assert isinstance(node.function, Name)
    function = scope.functions.get(node.function.name)
    if function is None:
        builtin = BUILTINS[node.function.name]
        if builtin.results and builtin.bare is None:
            scope.findings.add(
                "E214",
                f"`{builtin.name}` returns {_values(len(builtin.results))}, but one is expected here",
                node.span,
                label=f"gives {listing(builtin.results)}",
                help=f"take all, `{', '.join(builtin.results)} = {builtin.name}(...)`, or one: {_pick(builtin)}",
            )
        return
    given = result_count(function)
    if given != 1:
        scope.findings.add(
            "E214",
            f"`{function.name.text}` returns {_values(given)}, but one is expected here",
            node.span,
            label=f"gives {_values(given)}",
            help="assign its results to names first: `a, b = f(...)`",
            related=(("defined here", function.name.span),),
        )


def _pick(builtin: Builtin) -> str:
    """Return an example of how to select one of a function's results."""
    return f"`{builtin.name}(...).{builtin.results[0]}` or `{builtin.name}(...)[0]`"
