"""Forward: a store of a mere copy of an input or literal stores the original, unless a formula reads the copy.

A copy of a computed value is kept, because both may be stored, and thus rounded, in different dtypes.
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program


def run(program: Program) -> Program:
    """Return the program without values that only copy an input or literal to a store."""
    read = set().union(*(v.expr.free_symbols for v in program.values))
    computed = {v.symbol for v in program.tensor}
    names: dict[sp.Symbol, sp.Expr] = {
        v.symbol: v.expr
        for v in program.tensor
        if v.symbol not in read and v.expr not in computed and (v.expr.is_Symbol or algebra.is_literal(v.expr))
    }
    return replace(
        program,
        phases=tuple(tuple(v for v in phase if v.symbol not in names) for phase in program.phases),
        stores=tuple(replace(s, expr=s.expr.xreplace(names)) for s in program.stores),
    )
