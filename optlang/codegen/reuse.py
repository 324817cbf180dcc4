"""Buffer reuse in loops, and work an iteration can do ahead for the next."""

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
    """Return values that may be computed in place of one of their operands, with that operand.

    Such a value is x + c*y and replaces x in the next iteration; nothing else may observe x or the value at another
    time.

    Args:
        turn: The program of an iteration; its stores are the loop-carried values.
        carried: Its symbols of the values carried over from the previous iteration, in the order of the stores.
        added_to: Returns the x of a value x + c*y; None for other values.
    """
    values = {v.symbol: v for v in turn.tensor}
    stored = Counter(store.expr for store in turn.stores)
    found: dict[sp.Symbol, sp.Symbol] = {}
    for before, store in zip(carried, turn.stores, strict=True):
        value = values.get(store.expr)
        if value is None or added_to(value) != before or stored[value.symbol] > 1 or before in stored:
            continue
        readers = [v for v in turn.tensor if before in v.expr.free_symbols]
        later = [v for v in turn.tensor if value.symbol in v.expr.free_symbols]
        if readers[-1] is value and not any(map(may_be_view, (*readers, *later))):
            found[value.symbol] = before
    return found


def multiplied_next(
    turn: Program, place: sp.Symbol, over: Mapping[sp.Symbol, sp.Symbol], is_dot: Callable[[sp.Expr], bool]
) -> dict[sp.Symbol, tuple[sp.Symbol, tuple[sp.Expr, ...]]]:
    """Return values that can be multiplied, as they are computed, with the entry the next iteration reads.

    Args:
        turn: The program of an iteration.
        place: Its symbol of the position in the history.
        over: Loop-carried values, with the operands they replace.
        is_dot: Returns whether an expression is the elementwise product of two vectors.

    Returns:
        For each such value the symbol of the dot product, and the operands of the history.
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
    """Return whether a value may share memory with its operands."""
    return not (
        value.expr.is_Add or value.expr.is_Mul or value.expr.is_Pow or isinstance(value.expr, algebra.Reduction)
    )
