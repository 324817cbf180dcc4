"""A backend in one file, for the tests: programs -> NumPy.

It shares nothing with the torch backends but the programs and the layout of expressions, so agreeing with them shows
that a kernel says everything a backend needs. Backends of the package are files just like this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import sympy as sp

from optlang.artifact import Kernel
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.codegen.helpers import HELPERS
from optlang.codegen.spelling import COMPARE, SUM, SYMBOLS, HostWriter, Piece, Writer
from optlang.ir import algebra
from optlang.ir.program import Program
from optlang.kinds import Level

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


def tensor_lines(program: Program, writer: NumpyWriter) -> list[str]:
    """Return the assignments of values of tensors."""
    return [f"    {v.symbol} = {writer.text(v.expr)}" for v in program.tensor]


def emit(kernel: Kernel) -> str:
    """Return Python text: ``update(tensors, numbers) -> stores``, in the order of ``written``."""
    program, writer = kernel.program, NumpyWriter()
    lines = [f"    {s} = numbers[{i}]" for i, s in enumerate(program.coefficients())]
    inputs = {i.name: i.symbol for i in program.inputs}
    lines += [f"    {inputs[n]} = tensors[{i}]" for i, n in enumerate(kernel.tensors) if n in inputs]
    stores = [writer.text(s.expr) for s in program.stores if s.kind.on_device]
    return "\n".join(
        ["def update(tensors, numbers):", *lines, *tensor_lines(program, writer), f"    return [{', '.join(stores)}]"]
    )


def names() -> dict[str, Any]:
    """Return what the text calls."""
    return {
        "np": np,
        "math": math,
        "by_number": lambda name: np.vectorize(getattr(math, name), otypes=[float]),
        "sign": lambda x: np.where(np.isnan(x), x, np.sign(x)),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }


def accepts(kernel: Kernel, device: str) -> bool:
    """Return whether a kernel is about elements and reductions, on the CPU."""
    return device == "cpu" and not kernel.matrices


def load(kernel: Kernel, signature: Signature) -> LoadedKernel | None:
    """Return the kernel; there is one for tensors in float64 alone."""
    if {*signature.dtypes} != {"float64"}:
        return None
    globals_of = names()
    exec(emit(kernel), globals_of)
    update, places = globals_of["update"], [kernel.tensors.index(name) for name in kernel.written]

    def run(tensors: list[Any]) -> None:
        arrays = [t.numpy() for t in tensors]
        with np.errstate(all="ignore"):
            results = [np.array(r) for r in update(arrays[:-1], arrays[-1])]
        for place, result in zip(places, results, strict=True):
            arrays[place][...] = result

    return LoadedKernel(run, "numpy")


# A whole step, without the runtime ----------------------------------------------------------------------------


def step_text(program: Program) -> str:
    """Return Python text: ``step(inputs) -> stores``, both by name."""
    host, tensor = HostWriter(), NumpyWriter()
    lines = [f"    {i.symbol} = inputs[{str(i.name)!r}]" for i in program.inputs]
    lines += [f"    {v.symbol} = {host.text(v.expr)}" for v in program.host]
    lines += tensor_lines(program, tensor)
    stores = [
        f"{str(s.target)!r}: {(tensor if s.kind.level > Level.HOST else host).text(s.expr)}" for s in program.stores
    ]
    helpers = [HELPERS[h] for h in HELPERS if h in host.helpers]
    return "\n".join([*helpers, "def step(inputs):", *lines, f"    return {{{', '.join(stores)}}}"])


def step_of(program: Program) -> Any:
    """Return the step as a function from inputs by name to stores by name."""
    globals_of = names()
    exec(step_text(program), globals_of)
    step = globals_of["step"]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return dict(step(inputs))

    return run
