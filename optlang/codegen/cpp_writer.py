"""Writes expressions as C++, in the type ``real``, with functions of ``cpp_kernels.h`` and the C library."""

from __future__ import annotations

from collections.abc import Callable

import sympy as sp

from optlang.codegen.spelling import ATOM, OR, PRODUCT, SIGN, Piece, Writer, decimal, filled
from optlang.functions.table import BUILTINS
from optlang.ir import algebra

#: Functions that the writer spells itself.
OWN = frozenset({"select", "where", "and", "or", "not", "number", "pow", "mod"})


class CppWriter(Writer):
    """Writes values of a C++ kernel.

    Args:
        spelled: The names of symbols.
        flags: Symbols of conditions that are kept as numbers (0 or 1).
    """

    def __init__(self, spelled: Callable[[sp.Symbol], str], flags: frozenset[sp.Symbol]) -> None:
        super().__init__()
        self.spelled, self.flags = spelled, flags

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; a condition kept as a number is compared with 0."""
        name = self.spelled(expr)
        return (f"({name} != 0)" if expr in self.flags else name), ATOM

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression; literals get the type ``real``."""
        if expr.is_Rational or expr.is_Float or expr.is_NumberSymbol:
            return self.literal(expr), ATOM
        return super().piece(expr)

    @staticmethod
    def literal(value: sp.Expr) -> str:
        """Return a literal."""
        text = decimal(value)
        return f"real({'-' * text.startswith('-')}infinite)" if "inf" in text else f"real({text})"

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product as a fraction: numbers and names, then the divisors."""
        above: list[sp.Expr] = []
        below: list[sp.Expr] = []
        negative = False
        for factor in sp.Mul.make_args(expr):
            if factor.is_Pow and factor.exp.is_number and factor.exp.is_negative:
                below.append(sp.Pow(factor.base, -factor.exp))
            elif factor.is_Rational and factor < 0:
                negative = not negative
                above += [-factor] if factor != -1 else []
            else:
                above.append(factor)
        above.sort(key=lambda a: (not a.is_number, not a.is_Symbol, str(a)))
        text = "*".join(self.text(a, SIGN) for a in above) or self.literal(sp.Integer(1))
        if below:
            divisor = "*".join(self.text(b, SIGN) for b in below)
            text += f"/({divisor})" if len(below) > 1 else f"/{self.text(below[0], ATOM)}"
        return ("-" + text, SIGN if len(above) == 1 and not below else PRODUCT) if negative else (text, PRODUCT)

    def power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power."""
        if exponent.is_number and exponent.is_negative:
            return f"{self.literal(sp.Integer(1))}/{self.text(sp.Pow(base, -exponent), ATOM)}", PRODUCT
        return super().power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a small power as products."""
        if exponent == 2 and base.is_Symbol and base not in self.flags:
            return f"{self.spelled(base)}*{self.spelled(base)}", PRODUCT
        if exponent.is_Integer and 0 < exponent <= 8:
            return f"power<{int(exponent)}>({self.text(base)})", ATOM
        return f"std::pow({self.text(base)}, {self.text(exponent)})", ATOM

    def function(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function, a comparison, a choice or a constant."""
        if name in ("inf", "nan", "true", "false"):
            return {"inf": "infinite", "nan": "undefined"}.get(name, name), ATOM
        return super().function(name, args)

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function."""
        match name:
            case "select" | "where":
                return f"choose({', '.join(map(self.text, args))})", ATOM
            case "and" | "or":
                sign = " & " if name == "and" else " | "
                return sign.join(f"({self.text(a)})" for a in args), OR
            case "not":
                return f"!({self.text(args[0])})", SIGN
            case "number":
                # A select: not every compiler vectorises conditions that are cast to numbers.
                chosen = f"choose({self.text(args[0])}, real(1), real(0))"
                return (self.spelled(args[0]) if args[0] in self.flags else chosen), ATOM
            case "pow" | "mod":
                return f"{'std::pow' if name == 'pow' else 'mod_'}({', '.join(map(self.text, args))})", ATOM
        return filled(BUILTINS[name].cpp or "", map(self.text, args)), ATOM


def knows(expr: sp.Expr) -> bool:
    """Return whether every function in an expression has a C++ spelling."""
    names = (algebra.name_of(e) for e in expr.atoms(sp.Function) if not isinstance(e, algebra.Reduction))
    return all(name in OWN or name not in BUILTINS or BUILTINS[name].cpp is not None for name in names)
