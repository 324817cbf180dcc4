"""Which steps can be made in sweeps over the chunks of many tensors, and in which.

Such a step reads and writes elements and numbers of each tensor, and reduces over whole tensors only. Elements are
written by the last sweep alone, so that those before it may read them, and it may compute anew what they have computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sympy as sp

from optlang.artifact import AnySlot, Storage
from optlang.ir.program import Program, Store, Value
from optlang.kinds import ELEMENT, Level, join


def suits(program: Program, slots: Sequence[AnySlot]) -> bool:
    """Return whether a step can be made in sweeps."""
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
    """One sweep over the chunks of all tensors: which reductions it does, and which elements it stores."""

    sums: tuple[Value, ...]
    stores: tuple[Store, ...]


def sweeps(program: Program, stores: Sequence[Store]) -> list[Sweep]:
    """Return the sweeps of a step: one for each phase that reduces, and one more if what is stored waits for the last.

    Args:
        program: The step.
        stores: Those of its stores that are of elements.
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
    """Return the symbols that formulas are computed from, but not those that reductions are."""
    wanted = {symbol for expr in exprs for symbol in expr.free_symbols}
    for value in reversed(program.tensor):
        if value.symbol in wanted and not value.reduces:
            wanted |= value.expr.free_symbols
    return wanted
