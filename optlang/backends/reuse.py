"""Which values of a turn of a loop may be written into the memory of what the turn before has handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value


def written_over(
    turn: Program, carried: Sequence[sp.Symbol], added_to: Callable[[Value], sp.Symbol | None]
) -> dict[sp.Symbol, sp.Symbol]:
    """Return values that may lie where what they are the sum of lies, by their names.

    Such a value is x + c*y, takes the place of x in the next turn, and nothing else may show x or it at another time.

    Args:
        turn: The program of a turn; its stores are what it hands on.
        carried: What it calls what the turn before has handed on, in the order of the stores.
        added_to: Returns the x of a value that is x + c*y; None for other values.
    """
    values = {v.symbol: v for v in turn.tensor}
    handed_on = Counter(store.expr for store in turn.stores)
    found: dict[sp.Symbol, sp.Symbol] = {}
    for before, store in zip(carried, turn.stores, strict=True):
        value = values.get(store.expr)
        if value is None or added_to(value) != before or handed_on[value.symbol] > 1 or before in handed_on:
            continue
        readers = [v for v in turn.tensor if before in v.expr.free_symbols]
        later = [v for v in turn.tensor if value.symbol in v.expr.free_symbols]
        if readers[-1] is value and not any(map(_may_be_view, (*readers, *later))):
            found[value.symbol] = before
    return found


def _may_be_view(value: Value) -> bool:
    """Whether a value may lie in the memory of what it is computed from."""
    return not (value.expr.is_Add or value.expr.is_Mul or value.expr.is_Pow or isinstance(value.expr, algebra.Reduction))
