"""Writes expressions as Python: one writer for float64 on the host, one for torch tensors.

Both share the layout of sums, products and powers (signs, fractions, parentheses). They differ in the spelling of
functions, powers and selects. Function names come from the builtins table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import sympy as sp

from optlang.codegen.helpers import called
from optlang.functions.table import BUILTINS
from optlang.ir import algebra

OR, AND, COMPARE, SUM, PRODUCT, SIGN, POWER, ATOM = range(8)
SYMBOLS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!="}
CONSTANTS = {"inf": "math.inf", "nan": "math.nan", "true": "True", "false": "False"}

#: A text and the precedence of its outermost operator.
Piece = tuple[str, int]


def wrap(piece: Piece, level: int) -> str:
    """Return the text of a piece, in parentheses if it binds less tightly than ``level``."""
    text, binds = piece
    return text if binds >= level else f"({text})"


def decimal(value: sp.Expr) -> str:
    """Return the shortest literal that Python reads as the same float."""
    if value.is_Integer and abs(value) < 10**15:
        return str(int(value))
    number = algebra.to_float(value)
    return repr(number) if math.isfinite(number) else "math.inf" if number > 0 else "-math.inf"


def filled(template: str, texts: Iterable[str], **names: str) -> str:
    """Fill a spelling for one or two values with any number of values."""
    first, *others = texts
    if "{1}" not in template:
        return template.format(first, **names)
    return reduce(lambda a, b: template.format(a, b, **names), others, first)


def summands(expr: sp.Expr) -> list[tuple[bool, sp.Expr]]:
    """Return the terms of a sum in order, without their sign, each with whether it is subtracted; not the first one."""
    terms = sorted(expr.args, key=lambda a: (a.could_extract_minus_sign(), not a.is_Symbol, str(a)))
    signs = [False, *(term.could_extract_minus_sign() for term in terms[1:])]
    return [(negative, -term if negative else term) for negative, term in zip(signs, terms, strict=True)]


def fraction(expr: sp.Expr) -> tuple[bool, list[sp.Expr], list[sp.Expr]]:
    """Return a product as a fraction: whether it is negative, numbers and names, and what it is divided by."""
    above: list[sp.Expr] = []
    below: list[sp.Expr] = []
    for factor in sp.Mul.make_args(expr):
        if factor.is_Pow and factor.exp.is_number and factor.exp.is_negative:
            below.append(sp.Pow(factor.base, -factor.exp))
        else:
            above.append(factor)
    negative = bool(above and above[0].is_Rational and above[0] < 0)
    if negative:
        above[0] = -above[0]
    above = [a for a in above if a != 1]
    above.sort(key=lambda a: (not a.is_number, not a.is_Symbol, str(a)))
    return negative, above, below


class Writer:
    """Writes expressions; :class:`HostWriter` and :class:`TorchWriter` define the spelling.

    Attributes:
        helpers: The helper functions called so far.
    """

    #: Whether functions take tensors, and therefore no numbers.
    of_tensors = True

    def __init__(self) -> None:
        self.helpers: set[str] = set()

    def text(self, expr: sp.Expr, level: int = OR) -> str:
        """Return an expression as an operand of operators with precedence ``level``."""
        return wrap(self.piece(expr), level)

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression and its precedence."""
        if expr.is_Symbol:
            return self.symbol(expr)
        if expr.is_Rational:
            return decimal(expr), SIGN if expr < 0 else ATOM
        if expr.is_Add:
            return self.sum(expr)
        if expr.is_Mul:
            return self.product(expr)
        if expr.is_Pow:
            return self.power(expr.base, expr.exp)
        if isinstance(expr, algebra.Reduction):
            return self.reduction(expr)
        if expr.is_number and not expr.is_Function:
            return repr(float(expr)), ATOM
        return self.function(algebra.name_of(expr), expr.args)

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name."""
        return expr.name, ATOM

    def sum(self, expr: sp.Expr) -> Piece:
        """Return a sum, with subtracted terms last."""
        (_, first), *others = summands(expr)
        text = self.text(first, SUM)
        for subtracted, term in others:
            text += f" - {self.text(term, PRODUCT)}" if subtracted else f" + {self.text(term, SUM)}"
        return text, SUM

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product as a fraction: sign, numbers and names, then the divisors."""
        negative, above, below = fraction(expr)
        text = "*".join(self.text(a, SIGN) for a in above) or "1"
        if len(below) > 1:
            text += f" / ({'*'.join(self.text(b, SIGN) for b in below)})"
        elif below:
            text += f"/{self.text(below[0], POWER)}"
        return ("-" if negative else "") + text, SIGN if negative and not (len(above) > 1 or below) else PRODUCT

    def power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power."""
        if exponent.is_number and exponent.is_negative:
            return f"1/{self.text(sp.Pow(base, -exponent), POWER)}", PRODUCT
        if exponent == sp.Rational(1, 2):
            return self.function("sqrt", (base,))
        return self.general_power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return a power that is neither a root nor a reciprocal."""
        raise NotImplementedError

    def reduction(self, expr: algebra.Reduction) -> Piece:
        """Return a reduction."""
        raise NotImplementedError

    def function(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function, a comparison, a choice or a constant."""
        if name in CONSTANTS:
            return CONSTANTS[name], ATOM
        if name in SYMBOLS:
            a, b = (self.text(x, SUM) for x in args)
            return f"{a} {SYMBOLS[name]} {b}", COMPARE
        number = _number(name, args) if self.of_tensors else None
        return self.named(name, args) if number is None else (decimal(sp.Float(number)), SIGN if number < 0 else ATOM)

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function of the builtins table, or one that the writer spells itself."""
        raise NotImplementedError

    def fill(self, template: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Fill a spelling of the builtins table with arguments."""
        self.helpers |= called(template)
        pieces = [self.piece(a) for a in args]
        if "{*}" in template:
            return template.replace("{*}", ", ".join(text for text, _ in pieces)), ATOM
        whole = template.endswith(")") and "({" in template and not template.startswith("{")
        level = OR if whole and " " not in template else ATOM
        return template.format(*(wrap(piece, level) for piece in pieces)), ATOM


class HostWriter(Writer):
    """Writes arithmetic on Python floats, with ``math``."""

    of_tensors = False

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return ``**`` for an integer exponent, else ``math.pow``, which never returns complex numbers."""
        if _whole(exponent):
            return f"{self.text(base, ATOM)}**{self.text(exponent, ATOM)}", POWER
        return f"math.pow({self.text(base)}, {self.text(exponent)})", ATOM

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on floats."""
        match name:
            case "select":
                c, a, b = args
                return f"({self.text(a, OR)} if {self.text(c)} else {self.text(b, OR)})", ATOM
            case "and" | "or":
                level = AND if name == "and" else OR
                return f" {name} ".join(self.text(a, level + 1) for a in args), level
            case "not":
                return f"(not {self.text(args[0], SUM)})", ATOM
            case "number":
                return f"float({self.text(args[0])})", ATOM
            case "pow":
                return self.fill("math.pow({0}, {1})", args)
            case "mod":
                return " % ".join(self.text(a, POWER) for a in args), PRODUCT
        row = BUILTINS[name]
        assert row.host is not None, f"{name} has no spelling on the host"
        return self.fill(row.host, args)


def _number(name: str, args: tuple[sp.Expr, ...]) -> float | None:
    """Return the value of a function of literals, which later passes may produce; None for other arguments."""
    if not args or name not in BUILTINS or BUILTINS[name].host is None or not all(a.is_Rational for a in args):
        return None
    writer = HostWriter()
    text, _ = writer.named(name, args)
    value = None if writer.helpers else eval(text, {"math": math})
    return value if isinstance(value, float) and math.isfinite(value) else None


def _whole(expr: sp.Expr) -> bool:
    """Return whether an expression is always an integer: made of step counts and integers."""
    if expr.is_Add or expr.is_Mul:
        return all(_whole(a) for a in expr.args)
    return bool(expr.is_Integer) or (expr.is_Symbol and expr.name in ("t", "group_t"))


class TorchWriter(Writer):
    """Writes arithmetic on tensors.

    Args:
        dtype: The text of the compute dtype.
        flags: Conditions passed as numbers (0 or 1) among the coefficients.
        plain: Symbols that are Python values, not tensors (in ``start``).
    """

    def __init__(self, dtype: str, flags: frozenset[sp.Symbol], plain: frozenset[sp.Symbol]) -> None:
        super().__init__()
        self.dtype, self.flags, self.plain = dtype, flags, plain

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; a flag is compared with 0 where a condition is needed."""
        return (f"{expr.name} != 0", COMPARE) if expr in self.flags else (expr.name, ATOM)

    def is_plain(self, expr: sp.Expr) -> bool:
        """Return whether an expression is a Python value, not a tensor."""
        return bool(expr.free_symbols <= self.plain)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return products for squares of names, ``**`` for small powers, otherwise ``torch.pow``."""
        if exponent == 2:
            if base.is_Symbol:
                return f"{base.name}*{base.name}", PRODUCT
            return f"torch.square({self.text(base)})", ATOM
        if exponent.is_Integer and exponent <= 8:
            return f"{self.text(base, ATOM)}**{int(exponent)}", POWER
        return f"torch.pow({self.text(base)}, {self.text(exponent)})", ATOM

    def reduction(self, expr: algebra.Reduction) -> Piece:
        """Return a reduction; sums and means are accumulated in float64."""
        name = algebra.name_of(expr)
        inner, *dims = expr.args
        options = [f"dim=({', '.join(map(str, dims))},)", "keepdim=True"] if dims else []
        if name in ("max", "min"):
            return f"{self.text(inner, ATOM)}.a{name}({', '.join(options)})", ATOM
        options.append("dtype=torch.float64")
        return f"{self.text(inner, ATOM)}.{name}({', '.join(options)}).to({self.dtype})", ATOM

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on tensors."""
        match name:
            case "select":
                return self.select(*args)
            case "and" | "or":
                sign = " & " if name == "and" else " | "
                tensors_first = sorted(args, key=self.is_plain)  # TorchScript accepts no other order
                return sign.join(self.text(a, ATOM) for a in tensors_first), SUM
            case "not":
                return f"~{self.text(args[0], ATOM)}", SIGN
            case "number":
                if args[0] in self.flags:
                    return args[0].name, ATOM
                return f"{self.text(args[0], ATOM)}.to({self.dtype})", ATOM
            case "pow":
                return self.fill("torch.pow({0}, {1})", args)
            case "mod":
                return f"torch.remainder({', '.join(self.text(a) for a in args)})", ATOM
            case "max" | "min":
                return self.extreme(name, args)
            case "f32" | "bf16":
                text, binds = self.fill(self.spelling(name), args)
                return f"{text}.to({self.dtype})", binds
        return self.fill(self.spelling(name), args)

    def spelling(self, name: str) -> str:
        """Return how a function of the builtins table is called."""
        spelled = BUILTINS[name].torch
        assert spelled is not None, f"{name} has no spelling on tensors"
        return spelled

    def select(self, condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> Piece:
        """Return a select: a Python conditional for a Python condition, otherwise ``torch.where``."""
        if self.is_plain(condition):
            return f"({self.text(then)} if {self.text(condition)} else {self.text(other)})", ATOM
        return f"torch.where({self.text(condition)}, {self.text(then)}, {self.text(other)})", ATOM

    def extreme(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a maximum or minimum; with a Python value it is a clamp, which propagates NaN too."""
        plain = [a for a in args if self.is_plain(a)]
        tensors = [a for a in args if not self.is_plain(a)]
        text = self.text(tensors[0])
        for argument in tensors[1:]:
            text = f"torch.{name}imum({text}, {self.text(argument)})"
        bound = "min" if name == "max" else "max"
        for argument in plain:
            text = f"torch.clamp({text}, {bound}={self.text(argument)})"
        return text, ATOM


class NumberWriter(TorchWriter):
    """Writes host arithmetic on 0-d float64 tensors: nothing is read back, and all numbers follow IEEE 754."""

    def __init__(self) -> None:
        super().__init__("torch.float64", frozenset(), frozenset())

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression. Literals alone are computed in Python, because torch has no functions of floats."""
        if expr.free_symbols:
            return super().piece(expr)
        constant = HostWriter()
        written = constant.piece(expr)
        self.helpers |= constant.helpers
        return written

    def select(self, condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> Piece:
        """Return ``torch.where``; with two literals it would be float32."""
        if not self.is_plain(condition) and self.is_plain(then):
            filled = f"torch.full_like({self.text(condition)}, {self.text(then)}, dtype={self.dtype})"
            return f"torch.where({self.text(condition)}, {filled}, {self.text(other)})", ATOM
        return super().select(condition, then, other)


class StartWriter(TorchWriter):
    """Writes initial values: tensors in the compute dtype, along with Python numbers.

    Args:
        dtype: The text of the compute dtype.
        like: The name of a tensor on the device.
        plain: Symbols that are Python values.
        conditions: Symbols that are conditions.
    """

    def __init__(self, dtype: str, like: str, plain: frozenset[sp.Symbol], conditions: frozenset[sp.Symbol]) -> None:
        super().__init__(dtype, frozenset(), plain)
        self.like, self.conditions = like, conditions
        self.numbers: Writer = HostWriter()

    def piece(self, expr: sp.Expr) -> Piece:
        """Return an expression. Python values alone are computed in Python."""
        if not self.is_plain(expr) or expr.is_Symbol:
            return super().piece(expr)
        written = self.numbers.piece(expr)
        self.helpers |= self.numbers.helpers
        return written

    def select(self, condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> Piece:
        """Return a select; from two numbers torch would make a tensor of the default dtype, or an integer one."""
        sides = [self.text(side) for side in (then, other)]
        numbers = [self.is_plain(side) for side in (then, other)]
        if self.is_plain(condition):  # if one side is a tensor, so is the result
            if numbers[0] != numbers[1]:
                i = numbers.index(True)
                sides[i] = f"torch.full_like({sides[1 - i]}, {sides[i]})"
            return f"({sides[0]} if {self.text(condition)} else {sides[1]})", ATOM
        if all(numbers) and not self.is_condition(then):
            sides[0] = f"torch.full((), {sides[0]}, dtype={self.dtype}, device={self.like}.device)"
        return f"torch.where({self.text(condition)}, {', '.join(sides)})", ATOM

    def is_condition(self, expr: sp.Expr) -> bool:
        """Return whether an expression is a condition."""
        return expr in self.conditions or algebra.is_condition(expr)
