"""Prune: remove values that no store needs, and inputs that nothing reads."""

from __future__ import annotations

from dataclasses import replace

from optlang.ir.program import Program


def run(program: Program) -> Program:
    """Return the program without values and inputs that do not reach a store."""
    needed = set().union(*(s.expr.free_symbols for s in program.stores))
    for value in reversed(program.values):
        if value.symbol in needed:
            needed |= value.expr.free_symbols
    return replace(
        program,
        inputs=tuple(i for i in program.inputs if i.symbol in needed),
        host=tuple(v for v in program.host if v.symbol in needed),
        phases=tuple(tuple(v for v in phase if v.symbol in needed) for phase in program.phases),
    )
