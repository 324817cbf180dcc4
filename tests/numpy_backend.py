"""A backend in one file, for the tests: programs -> NumPy.

It shares nothing with the torch backends but the programs and the layout of expressions, so agreeing with them shows
that a program says everything a backend needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import sympy as sp

from optlang.backends.helpers import HELPERS
from optlang.backends.spelling import COMPARE, SUM, SYMBOLS, HostWriter, Piece, Writer
from optlang.ir import algebra
from optlang.ir.program import Program
from optlang.language.kinds import Level

FUNCTIONS = {"sign": "sign", "sigmoid": "sigmoid", "round": "np.round"}


class NumpyWriter(Writer):
    """Writes float64 arrays."""

    def general_power(self, base: sp.Expr, exponent: sp.Expr) -> Piece:
        return f"np.power({self.text(base)}, {float(exponent) if exponent.is_number else self.text(exponent)})", 7

    def reduction(self, expr: algebra.Reduction) -> Piece:
        inner, *dims = expr.args
        axis = f", axis=({', '.join(map(str, dims))},), keepdims=True" if dims else ""
        return f"np.{algebra.name_of(expr)}({self.text(inner)}{axis})", 7

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        texts = [self.text(a) for a in args]
        match name:
            case "select":
                return f"np.where({', '.join(texts)})", 7
            case "and" | "or":
                return (" & " if name == "and" else " | ").join(f"({t})" for t in texts), SUM
            case "not":
                return f"np.logical_not({texts[0]})", 7
            case "number" | "f32" | "bf16":
                return f"np.asarray({texts[0]}, dtype=float)", 7
            case "max" | "min":
                text = texts[0]
                for other in texts[1:]:
                    text = f"np.{name}imum({text}, {other})"
                return text, 7
        function = FUNCTIONS.get(name, f"np.{name}" if hasattr(np, name) else f"by_number('{name}')")
        return f"{function}({', '.join(texts)})", 7

    def function(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        if name in SYMBOLS:
            a, b = (self.text(x, SUM) for x in args)
            return f"({a}) {SYMBOLS[name]} ({b})", COMPARE
        return super().function(name, args)


def emit(program: Program) -> str:
    """Return Python text: ``step(inputs) -> stores``, both by name."""
    host, tensor = HostWriter(), NumpyWriter()
    lines = [f"    {i.symbol} = inputs[{str(i.name)!r}]" for i in program.inputs]
    lines += [f"    {v.symbol} = {host.text(v.expr)}" for v in program.host]
    lines += [f"    {v.symbol} = {tensor.text(v.expr)}" for v in program.tensor]
    stores = [
        f"{str(s.target)!r}: {(tensor if s.kind.level > Level.HOST else host).text(s.expr)}" for s in program.stores
    ]
    helpers = [HELPERS[h] for h in HELPERS if h in host.helpers]
    return "\n".join([*helpers, "def step(inputs):", *lines, f"    return {{{', '.join(stores)}}}"])


def load(program: Program) -> Any:
    """Return the step as a function from inputs by name to stores by name."""
    names: dict[str, Any] = {
        "np": np,
        "math": math,
        "by_number": lambda name: np.vectorize(getattr(math, name), otypes=[float]),
        "sign": lambda x: np.where(np.isnan(x), x, np.sign(x)),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
    exec(emit(program), names)
    step = names["step"]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return dict(step(inputs))

    return run
