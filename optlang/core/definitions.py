"""Derived functions as trees: the definitions of the builtins table, parsed once."""

from __future__ import annotations

from functools import cache

from optlang.functions.table import BUILTINS, Builtin
from optlang.source import Source
from optlang.syntax import tree as ast
from optlang.syntax.parse import parse
from optlang.syntax.walk import body_of


def _expression(text: str, name: str) -> ast.Expr:
    """Return an expression of the builtins table as a tree."""
    (statement,) = parse(Source(f"x = {text}", f"<builtin {name}>")).items
    assert isinstance(statement, ast.Assign)
    return statement.value


@cache
def definition(name: str) -> ast.Expr | None:
    """Return the formula of a derived function, or None if it is a primitive or a block of statements."""
    builtin = BUILTINS[name]
    return None if builtin.definition is None or builtin.block else _expression(builtin.definition, name)


@cache
def function(name: str) -> ast.Def | None:
    """Return a function whose definition is a block of statements as the language defines it, or None for others."""
    builtin = BUILTINS[name]
    if builtin.definition is None or not builtin.block:
        return None
    lines = "".join(f"    {line}\n" for line in builtin.definition.splitlines())
    (defined,) = parse(Source(f"def {name}({builtin.signature}):\n{lines}", f"<builtin {name}>")).items
    assert isinstance(defined, ast.Def)
    return defined


def body(name: str) -> tuple[ast.Stmt, ...] | None:
    """Return the statements of such a function, which end in ``return``, or None for others."""
    defined = function(name)
    return None if defined is None else body_of(defined)


@cache
def default(builtin: Builtin, parameter: str) -> ast.Expr | None:
    """Return the default of a parameter of a builtin, or None if it must be given."""
    text = dict(builtin.parameters)[parameter]
    return None if text is None else _expression(text, builtin.name)
