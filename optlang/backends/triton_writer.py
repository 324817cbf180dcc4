"""Expressions as Triton: what its functions are called, and helpers for what it lacks or computes otherwise."""

from __future__ import annotations

import sympy as sp

from optlang.backends.memory import Memory
from optlang.backends.spelling import ATOM, SIGN, SUM, Piece, Writer
from optlang.language.builtins import BUILTINS

#: Functions of the generated module. Triton's own division and root of float32 are approximate, so both are asked for
#: as IEEE 754 has them; its maximum drops NaN unless told otherwise.
HELPERS: dict[str, str] = {
    "triton_divide": (
        "def triton_divide(a, b):\n"
        "    if (a + b).dtype == tl.float32:\n"
        "        return tl.div_rn(a, b)\n"
        "    else:\n"
        "        return a / b\n"
    ),
    "triton_sqrt": (
        "def triton_sqrt(x):\n"
        "    if x.dtype == tl.float32:\n"
        "        return tl.sqrt_rn(x)\n"
        "    else:\n"
        "        return tl.sqrt(x)\n"
    ),
    "triton_power": (
        "def triton_power(x, n: tl.constexpr):\n"
        "    result = x\n"
        "    for _ in tl.static_range(n - 1):\n"
        "        result *= x\n"
        "    return result\n"
    ),
    "triton_pow": (
        "def triton_pow(x, y):\n    none = tl.zeros_like(x + y)\n    return libdevice.pow(x + none, y + none)\n"
    ),
    "triton_mod": (
        "def triton_mod(x, y):\n"
        "    rest = libdevice.fmod(x, y + tl.zeros_like(x))\n"
        "    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)\n"
    ),
    "triton_max": "def triton_max(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_min": "def triton_min(a, b):\n    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)\n",
    "triton_sign": ("def triton_sign(x):\n    return tl.where(x == x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype), x)\n"),
    "triton_isfinite": 'def triton_isfinite(x):\n    return tl.abs(x) < float("inf")\n',
    "triton_inside": (
        "def triton_inside(x, inside, other):\n"
        "    if inside is None:\n"
        "        return x.to(tl.float64)\n"
        "    else:\n"
        "        return tl.where(inside, x.to(tl.float64), other)\n"
    ),
    "triton_nan_to_num": (
        "def triton_nan_to_num(x):\n"
        "    if x.dtype == tl.float32:\n"
        "        big: tl.constexpr = 3.4028234663852886e38\n"
        "    else:\n"
        "        big: tl.constexpr = 1.7976931348623157e308\n"
        "    return tl.where(x != x, 0.0, tl.minimum(tl.maximum(x, -big), big))\n"
    ),
}
#: What Triton spells otherwise than ``libdevice.NAME``.
SPELLINGS = {
    "abs": "tl.abs({0})",
    "sqrt": "triton_sqrt({0})",
    "floor": "tl.floor({0})",
    "round": "libdevice.rint({0})",
    "sigmoid": "triton_divide(1.0, 1.0 + libdevice.exp(-({0})))",
    "sign": "triton_sign({0})",
    "isfinite": "triton_isfinite({0})",
    "nan_to_num": "triton_nan_to_num({0})",
    "pow": "triton_pow({0}, {1})",
    "mod": "triton_mod({0}, {1})",
}
CONSTANTS = {"inf": 'float("inf")', "nan": 'float("nan")', "true": "True", "false": "False"}


class TritonWriter(Writer):
    """Writes values of a Triton kernel.

    Attributes:
        real: Name of the type that arithmetic is done in.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        program = memory.program
        self.real = memory.name("real")
        conditions = {v.symbol for v in program.host if v.boolean}
        self.flags = conditions | {i.symbol for i in program.inputs if i.name == "first"}

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; a condition of the host arrives as a number, which is compared with 0."""
        return (f"({expr.name} != 0)", ATOM) if expr in self.flags else (expr.name, ATOM)

    def typed(self, expr: sp.Expr) -> str:
        """Return an expression as a value that has a type: a bare literal of Triton's would be a float32 or whole."""
        text = self.text(expr)
        return text if expr.free_symbols else f"tl.full((), {text}, {self.real})"

    def product(self, expr: sp.Expr) -> Piece:
        """Return a product; a fraction is a call, as ``/`` is approximate."""
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
        """Return a power; one over something is a call."""
        if exponent.is_number and exponent.is_negative:
            return f"triton_divide(1.0, {self.text(sp.Pow(base, -exponent))})", ATOM
        return super().power(base, exponent)

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        """Return products for small powers."""
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
            case "max" | "min":
                text = self.typed(args[0])
                for argument in args[1:]:
                    text = f"triton_{name}({text}, {self.typed(argument)})"
                return text, ATOM
            case "f32" | "bf16":
                stored = "float32" if name == "f32" else "bfloat16"
                return f"({self.typed(args[0])}).to(tl.{stored}).to({self.real})", ATOM
        assert name in SPELLINGS or BUILTINS[name].torch == f"torch.{name}({{0}})", f"{name} has no spelling in Triton"
        return SPELLINGS.get(name, f"libdevice.{name}({{0}})").format(*map(self.typed, args)), ATOM


def _condition(piece: Piece) -> str:
    """Return a condition as an operand of ``&``, ``|`` or ``~``, which bind more tightly than comparisons."""
    text, binds = piece
    return text if binds == ATOM else f"({text})"
