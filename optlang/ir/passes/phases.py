"""Phases: partition the tensor values into passes over memory.

A value that reads a finished reduction goes to the next phase; everything else is placed as early as possible. The
number of phases is thus the minimum that the chain of reductions allows.
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from optlang.ir.program import Program, Value


def run(program: Program) -> Program:
    """Return the program with its tensor values partitioned into phases."""
    ready: dict[sp.Symbol, int] = {}  # first phase in which a symbol can be read
    phases: list[list[Value]] = [[]]
    for value in program.tensor:
        phase = max((ready.get(s, 0) for s in value.expr.free_symbols), default=0)
        while len(phases) <= phase:
            phases.append([])
        phases[phase].append(value)
        ready[value.symbol] = phase + 1 if value.reduces else phase
    return replace(program, phases=tuple(map(tuple, phases)))
