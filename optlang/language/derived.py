"""Derived functions as trees: the definitions of the builtins table, parsed once."""

from __future__ import annotations

from functools import cache

from optlang.language import tree as ast
from optlang.language.builtins import BUILTINS, Builtin
from optlang.language.parse import parse
from optlang.source import Source


def _expression(text: str, name: str) -> ast.Expr:
    """Return an expression of the builtins table as a tree."""
    (statement,) = parse(Source(f"x = {text}", f"<builtin {name}>")).items
    assert isinstance(statement, ast.Assign)
    return statement.value


@cache
def definition(name: str) -> ast.Expr | None:
    """Return the body of a derived function, or None if it is a primitive."""
    text = BUILTINS[name].definition
    return None if text is None else _expression(text, name)


@cache
def default(builtin: Builtin, parameter: str) -> ast.Expr | None:
    """Return the default of a parameter of a builtin, or None if it must be given."""
    text = dict(builtin.parameters)[parameter]
    return None if text is None else _expression(text, builtin.name)
