"""Writes expressions for Triton, with helpers for functions it lacks or computes differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

import sympy as sp

from optlang.codegen.memory import INDENT, Memory
from optlang.codegen.spelling import ATOM, SIGN, SUM, Piece, Writer, filled
from optlang.functions.table import BUILTINS

CONSTANTS = {"inf": 'float("inf")', "nan": 'float("nan")', "true": "True", "false": "False"}


class TritonWriter(Writer):
    """Writes the values of a Triton kernel.

    Attributes:
        real: The name of the compute dtype.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        program = memory.program
        self.real = memory.name("real")
        conditions = {v.symbol for v in program.host if v.boolean}
        self.flags = conditions | {i.symbol for i in program.inputs if i.name == "first"}

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; a host condition is passed as a number and compared with 0."""
        return (f"({expr.name} != 0)", ATOM) if expr in self.flags else (expr.name, ATOM)

    def typed(self, expr: sp.Expr) -> str:
        """Return an expression with a dtype: a bare literal in Triton would be float32 or an integer."""
        text = self.text(expr)
        return text if expr.free_symbols else f"tl.full((), {text}, {self.real})"

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product; a fraction is a call, because ``/`` is approximate."""
        factors = sp.Mul.make_args(expr)
        below = [f for f in factors if f.is_Pow and f.exp.is_number and f.exp.is_negative]
        rest = [f for f in factors if f not in below]
        if not below or (below == [expr]):
            return super().product(expr)
        above = sp.Mul(*rest, evaluate=False) if len(rest) > 1 else rest[0] if rest else sp.Integer(1)
        turned = [sp.Pow(f.base, -f.exp) for f in below]
        divisor = sp.Mul(*turned, evaluate=False) if len(turned) > 1 else turned[0]
        return f"triton_divide({self.text(above)}, {self.text(divisor)})", ATOM

    def power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power; a reciprocal is a call."""
        if exponent.is_number and exponent.is_negative:
            return f"triton_divide(1.0, {self.text(sp.Pow(base, -exponent))})", ATOM
        return super().power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a small power as products."""
        if exponent.is_Integer and exponent <= 8:
            return f"triton_power({self.text(base)}, {int(exponent)})", ATOM
        return f"triton_pow({self.typed(base)}, {self.typed(exponent)})", ATOM

    def function(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function; Triton has no ``math`` for infinity."""
        return (CONSTANTS[name], ATOM) if name in CONSTANTS else super().function(name, args)

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on blocks."""
        match name:
            case "select" | "where":
                condition, *choices = args
                return f"tl.where({self.text(condition)}, {', '.join(map(self.typed, choices))})", ATOM
            case "and" | "or":
                sign = " & " if name == "and" else " | "
                return sign.join(_condition(self.piece(a)) for a in args), SUM
            case "not":
                return f"~{_condition(self.piece(args[0]))}", SIGN
            case "number":
                if args[0] in self.flags:
                    return args[0].name, ATOM
                return f"({self.text(args[0])}).to({self.real})", ATOM
            case "pow" | "mod":
                return f"triton_{name}({', '.join(map(self.typed, args))})", ATOM
        spelling = BUILTINS[name].triton
        assert spelling is not None, f"{name} has no spelling in Triton"
        return filled(spelling, map(self.typed, args), real=self.real), ATOM


def _condition(piece: Piece) -> str:
    """Return a condition as an operand of ``&``, ``|`` or ``~``, which bind more tightly than comparisons."""
    text, binds = piece
    return text if binds == ATOM else f"({text})"


def call_lines(name: str, arguments: Sequence[str], indent: str, end: str = "") -> Iterator[str]:
    """Yield the lines of a call (or of a function's head), split if it is long."""
    inside = ", ".join(arguments)
    if len(inside) + len(name) + len(indent) < 110:
        yield f"{indent}{name}({inside}){end}"
        return
    yield f"{indent}{name}("
    yield from wrap(inside, 110, initial_indent=indent + INDENT, subsequent_indent=indent + INDENT)
    yield f"{indent}){end}"
