"""Checks calls: the number of arguments, keywords, and where ``dim=`` is allowed."""

from __future__ import annotations

from optlang.checker.functions import signature
from optlang.declarations.scope import Scope
from optlang.functions.table import BUILTINS, RANDOM, Builtin
from optlang.source import Span
from optlang.syntax.suggest import did_you_mean
from optlang.syntax.tree import Argument, Call, Expr, Name, Nothing, Number, Slice, Tuple, Unary


def check_call(node: Call, scope: Scope) -> None:
    """Check the arguments of a call to a builtin or to one of the rule's functions."""
    assert isinstance(node.function, Name)
    function = scope.functions.get(node.function.name)
    if function is not None:
        parameters = tuple((p.name.name, p.default is not None) for p in function.parameters)
        place = (("defined here", function.name.span),)
        _match(node, parameters, signature(function), False, scope, place)
        return
    builtin = BUILTINS[node.function.name]
    if builtin.name in ("max", "min"):
        _check_extreme(node, builtin, scope)
    elif builtin.variadic:
        _check_sizes(node, builtin, scope)
    else:
        parameters = tuple((name, default is not None) for name, default in builtin.parameters)
        _match(node, parameters, shown(builtin), builtin.reduction, scope)
    _check_dim(node, builtin, scope)


def shown(builtin: Builtin) -> str:
    """Return the signature of a builtin as written in a call."""
    if builtin.name in ("max", "min"):
        return f"{builtin.name}(x, y, ...) or {builtin.name}(x, dim = ...)"
    if builtin.variadic:
        return f"{builtin.name}(rows, cols)" + (f" or {builtin.name}()" if builtin.group == RANDOM else "")
    return f"{builtin.name}({builtin.signature}{', dim = ...' if builtin.reduction else ''})"


def _match(
    node: Call,
    parameters: tuple[tuple[str, bool], ...],
    head: str,
    reduction: bool,
    scope: Scope,
    related: tuple[tuple[str, Span], ...] = (),
) -> None:
    """Match arguments with (parameter, whether it has a default) pairs; report the first error."""
    names = [name for name, _ in parameters]
    if len(set(names)) < len(names):
        return  # reported at the definition
    filled: set[str] = set()
    positional = 0

    def report(message: str, span: Span, label: str | None = None, help: str | None = None) -> None:
        scope.findings.add("E208", message, span, label=label, help=help or f"the call is `{head}`", related=related)

    for argument in node.arguments:
        name = argument.name
        if name is None:
            if filled - set(names[:positional]):
                report("positional argument follows keyword argument", argument.span, "pass it by keyword, too")
                return
            if positional == len(names):
                report(_count(node, len(names)), argument.span, "one argument too many")
                return
            name = names[positional]
            positional += 1
        elif name == "dim" and "dim" not in names:
            if not reduction:
                scope.findings.add(
                    "E309",
                    f"`{_called(node)}` has no `dim`: it works element by element",
                    argument.span,
                    label="remove this",
                    help="`dim=` is for reductions such as `sum`, `mean`, `norm` and `max(x, dim=...)`",
                )
                return
            continue
        elif name not in names:
            near = did_you_mean(name, [*names, *(["dim"] if reduction else [])])
            report(
                f"`{_called(node)}` has no parameter `{name}`",
                argument.span,
                "unknown keyword",
                f"{near} the call is `{head}`" if near else None,
            )
            return
        if name in filled:
            report(f"`{name}` is given twice", argument.span, "second value")
            return
        filled.add(name)
    missing = [name for name, optional in parameters if name not in filled and not optional]
    if missing:
        words = ", ".join(f"`{name}`" for name in missing)
        report(f"`{_called(node)}` needs {words}", node.span, "argument missing")


def _called(node: Call) -> str:
    assert isinstance(node.function, Name)
    return node.function.text


def _count(node: Call, most: int) -> str:
    word = "no arguments" if most == 0 else ("one argument" if most == 1 else f"{most} arguments")
    return f"`{_called(node)}` takes {word}, got {len(node.arguments)}"


def _check_extreme(node: Call, builtin: Builtin, scope: Scope) -> None:
    """Check ``max`` and ``min``: elementwise for several arguments, a reduction for one."""
    for argument in node.arguments:
        if argument.name not in (None, "dim"):
            scope.findings.add(
                "E208",
                f"`{builtin.name}` has no parameter `{argument.name}`",
                argument.span,
                label="unknown keyword",
                help=f"the call is `{shown(builtin)}`",
            )
            return
    count = sum(argument.name is None for argument in node.arguments)
    dim = next((a for a in node.arguments if a.name == "dim"), None)
    if count == 0:
        scope.findings.add(
            "E208",
            f"`{builtin.name}` needs a value",
            node.span,
            label="argument missing",
            help=f"the call is `{shown(builtin)}`",
        )
    elif count > 1 and dim is not None:
        scope.findings.add(
            "E309",
            f"`{builtin.name}` of several values works element by element and has no `dim`",
            dim.span,
            label="remove this",
            help=f"to reduce, give one value: `{builtin.name}({builtin.name}(x, y), dim=...)`",
        )


def _check_sizes(node: Call, builtin: Builtin, scope: Scope) -> None:
    """Check a function that takes any number of sizes, without keywords."""
    named = next((a for a in node.arguments if a.name is not None), None)
    if named is not None:
        scope.findings.add(
            "E208",
            f"`{builtin.name}` has no parameter `{named.name}`",
            named.span,
            label="unknown keyword",
            help=f"the call is `{shown(builtin)}`",
        )
    elif not node.arguments and builtin.group != RANDOM:
        scope.findings.add(
            "E208",
            f"`{builtin.name}` needs a size",
            node.span,
            label="argument missing",
            help=f"the call is `{shown(builtin)}`; for zeros shaped like p, write `0*p`, or declare a state without "
            f"an initial value",
        )


def check_size_call(node: Call, scope: Scope) -> None:
    """Check a call to ``rows``, ``cols`` or ``size``."""
    name = _called(node)
    several = name == "size"
    if len(node.arguments) != 1 + several or any(argument.name is not None for argument in node.arguments):
        scope.findings.add(
            "E208",
            f"`{name}` takes " + ("a value and a dimension" if several else "one value"),
            node.span,
            label="arguments do not match",
            help="the call is `size(x, 0)`" if several else f"the call is `{name}(x)`; `{name}` alone refers to p",
        )


# dim= -------------------------------------------------------------------------------------------------------


def dim_values(expr: Expr, rank: int) -> tuple[int, ...] | None:
    """Return the dimensions given by ``dim=``, for a tensor of ``rank`` dimensions; None if it is not a literal."""
    if isinstance(expr, Slice):
        ends = slice_ends(expr)
        return None if ends is None else tuple(range(rank)[ends])
    items = expr.items if isinstance(expr, Tuple) else (expr,)
    values = []
    for item in items:
        sign, number = 1, item
        if isinstance(item, Unary) and item.op == "-":
            sign, number = -1, item.operand
        if not isinstance(number, Number) or number.value.denominator != 1:
            return None
        values.append(sign * int(number.value))
    return tuple(values) if values else None


def slice_ends(expr: Slice) -> slice | None:
    """Return the slice ``start:stop`` given by ``dim=``; None if an end is not a literal."""
    ends: list[int | None] = []
    for end in (expr.start, expr.stop):
        values = None if end is None else dim_values(end, 0)
        if end is not None and (values is None or len(values) != 1):
            return None
        ends.append(None if values is None else values[0])
    return slice(*ends)


def _check_dim(node: Call, builtin: Builtin, scope: Scope) -> None:
    given: list[Argument] = [a for a in node.arguments if a.name == "dim"]
    names = [name for name, _ in builtin.parameters]
    if builtin.definition is not None and "dim" in names:  # the keyword is optional
        given += [a for a in node.arguments[names.index("dim") :][:1] if a.name is None]
        if given and isinstance(given[0].value, Nothing):
            return
    elif not builtin.reduction:
        return
    if not given:
        return
    if len(given) > 1:
        scope.findings.add(
            "E208", "`dim` is given twice", given[1].span, label="second value", help="write `dim=(0, 1)`"
        )
        return
    several = isinstance(given[0].value, Slice)
    values = dim_values(given[0].value, 64)
    if values is None:
        what = "`dim` must be an integer literal, or several in brackets"
    elif several and builtin.block:
        what = f"`{builtin.name}` works along one dimension, or on the whole tensor"
    elif several:
        return
    elif builtin.block and len(values) > 1:
        what = f"`{builtin.name}` works along one dimension, or on the whole tensor"
    elif len(set(values)) < len(values):
        what = "the same dimension is named twice"
    elif not all(-64 <= v < 64 for v in values):
        what = "no tensor has that many dimensions"
    elif min(values) < 0 <= max(values):
        what = "dimensions counted from the front and from the back may coincide"
    else:
        return
    scope.findings.add(
        "E309",
        what,
        given[0].value.span,
        label="expected for example `-1`" + ("" if builtin.block else " or `(0, 1)`"),
        help="`dim=-1` is the last dimension, `dim=0` the first, `dim=1:` all but the first; without `dim` it acts on "
        "the whole tensor",
    )
