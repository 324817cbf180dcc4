"""Lowering of histories: ring buffers of rows, in which a push writes one row.

Entry i of a history with k entries (0 is the oldest) is in row ``(start + i) % k`` of its state; ``start`` is a state
too. A push overwrites the oldest row and increments the start.

No row is written before the end of a step. Until then a history is its old state plus the values pushed since, each
with its condition: ``history(s, start, x, held, ...)``. This expression is never bound to a name, so it is never
materialised or passed between stages: reading an entry, reading all entries in order, and storing are operations on its
parts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import takewhile

import sympy as sp

from optlang.core.core import Operation, Part
from optlang.expand.histories import starter
from optlang.ir import algebra
from optlang.ir.builder import Ref
from optlang.ir.matrices import Matrices
from optlang.ir.program import Store
from optlang.kinds import Kind, join
from optlang.rule import State
from optlang.syntax import tree as ast

#: The condition of an unconditional push.
ALWAYS = algebra.call("true")
#: The operations that take the parts of a history.
ENTRY, IN_ORDER, PUSHED = "entry", "in_order", "pushed"
#: Pushed values, each with its condition.
Pushes = tuple[tuple[sp.Expr, sp.Expr], ...]


class Histories(Matrices):
    """Lowers histories."""

    states: Mapping[str, State]

    @abstractmethod
    def name(self, name: str) -> Ref:
        """Return the current value of a name."""

    def history(self, name: str, state: Ref) -> Ref:
        """Return a state, wrapped as a history without pushes if it is one."""
        if starter(name) not in self.states:
            return state
        return Ref(algebra.matrix_operation("history")(state.expr, self.name(starter(name)).expr), state.kind)

    def in_order(self, ref: Ref) -> Ref:
        """Return a value; for a history, a tensor of its entries in order."""
        return self.operation(IN_ORDER, ref.kind, *ref.expr.args) if is_history(ref) else ref

    def part_of(self, node: Part) -> Ref:
        """Lower ``x[...]``; a single entry of a history is read in place."""
        first, *others = node.items
        if isinstance(node.value, ast.Name) and not isinstance(first, ast.Slice):
            ref = self.name(node.value.name)
            place = self.expr(first) if is_history(ref) else ref
            if is_history(ref) and not place.kind.on_device:
                state, start, *pushes = ref.expr.args
                kind = self.kind_of_shape(ref.kind.shape[1:])
                entry = self.operation(ENTRY, kind, state, start, place.expr, *pushes)
                return self.placed(entry, others) if others else entry
        return super().part_of(node)

    def pushed(self, node: Operation) -> Ref:
        """Lower a push: the history with one more entry."""
        target, x = node.arguments
        assert isinstance(target, ast.Name)
        history, value = self.name(target.name), self.expr(x)
        shape = history.kind.shape[1:]
        # A 0-dimensional parameter is both an element and a number; as an entry it needs no other kind.
        fits = value.kind.on_device and self.shape_of(value.kind) == shape
        value = self.named(value) if fits else self.filled(value, self.kind_of_shape(shape))
        return Ref(history.expr.func(*history.expr.args, value.expr, ALWAYS), history.kind)

    def pushed_where(self, condition: Ref, a: Ref, b: Ref) -> Ref:
        """Return a history after an ``if`` whose branches push different values.

        Args:
            condition: The condition.
            a: The history if it holds.
            b: The history if it does not.
        """
        ours, theirs = pushes(a), pushes(b)
        both = tuple(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
        found = [*both, *self.under(condition, ours[len(both) :])]
        if left := theirs[len(both) :]:
            found += self.under(Ref(algebra.call("not", condition.expr), condition.kind, True), left)
        return Ref(a.expr.func(*a.expr.args[:2], *(part for pair in found for part in pair)), a.kind)

    def under(self, condition: Ref, values: Pushes) -> Pushes:
        """Return pushes made conditional on one more condition."""
        if not values:
            return ()
        kinds = self.out.kinds()
        found, held = [], self.named_condition(condition)
        for x, own in values:
            if own == ALWAYS:
                found.append((x, held.expr))
                continue
            kind = join([held.kind, *(kinds[s] for s in own.free_symbols)])
            found.append((x, self.named_condition(Ref(algebra.call("and", held.expr, own), kind, True)).expr))
        return tuple(found)

    def named_condition(self, condition: Ref) -> Ref:
        """Return a condition as a named value."""
        if condition.expr.is_Symbol:
            return condition
        if condition.expr not in self.done:
            self.done[condition.expr] = self.out.bind("held", condition)
        return self.done[condition.expr]

    def stored(self, name: str, ref: Ref, start: sp.Expr, kind: Kind) -> list[Store]:
        """Return the store of a history's pushes, given its new start."""
        values = ref.expr.args[2:]
        return [Store(name, algebra.matrix_operation(PUSHED)(start, *values), kind)] if values else []


def is_history(ref: Ref) -> bool:
    """Return whether a value is a history."""
    return is_operation(ref.expr, "history")


def is_operation(expr: sp.Expr, *names: str) -> bool:
    """Return whether an expression is one of the named matrix operations."""
    return isinstance(expr, algebra.MatrixOperation) and algebra.name_of(expr) in names


def pushes(ref: Ref) -> Pushes:
    """Return the values pushed to a history in this step."""
    values: Sequence[sp.Expr] = ref.expr.args[2:]
    return tuple(zip(values[::2], values[1::2], strict=True))
