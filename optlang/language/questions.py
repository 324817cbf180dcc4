"""Which values a rule's static questions may read.

A variant stays as long as these values (and the facts of the tensor) stay; the runtime compares just them.
"""

from __future__ import annotations

from collections.abc import Iterator

from optlang.language import tree as ast
from optlang.language.builtins import BUILTINS
from optlang.language.derived import definition
from optlang.language.evaluate import member_name
from optlang.language.rule import HyperType, Rule
from optlang.language.walk import body_of, expressions, own_expressions, parts, statements


def group_keys(rule: Rule) -> tuple[str, ...]:
    """Return the keys of the user's own that a rule reads from the param group (``group.NAME``)."""
    keys: dict[str, None] = {}
    for top in _tops(rule):
        for node in expressions(top):
            if isinstance(node, ast.Member) and member_name(node) is not None and node.name != "t":
                keys.setdefault(node.name)
    return tuple(keys)


def static_names(rule: Rule) -> frozenset[str]:
    """Return the hyperparameters and ``group.NAME`` keys that some static question may read.

    A few too many do no harm: the key of the variant is then computed again and found unchanged.
    """
    hypers = {h.name: h for h in rule.hypers}
    names = {h.name for h in rule.hypers if h.type is not HyperType.NUMBER}
    for top in _tops(rule):
        for node in expressions(top):
            for question in _questions(node, rule):
                names |= {n.name for n in expressions(question) if isinstance(n, ast.Name) and n.name in hypers}
    conditions = [c for s in statements(_body(rule)) if isinstance(s, ast.If) for c, _ in s.branches]
    for question in (*conditions, *(s.when for s in rule.states if s.when is not None)):
        names |= {n.name for n in expressions(question) if isinstance(n, ast.Name) and n.name in hypers}
    return frozenset(names | {f"group.{key}" for key in group_keys(rule)})


def reads_time(rule: Rule) -> bool:
    """Return whether some formula of a rule reads the count of a tensor's updates (``first`` alone needs none)."""

    def reads(node: ast.Expr) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) and node.function.name in BUILTINS:
            body = definition(node.function.name)
            return body is not None and any(map(reads, expressions(body)))
        return isinstance(node, ast.Name) and node.name == "t"

    return any(reads(node) for top in _tops(rule) for node in expressions(top))


def reads_group_time(rule: Rule) -> bool:
    """Return whether some formula of a rule names ``group.t``, the count of a group's steps."""
    nodes = (node for top in _tops(rule) for node in expressions(top))
    return any(isinstance(node, ast.Member) and member_name(node) == "group.t" for node in nodes)


def _questions(node: ast.Expr, rule: Rule) -> tuple[ast.Expr, ...]:
    """Return the parts of an expression that may be decided statically."""
    match node:
        case ast.Ternary(condition=condition):
            return (condition,)
        case ast.Compare() | ast.Unary(op="not") | ast.Binary(op="and" | "or"):
            return parts(node)
        case ast.Binary(op="??", left=left):
            return (left,)
        case ast.Call(function=ast.Name(name=name)) if name == "where" or name in rule.functions:
            return parts(node)
        case _:
            return ()


def _body(rule: Rule) -> Iterator[ast.Stmt]:
    """Yield the statements of a rule and of its functions."""
    yield from rule.body
    for function in rule.functions.values():
        yield from body_of(function)


def _tops(rule: Rule) -> Iterator[ast.Expr]:
    """Yield every expression of a rule that is not inside another."""
    for statement in statements(_body(rule)):
        yield from own_expressions(statement)
    for state in rule.states:
        yield from (e for e in (state.initial, state.when) if e is not None)
