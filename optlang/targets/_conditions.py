"""Formulas that are known before a step, as TorchScript: questions, requirements, initial values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optlang.codegen.helpers import called
from optlang.core.core import Key, KnownSize, Operation
from optlang.core.evaluate import NotStatic, evaluate, member_name, nearest_float
from optlang.functions.table import BUILTINS
from optlang.identity import GivenName
from optlang.inputs import ValueName
from optlang.rule import Values
from optlang.syntax import tree as ast

#: Functions in such formulas, as TorchScript on floats.
FUNCTIONS = {name: row for name, row in BUILTINS.items() if row.static and row.value and not row.variadic}


def number(value: float) -> str:
    """Return a number as a literal that TorchScript reads as the same float."""
    if math.isnan(value):
        return "math.nan"
    if math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(float(value))


class Untranslatable(Exception):
    """The formula reads a value that is not in the list of known values."""


class Conditions:
    """Translates formulas that read the list ``_known``.

    Args:
        places: The index of each name in the list.
        fixed: Values that are chosen when the file is emitted.
        known: Locals that the formulas may use, and their definitions.

    Attributes:
        read: Names that the translated formulas read.
        lost: Names in formulas that could not be translated.
        helpers: Names of the helpers that the translated formulas call.
    """

    def __init__(
        self,
        places: Mapping[ValueName, int],
        fixed: Values,
        known: Mapping[str, ast.Expr] | None = None,
    ) -> None:
        self.places, self.fixed, self.known = places, fixed, known or {}
        self.read: set[ValueName] = set()
        self.lost: set[str] = set()
        self.helpers: set[str] = set()

    def truth(self, node: ast.Expr) -> str:
        """Return a condition."""
        text, boolean = self._piece(node)
        return text if boolean else f"({text} != 0.0)"

    def number(self, node: ast.Expr) -> str:
        """Return a number."""
        text, boolean = self._piece(node)
        return f"float({text})" if boolean else text

    def _piece(self, node: ast.Expr) -> tuple[str, bool]:
        """Return a formula, and whether it is a condition."""
        match node:
            case ast.Number(value=value):
                return number(nearest_float(value)), False
            case KnownSize(value=value, factors=factors):
                return number(float(value)) if factors is None else self._size(factors), False
            case ast.Infinity():
                return "math.inf", False
            case ast.Bool(value=flag):
                return str(flag), True
            case ast.Name(name=name):
                return self._name(name)
            case Key(key=key):
                return self._name(key)
            case ast.Member() if (group_key := member_name(node)) is not None:
                return self._name(group_key)
            case ast.Unary(op="not", operand=operand):
                return f"(not {self.truth(operand)})", True
            case ast.Unary(op=op, operand=operand):
                return f"({op}{self.number(operand)})", False
            case ast.Binary(op="and" | "or", left=left, right=right):
                return f"({self.truth(left)} {node.op} {self.truth(right)})", True
            case ast.Binary(op="^" | "**", left=left, right=right):
                self.helpers.add("_power")
                return f"_power({self.number(left)}, {self.number(right)})", False
            case ast.Binary(op="+" | "-" | "*" | "/" | "%", left=left, right=right):
                return f"({self.number(left)} {node.op} {self.number(right)})", False
            case ast.Compare(ops=ops, operands=operands) if not any(isinstance(o, ast.Text) for o in operands):
                texts = list(map(self.number, operands))
                parts = [f"{a} {op} {b}" for op, a, b in zip(ops, texts, texts[1:], strict=False)]
                return f"({' and '.join(parts)})", True
            case ast.Ternary(condition=c, then=then, other=other):
                return f"({self.number(then)} if {self.truth(c)} else {self.number(other)})", False
            case Operation(function=name, arguments=arguments, dims=None):
                return self._call(node, name, arguments)
            case ast.Call(function=ast.Name(name=name), arguments=arguments) if not any(a.name for a in arguments):
                return self._call(node, name, [a.value for a in arguments])
            case _:
                return self._chosen(node)

    def _call(self, node: ast.Expr, name: str, arguments: Sequence[ast.Expr]) -> tuple[str, bool]:
        """Return a call of a numeric function."""
        if name not in (*FUNCTIONS, "max", "min"):
            return self._chosen(node)
        texts = list(map(self.number, arguments))
        if name in ("max", "min"):
            self.helpers.add(f"host_{name}")
            text = texts[-1]
            for other in texts[-2::-1]:
                text = f"host_{name}({other}, {text})"
            return text, False
        row = BUILTINS[name]
        self.helpers |= called(row.host or "")
        return (row.host or "").format(*texts), row.boolean

    def _chosen(self, node: ast.Expr) -> tuple[str, bool]:
        """Return the value of a formula of options, which are fixed."""
        options = {n: v for n, v in self.fixed.items() if not isinstance(v, int | float) or isinstance(v, bool)}
        try:
            value = evaluate(node, options)
        except NotStatic:
            raise Untranslatable(type(node).__name__) from None
        if isinstance(value, bool):
            return str(value), True
        if isinstance(value, int | float):
            return number(value), False
        raise Untranslatable(type(node).__name__)

    def _size(self, factors: Sequence[GivenName | int]) -> str:
        """Return the formula of a size: a product of facts and numbers."""
        texts = [number(float(f)) if isinstance(f, int) else self._name(f)[0] for f in factors]
        return f"({' * '.join(texts)})"

    def _name(self, name: GivenName) -> tuple[str, bool]:
        if isinstance(name, str) and name in self.known:
            return self._piece(self.known[name])
        if name in self.places:
            self.read.add(name)
            return f"_known[{self.places[name]}]", False
        value = self.fixed.get(name)
        if isinstance(value, bool):
            return str(value), True
        if not isinstance(value, int | float):
            raise Untranslatable(str(name))
        return number(value), False
