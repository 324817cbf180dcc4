"""Tree rewrites: renaming, replacing spans, removing decided branches, replacing returns by assignments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from optlang.core.evaluate import NotStatic, evaluate, truth
from optlang.source import Origin, Span
from optlang.syntax import tree
from optlang.syntax.walk import assigned, mapped, nodes_in, statements

Piece = TypeVar("Piece", bound=Any)

#: Replacements for names: another name or an expression.
Names = Mapping[str, str | tree.Expr]
LITERALS = (tree.Number, tree.Infinity, tree.Text, tree.Bool, tree.Nothing)


def is_literal(node: tree.Expr | None) -> bool:
    """Return whether an expression is a number with or without a sign, a string, a flag or none."""
    if isinstance(node, tree.Unary) and node.op == "-":
        return isinstance(node.operand, tree.Number | tree.Infinity)
    return isinstance(node, LITERALS)


def renamed(node: Piece, names: Names) -> Piece:
    """Return a node, or a tuple of nodes, with names replaced. Member names and argument names are left alone."""
    match node:
        case tuple():
            return tuple(renamed(item, names) for item in node)  # type: ignore[return-value]
        case tree.Name():
            new = names.get(node.name, node)
            if isinstance(new, str):
                return replace(node, name=new, text=new)
            return new  # type: ignore[return-value]
        case tree.Member(value=tree.Name(name="group")):
            return node
        case tree.Def():
            own = {p.name.name for p in node.parameters}
            if isinstance(node.body, tuple):
                own |= {name.name for name in assigned(node.body)}
            names = {old: new for old, new in names.items() if old not in own}
    return mapped(node, lambda held: renamed(held, names)) if isinstance(node, tree.Node) else node


def placed(node: Piece, place: Callable[[Span], Span]) -> Piece:
    """Return a copy of a node, or of a tuple of nodes, with ``place`` applied to every span."""
    if isinstance(node, tuple):
        return tuple(placed(item, place) for item in node)  # type: ignore[return-value]
    if not isinstance(node, tree.Node):
        return node
    return replace(mapped(node, lambda held: placed(held, place)), span=place(node.span))


def located(node: Piece, origin: Origin) -> Piece:
    """Return a copy of a node, or of a tuple of nodes, that is not composed yet, with an origin set on every span."""
    return placed(node, lambda span: Span(span.start, span.end, origin))


def decided(node: Piece) -> Piece:
    """Return a node, or a tuple of statements, without the branches that are decided by literals."""
    match node:
        case tuple():
            found: list[Any] = []
            for item in node:
                new = decided(item)
                found += new if isinstance(item, tree.If) and isinstance(new, tuple) else [new]
            return tuple(found)  # type: ignore[return-value]
        case tree.Ternary():
            answer = _answer(node.condition)
            if answer is not None:
                return decided(node.then if answer else node.other)  # type: ignore[return-value]
        case tree.Binary(op="??") if is_literal(node.left):
            return decided(node.right if isinstance(node.left, tree.Nothing) else node.left)  # type: ignore[return-value]
        case tree.If():
            return _decided_if(node)  # type: ignore[return-value]
    return mapped(node, decided) if isinstance(node, tree.Node) else node  # type: ignore[no-any-return]


def _decided_if(node: tree.If) -> tree.If | tuple[tree.Stmt, ...]:
    """Return an ``if`` without its decided branches, or just the statements of a branch that is always taken."""
    branches: list[tuple[tree.Expr, tuple[tree.Stmt, ...]]] = []
    other = node.other
    for condition, body in node.branches:
        answer = _answer(condition)
        if answer is None:
            branches.append((decided(condition), decided(body)))
        elif answer:
            other = body
            break
    rest = None if other is None else decided(other)
    if not branches:
        return rest or ()
    return replace(node, branches=tuple(branches), other=rest or None)


def _answer(condition: tree.Expr) -> bool | None:
    """Return whether a condition on literals holds; None for any other condition."""
    try:
        return truth(evaluate(condition, {}))
    except (NotStatic, TypeError, ArithmeticError):
        return None


def exists(when: tree.Expr | None) -> bool:
    """Return whether a declaration with the condition ``when`` can exist."""
    return when is None or _answer(when) is not False


def returning(body: Sequence[tree.Stmt], result: str) -> tuple[tree.Stmt, ...]:
    """Return a function's statements with ``return VALUE`` replaced by ``result = VALUE``.

    Statements after an ``if`` with a returning branch move into the branches that do not return.
    """
    done: list[tree.Stmt] = []
    for i, statement in enumerate(body):
        if isinstance(statement, tree.Return):
            name = tree.Name(statement.span, result, result)
            return (*done, tree.Assign(statement.span, (name,), "=", statement.values[0]))
        if isinstance(statement, tree.If) and any(isinstance(s, tree.Return) for s in statements([statement])):
            rest = tuple(body[i + 1 :])
            branches = tuple((test, returning((*inside, *rest), result)) for test, inside in statement.branches)
            other = returning((*(statement.other or ()), *rest), result)
            return (*done, replace(statement, branches=branches, other=other or None))
        done.append(statement)
    return tuple(done)


def always_returns(body: Sequence[tree.Stmt]) -> bool:
    """Return whether every path through the statements ends in ``return``."""
    for statement in body:
        if isinstance(statement, tree.Return):
            return True
        if isinstance(statement, tree.If) and statement.other is not None:
            ways = (statement.other, *(inside for _, inside in statement.branches))
            if all(map(always_returns, ways)):
                return True
    return False


def calls_in(node: Any) -> set[str]:
    """Return the names of all functions called in a node or tuple."""
    calls = (found.function for found in nodes_in(node) if isinstance(found, tree.Call))
    return {function.name for function in calls if isinstance(function, tree.Name)}


def names_in(node: Any) -> set[str]:
    """Return every name in a node or tuple, except called functions."""
    if isinstance(node, tree.Name):
        return {node.name}
    if isinstance(node, tuple):
        return set().union(*map(names_in, node))
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name):
        return names_in(node.arguments)
    if isinstance(node, tree.Pipe) and isinstance(node.stage, tree.Name):
        return names_in(node.value)
    if isinstance(node, tree.TransformDecl):  # a transform's names are local to it
        return set()
    if isinstance(node, tree.Node):
        return set().union(*(names_in(getattr(node, f.name)) for f in fields(node)))
    return set()


def all_names(node: Any) -> set[str]:
    """Return every name in a node or tuple, including called functions."""
    return {found.name for found in nodes_in(node) if isinstance(found, tree.Name)}
