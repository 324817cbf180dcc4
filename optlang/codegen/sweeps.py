"""Decides which steps can run as sweeps over the chunks of many tensors, and in which sweeps.

Such a step reads and writes elements and per-tensor numbers, and reduces over whole tensors only. Only the last sweep
writes elements, so that earlier ones may read them, and it may recompute what they have computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sympy as sp

from optlang.artifact import AnySlot, Storage
from optlang.ir.program import Program, Store, Value
from optlang.kinds import ELEMENT, Level, join


def suits(program: Program, slots: Sequence[AnySlot]) -> bool:
    """Return whether a step can run as sweeps."""
    kinds = program.kinds()
    levels = {k.level for k in kinds.values()} | {store.kind.level for store in program.stores}
    return (
        all(slot.storage in (Storage.ELEMENT, Storage.SCALAR, Storage.HOST) for slot in slots)
        and levels.isdisjoint({Level.REDUCED, Level.MATRIX})
        and not any(value.matrices for value in program.tensor)
        and all(
            len(value.expr.args) == 1 and join(kinds[s] for s in value.expr.free_symbols) == ELEMENT
            for value in program.tensor
            if value.reduces
        )
    )


@dataclass(frozen=True)
class Sweep:
    """One sweep over the chunks of all tensors: its reductions and its element stores."""

    sums: tuple[Value, ...]
    stores: tuple[Store, ...]


def sweeps(program: Program, stores: Sequence[Store]) -> list[Sweep]:
    """Return the sweeps of a step: one per phase with a reduction, and one more if a store waits for the last of them.

    Args:
        program: The step.
        stores: Its stores of elements.
    """
    found = [Sweep(tuple(v for v in phase if v.reduces), ()) for phase in program.phases]
    found = [sweep for sweep in found if sweep.sums]
    if stores:
        read = needed(program, (s.expr for s in stores))
        if found and not any(v.symbol in read for v in found[-1].sums):
            found[-1] = Sweep(found[-1].sums, tuple(stores))
        else:
            found.append(Sweep((), tuple(stores)))
    return found


def needed(program: Program, exprs: Iterable[sp.Expr]) -> set[sp.Symbol]:
    """Return the symbols that formulas depend on, without going through reductions."""
    wanted = {symbol for expr in exprs for symbol in expr.free_symbols}
    for value in reversed(program.tensor):
        if value.symbol in wanted and not value.reduces:
            wanted |= value.expr.free_symbols
    return wanted
