"""Lowering of histories: rings of rows, in which a push writes one row.

The entry i of a history of k entries, the oldest being 0, lies in row ``(start + i) % k`` of its state; ``start`` is a
state too. A push puts the newest entry into the row of the oldest and moves the start on by one.

No row is written before the end of a step. In the middle of one, a history is its state as it was, and what has been
pushed since, each value with the condition under which it is: ``history(s, start, x, held, ...)``. This expression has
no name of its own, and so is never computed and never handed from one stage to another: reading an entry, reading all
of them in order, and storing are operations that take its parts.
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

#: The condition under which a value is pushed that always is.
ALWAYS = algebra.call("true")
#: The operations that take the parts of a history.
ENTRY, IN_ORDER, PUSHED = "entry", "in_order", "pushed"
#: What is pushed: values, each with its condition.
Pushes = tuple[tuple[sp.Expr, sp.Expr], ...]


class Histories(Matrices):
    """Lowers histories."""

    states: Mapping[str, State]

    @abstractmethod
    def name(self, name: str) -> Ref:
        """Return what a name stands for now."""

    def history(self, name: str, state: Ref) -> Ref:
        """Return a state, as a history before anything is pushed to it if it is one."""
        if starter(name) not in self.states:
            return state
        return Ref(algebra.matrix_operation("history")(state.expr, self.name(starter(name)).expr), state.kind)

    def in_order(self, ref: Ref) -> Ref:
        """Return a value; of a history, a tensor with its entries in order."""
        return self.operation(IN_ORDER, ref.kind, *ref.expr.args) if is_history(ref) else ref

    def part_of(self, node: Part) -> Ref:
        """Lower ``x[...]``; one entry of a history is where it lies."""
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
        """Lower a push: what the history is with one more entry."""
        target, x = node.arguments
        assert isinstance(target, ast.Name)
        history, value = self.name(target.name), self.expr(x)
        shape = history.kind.shape[1:]
        # A parameter without dimensions is an element, and a number: it needs no other kind to be an entry.
        fits = value.kind.on_device and self.shape_of(value.kind) == shape
        value = self.named(value) if fits else self.filled(value, self.kind_of_shape(shape))
        return Ref(history.expr.func(*history.expr.args, value.expr, ALWAYS), history.kind)

    def pushed_where(self, condition: Ref, a: Ref, b: Ref) -> Ref:
        """Return a history after an ``if``, on whose sides different values have been pushed.

        Args:
            condition: The condition.
            a: What the history is where it holds.
            b: What it is otherwise.
        """
        ours, theirs = pushes(a), pushes(b)
        both = tuple(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
        found = [*both, *self.under(condition, ours[len(both) :])]
        if left := theirs[len(both) :]:
            found += self.under(Ref(algebra.call("not", condition.expr), condition.kind, True), left)
        return Ref(a.expr.func(*a.expr.args[:2], *(part for pair in found for part in pair)), a.kind)

    def under(self, condition: Ref, values: Pushes) -> Pushes:
        """Return what is pushed if a condition holds, too."""
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
        """Return what is written of a history: what has been pushed, given where it begins after that."""
        values = ref.expr.args[2:]
        return [Store(name, algebra.matrix_operation(PUSHED)(start, *values), kind)] if values else []


def is_history(ref: Ref) -> bool:
    """Whether a value is a history."""
    return is_operation(ref.expr, "history")


def is_operation(expr: sp.Expr, *names: str) -> bool:
    """Whether an expression is one of some operations on matrices."""
    return isinstance(expr, algebra.MatrixOperation) and algebra.name_of(expr) in names


def pushes(ref: Ref) -> Pushes:
    """Return what has been pushed to a history in this step."""
    values: Sequence[sp.Expr] = ref.expr.args[2:]
    return tuple(zip(values[::2], values[1::2], strict=True))
