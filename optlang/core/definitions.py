"""Derived functions as syntax trees: the definitions in the builtins table, parsed once."""

from __future__ import annotations

from functools import cache

from optlang.functions.table import BUILTINS, Builtin
from optlang.source import Source
from optlang.syntax import tree as ast
from optlang.syntax.parse import parse
from optlang.syntax.walk import body_of


def _expression(text: str, name: str) -> ast.Expr:
    """Parse an expression of the builtins table."""
    (statement,) = parse(Source(f"x = {text}", f"<builtin {name}>")).items
    assert isinstance(statement, ast.Assign)
    return statement.value


@cache
def definition(name: str) -> ast.Expr | None:
    """Return the formula of a derived function; None for primitives and functions defined by a block."""
    builtin = BUILTINS[name]
    return None if builtin.definition is None or builtin.block else _expression(builtin.definition, name)


@cache
def function(name: str) -> ast.Def | None:
    """Return a function that is defined by a block of statements as a ``def``; None for other functions."""
    builtin = BUILTINS[name]
    if builtin.definition is None or not builtin.block:
        return None
    lines = "".join(f"    {line}\n" for line in builtin.definition.splitlines())
    (defined,) = parse(Source(f"def {name}({builtin.signature}):\n{lines}", f"<builtin {name}>")).items
    assert isinstance(defined, ast.Def)
    return defined


def body(name: str) -> tuple[ast.Stmt, ...] | None:
    """Return the block that defines a function, ending in ``return``; None for other functions."""
    defined = function(name)
    return None if defined is None else body_of(defined)


@cache
def default(builtin: Builtin, parameter: str) -> ast.Expr | None:
    """Return the default of a builtin's parameter; None if the parameter is required."""
    text = dict(builtin.parameters)[parameter]
    return None if text is None else _expression(text, builtin.name)
