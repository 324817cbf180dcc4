"""What a turn of a loop may do with the memory of what the turn before has handed on, and may do ahead of the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import sympy as sp

from optlang.ir import algebra
from optlang.ir.histories import ENTRY, is_operation
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
        if readers[-1] is value and not any(map(may_be_view, (*readers, *later))):
            found[value.symbol] = before
    return found


def multiplied_next(
    turn: Program, place: sp.Symbol, over: Mapping[sp.Symbol, sp.Symbol], is_dot: Callable[[sp.Expr], bool]
) -> dict[sp.Symbol, tuple[sp.Symbol, tuple[sp.Expr, ...]]]:
    """Return values that the next turn multiplies with an entry of a history, which may be done while they are made.

    Args:
        turn: The program of a turn.
        place: What it calls the place in the history.
        over: Values that are handed on, with what they are written over.
        is_dot: Whether an expression is the product of two vectors.

    Returns:
        For each such value that of the turn which is the sum of the products, and the parts of the history.
    """
    entries = {v.symbol: v.expr.args for v in turn.tensor if is_operation(v.expr, ENTRY) and v.expr.args[2] == place}
    found: dict[sp.Symbol, tuple[sp.Symbol, tuple[sp.Expr, ...]]] = {}
    for value, before in over.items():
        for v in turn.tensor:
            if value in found or not v.reduces or algebra.name_of(v.expr) != "sum" or len(v.expr.args) > 1:
                continue
            if before in v.expr.free_symbols and is_dot(v.expr.args[0]):
                (other,) = v.expr.free_symbols - {before}
                if other in entries:
                    found[value] = v.symbol, entries[other][:2] + entries[other][3:]
    return found


def may_be_view(value: Value) -> bool:
    """Whether a value may lie in the memory of what it is computed from."""
    return not (
        value.expr.is_Add or value.expr.is_Mul or value.expr.is_Pow or isinstance(value.expr, algebra.Reduction)
    )
