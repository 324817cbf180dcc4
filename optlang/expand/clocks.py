"""Time in inner rules: placeholders in their text, until it is known whether they need their own step count.

Whether an inner rule shares the tensor's time or counts its own steps depends on where it is called, which is known
only after expansion. Until then, placeholders replace ``t``, ``first``, ``every`` and schedules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from optlang.core.definitions import default, definition
from optlang.core.substitute import placed, renamed
from optlang.expand.context import Work
from optlang.functions.table import BUILTINS, TIME
from optlang.source import Span
from optlang.syntax import tree
from optlang.syntax.walk import rebuilt

#: Functions that read the time.
TIMED = tuple(row.name for row in BUILTINS.values() if row.group == TIME)


@dataclass(frozen=True)
class Clock:
    """The time placeholders of one inner rule.

    Attributes:
        step: The state that counts its steps; each call increments it.
        key: The ``state_dict`` key of the count.
        first: Placeholder for whether this is its first step.
        due: Function that replaces ``every``; its arguments are the period, the start, and whether the first step
            counts.
        reached: Function around things that concern only tensors for which the rule is called.
        timed: Functions that replace schedules, by the name of the schedule.
        place: The span of its declaration.
        piece: The name of the rule.
        common: The widest scope of its non-tensor states, ``group`` or ``optimizer``; None if it has none.
    """

    step: str
    key: str
    first: str
    due: str
    reached: str
    timed: Mapping[str, str]
    place: Span
    piece: str
    common: str | None

    @classmethod
    def of(cls, work: Work, node: tree.Inner, prefix: str, rule: tree.Tree) -> Clock:
        """Return the clock of an inner rule. Placeholders that do not survive have names that no rule can write."""
        states = [item for item in rule.items if isinstance(item, tree.StateDecl)]
        keys = {item.key or item.name.name for state in states for item in state.items}
        scopes = {state.scope for state in states}
        return cls(
            work.fresh(f"{prefix}_step", f"{node.name.text}'s t"),
            f"{prefix}.{'count' if 'step' in keys else 'step'}",
            f"first of {prefix}",
            f"due in {prefix}",
            f"reached by {prefix}",
            {function: work.fresh(f"{prefix}_{function}", function) for function in TIMED},
            node.span,
            node.rule.text if isinstance(node.rule, tree.Name) else node.rule.value,
            "optimizer" if tree.StateScope.SHARED in scopes else "group" if tree.StateScope.GROUP in scopes else None,
        )

    @property
    def functions(self) -> set[str]:
        """The placeholders that are functions."""
        return {self.due, self.reached, *self.timed.values()}

    def wound(self, items: Sequence[tree.Decl | tree.Stmt]) -> tuple[tree.Decl | tree.Stmt, ...]:
        """Return a rule with time replaced by placeholders."""
        own = {item.name.name for item in items if isinstance(item, tree.Def)}

        def change(new: tree.Node, old: tree.Node) -> tree.Node:
            match new:
                case tree.Name(name="t"):
                    return _name(new.span, self.step)
                case tree.Name(name="first"):
                    return _name(new.span, self.first)
                case tree.Call(function=tree.Name(name=name)) if name in self.timed and name not in own:
                    return tree.Call(new.span, _name(new.function.span, self.timed[name]), new.arguments)
                case tree.Every():
                    start = () if new.start is None else (tree.Argument(new.start.span, "start", new.start),)
                    first = (tree.Argument(new.span, "first", tree.Bool(new.span, new.first)),)
                    period = (tree.Argument(new.period.span, "period", new.period),)
                    call = tree.Call(new.period.span, _name(new.period.span, self.due), (*period, *start, *first))
                    return tree.If(new.span, ((call, new.body),), None)
            return new

        return rebuilt(tuple(items), change)

    def if_reached(self, place: Span, *value: tree.Expr) -> tree.Call:
        """Return the ``reached`` placeholder around a value, or instead of a condition."""
        return tree.Call(place, _name(place, self.reached), tuple(tree.Argument(v.span, None, v) for v in value))

    def tick(self, place: Span) -> tree.Assign:
        """Return the statement that increments the count."""
        return tree.Assign(place, (_name(place, self.step),), "+=", _number(place, 1))

    def state(self) -> tree.StateDecl:
        """Return the declaration of the count."""
        place = self.place
        item = tree.StateItem(place, _name(place, self.step), "scalar", _number(place, 0), self.key)
        return tree.StateDecl(place, tree.StateScope.TENSOR, (item,), None)

    # Resolving placeholders ---------------------------------------------------------------------------------

    def with_tensor(self, node: tree.Node) -> tree.Node:
        """Resolve a placeholder for a rule that shares the tensor's time."""
        names = {self.step: "t", self.first: "first"}
        match node:
            case tree.Name(name=name) if name in names:
                return _name(node.span, names[name])
            case tree.Call(function=tree.Name(name=name)) if name in self.timed.values():
                original = next(function for function, own in self.timed.items() if own == name)
                return tree.Call(node.span, _name(node.function.span, original), node.arguments)
            case tree.If(branches=((tree.Call(function=tree.Name(name=self.due)) as call, body),)):
                period, start, first = _due(call)
                return tree.Every(node.span, period, start, first, body)
        return node

    def alone(self, node: tree.Node) -> tree.Node:
        """Resolve a placeholder for a rule that counts its own steps."""
        match node:
            case tree.Name(name=self.first):
                return self._is_first(node.span)
            case tree.Call(function=tree.Name(name=self.due)):
                return self._is_due(node)
        return node

    def schedules(self, used: Collection[str]) -> list[tree.Def]:
        """Return definitions of the schedules that a rule uses, based on its own count."""
        made, place = list[tree.Def](), self.place
        for name in TIMED:
            formula, builtin = definition(name), BUILTINS[name]
            assert formula is not None
            if self.timed[name] in used:
                named = ((_name(place, p), default(builtin, p)) for p, _ in builtin.parameters)
                parameters = tuple(tree.Parameter(place, *parameter) for parameter in named)
                body = renamed(formula, {"t": self.step})
                made.append(tree.Def(place, _name(place, self.timed[name]), parameters, body))
        return [placed(function, lambda span: place) for function in made]

    def _is_first(self, place: Span) -> tree.Compare:
        return tree.Compare(place, ("==",), (_name(place, self.step), _number(place, 1)))

    def _is_due(self, call: tree.Call) -> tree.Expr:
        """Return the condition for running an ``every`` block."""
        period, start, first = _due(call)
        place, t = call.span, _name(call.span, self.step)
        since = t if start is None else tree.Binary(place, "-", t, start)
        rest = tree.Binary(place, "%", since, period)
        due: tree.Expr = tree.Compare(place, ("==",), (rest, _number(place, 0)))
        if start is not None:
            due = tree.Binary(place, "and", tree.Compare(place, (">=",), (t, start)), due)
        due = tree.Binary(place, "and", tree.Compare(place, (">",), (period, _number(place, 0))), due)
        return tree.Binary(place, "or", self._is_first(place), due) if first else due


def _due(call: tree.Call) -> tuple[tree.Expr, tree.Expr | None, bool]:
    """Return the period, the start and whether the first step counts."""
    found = {argument.name: argument.value for argument in call.arguments}
    first = found["first"]
    assert isinstance(first, tree.Bool)
    return found["period"], found.get("start"), first.value


def _name(place: Span, name: str) -> tree.Name:
    return tree.Name(place, name, name)


def _number(place: Span, value: int) -> tree.Number:
    return tree.Number(place, str(value), Fraction(value))
