"""Tree traversal: the expressions in a node, the statements in a block, the names they assign."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from optlang.source import Span
from optlang.syntax.tree import (
    Assign,
    Binary,
    Call,
    Compare,
    Def,
    Every,
    Expr,
    For,
    If,
    Index,
    Later,
    Member,
    Name,
    Node,
    Number,
    Pipe,
    Push,
    Repeat,
    Return,
    Slice,
    Stmt,
    Ternary,
    Tuple,
    Unary,
)

Kind = TypeVar("Kind", bound=Node)
Piece = TypeVar("Piece", bound=Any)


def parts(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct subexpressions of an expression (without the function of a call)."""
    if isinstance(expr, Name | Number):  # the most common case
        return ()
    match expr:
        case Member(value=value):
            return (value,)
        case Unary(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case Compare(operands=operands):
            return operands
        case Ternary(condition=condition, then=then, other=other):
            return (then, condition, other)
        case Pipe(value=value, stage=stage):
            return (value, *(parts(stage) if isinstance(stage, Call) else ()))
        case Call(arguments=arguments):
            return tuple(argument.value for argument in arguments)
        case Tuple(items=items):
            return items
        case Slice():
            return tuple(subscripted((expr,)))
        case Index(value=value, items=subscripts):
            return (value, *subscripted(subscripts))
        case Later():
            return expr.inside
        case _:
            return ()


def subscripted(items: Iterable[Expr | Slice]) -> Iterator[Expr]:
    """Yield the expressions in the brackets of an index."""
    for item in items:
        if isinstance(item, Slice):
            yield from (end for end in (item.start, item.stop) if end is not None)
        else:
            yield item


def mapped(node: Kind, change: Callable[[Any], Any]) -> Kind:
    """Apply ``change`` to the direct children of a node; return the node itself if nothing changes."""
    held = {f.name: getattr(node, f.name) for f in fields(node)}
    made = {name: change(value) for name, value in held.items() if isinstance(value, (tuple, Node))}
    return replace(node, **made) if any(made[name] is not held[name] for name in made) else node


def rebuilt(node: Piece, change: Callable[[Any, Any], Any]) -> Piece:
    """Rebuild a node, or a tuple of nodes, bottom-up.

    Args:
        node: The node or tuple.
        change: Takes a node with rebuilt children and the original node, and returns its replacement. In a tuple, the
            replacement may be a tuple of any number of nodes.
    """
    if isinstance(node, tuple):
        found: list[Any] = []
        for item in node:
            new = rebuilt(item, change)
            found += new if isinstance(item, Node) and isinstance(new, tuple) else [new]
        same = len(found) == len(node) and all(a is b for a, b in zip(found, node, strict=True))
        return node if same else tuple(found)  # type: ignore[return-value]
    if not isinstance(node, Node):
        return node
    return change(mapped(node, lambda held: rebuilt(held, change)), node)  # type: ignore[no-any-return]


def nodes_in(node: Any) -> Iterator[Node]:
    """Yield a node, or every node of a tuple, with all descendants."""
    pending = [node]
    while pending:
        found = pending.pop()
        if isinstance(found, tuple):
            pending.extend(found)
        elif isinstance(found, Node):
            yield found
            pending.extend(getattr(found, f.name) for f in fields(found))


def blocks(statement: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    """Return the blocks directly inside a statement, in source order."""
    match statement:
        case If(branches=branches, other=other):
            return (*(body for _, body in branches), *((other,) if other is not None else ()))
        case Repeat(body=body) | For(body=body) | Every(body=body):
            return (body,)
        case _:
            return ()


def expressions(expr: Expr) -> Iterator[Expr]:
    """Yield an expression and its subexpressions in preorder."""
    pending = [expr]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(parts(node)))


def statements(block: Iterable[Stmt]) -> Iterator[Stmt]:
    """Yield the statements of a block and of nested blocks, in source order."""
    for statement in block:
        yield statement
        for body in blocks(statement):
            yield from statements(body)


def own_expressions(statement: Stmt) -> tuple[Expr, ...]:
    """Return the expressions of a statement itself, without nested blocks."""
    match statement:
        case Assign(value=value):
            return (value,)
        case If(branches=branches):
            return tuple(condition for condition, _ in branches)
        case Return(values=values):
            return values
        case Repeat(count=count):
            return (count,)
        case For(over=over):
            return (over,)
        case Push(items=items):
            return tuple(value for _, value in items)
        case Every(period=period, start=start):
            return (period,) if start is None else (period, start)
        case _:
            return ()


def block_expressions(block: Iterable[Stmt]) -> Iterator[Expr]:
    """Yield every expression and subexpression of a block."""
    for statement in statements(block):
        for expr in own_expressions(statement):
            yield from expressions(expr)


def assigned(block: Iterable[Stmt]) -> Iterator[Name]:
    """Yield the assignment targets and loop variables in a block, in source order."""
    for statement in statements(block):
        if isinstance(statement, Assign):
            yield from statement.targets
        elif isinstance(statement, For):
            yield from statement.names


def names_read(block: Iterable[Stmt]) -> Iterator[Name]:
    """Yield the names that a block reads, including targets of ``x += ...``, in source order."""
    for statement in statements(block):
        if isinstance(statement, Assign) and statement.op != "=":
            yield from statement.targets
        for own in own_expressions(statement):
            yield from (e for e in expressions(own) if isinstance(e, Name))


def body_of(function: Def) -> tuple[Stmt, ...]:
    """Return the body of a function as statements (``def f(x) = EXPR`` is one ``return``)."""
    if isinstance(function.body, tuple):
        return function.body
    return (Return(function.body.span, (function.body,)),)


def called(block: Iterable[Stmt]) -> Iterator[Name]:
    """Yield the names of the functions that a block calls."""
    for expr in block_expressions(block):
        if isinstance(expr, Call) and isinstance(expr.function, Name):
            yield expr.function


def condition_above(block: Iterable[Stmt], place: Span) -> Expr | None:
    """Return the condition of the innermost ``if`` or ``elif`` branch that contains a span, if any."""
    found = None
    for statement in statements(block):
        if isinstance(statement, If):
            for condition, body in statement.branches:
                if any(inner.span.holds(place) for inner in body):
                    found = condition
    return found


def block_above(block: Iterable[Stmt], place: Span) -> Stmt | None:
    """Return the innermost compound statement that contains a span (loop variables included)."""
    found = None
    for statement in statements(block):
        inside = isinstance(statement, For) and any(name.span == place for name in statement.names)
        inside |= any(x.span.holds(place) for body in blocks(statement) for x in body)
        found = statement if inside else found
    return found


def is_matrix_call(node: Expr, functions: frozenset[str]) -> bool:
    """Return whether an expression is itself more than elementwise arithmetic."""
    match node:
        case Binary(op="@") | Index():
            return True
        case Member(name=name):
            return name == "T" or not (isinstance(node.value, Name) and node.value.name == "group")
        case Call(function=Name(name=name)):
            return name in functions
    return False
