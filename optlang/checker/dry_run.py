"""Dry run: executes the first steps of a rule on a few numbers.

It finds zero denominators and negative roots in the first step, and rules that ascend. Running the rule on small tables
takes the order of assignments, conditions and cancellation into account, so that only what really happens is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from optlang.checker import grid
from optlang.checker.dry_run_values import DryRunValues, Env, Thing, negation, select, with_mask
from optlang.checker.grid import Abandoned, Grid, each, number
from optlang.core.known import known_locals
from optlang.core.limits import MAX_REPEATS
from optlang.source import Span
from optlang.syntax.tree import Assign, Binary, Call, Every, Expr, For, If, Name, Repeat, Return, Stmt
from optlang.syntax.walk import body_of


@dataclass
class DryRun(DryRunValues):
    """The execution of a rule on one table.

    Attributes:
        moved: How far each assignment to p moves along the gradient, summed over the elements, by span.
        along: How far each element has moved along its gradient.
    """

    moved: dict[Span, float] = field(default_factory=dict)
    along: Grid = field(default_factory=lambda: number(0))

    def run(self, steps: int) -> None:
        """Run some steps.

        Raises:
            Abandoned: If the rule uses something that a dry run does not support.
        """
        self.start()
        for _ in range(steps):
            self.step += 1
            self.env["g"] = self.g
            self.block(self.rule.body)

    def start(self) -> None:
        """Initialise the states."""
        self.env = {"p": self.p, "g": self.g}
        for name, formula in known_locals(self.rule).items():
            with suppress(Abandoned):
                self.env[name] = self.value(formula)
        initial: Env = {}
        for state in self.rule.states:
            if state.when is not None and not self.holds(state.when):
                continue
            value = self.number(state.initial) if state.initial is not None else number(0)
            initial[state.name] = value
        self.env |= initial

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> None:
        """Run statements of the rule."""
        for statement in body:
            match statement:
                case Assign(targets=(target,)):
                    self.assign(target, self.assigned(statement), statement.span)
                case Assign(targets=targets, value=Call() as call):
                    for target, value in zip(targets, self.call_function(call), strict=True):
                        self.assign(target, value, statement.span)
                case If(branches=branches, other=other):
                    self.branch(branches, other or ())
                case Repeat() | For() | Every():
                    self.loop(statement, self.block)
                case _:
                    raise Abandoned

    def loop(self, node: Repeat | For | Every, run: Callable[[Sequence[Stmt]], object]) -> None:
        """Run a block repeatedly, or if it is due."""
        match node:
            case Repeat(count=count, body=body):
                for _ in range(self.times(count)):
                    run(body)
            case For(rows=rows, names=names, body=body) if rows:
                for row in rows:
                    values = {name.name: self.value(value) for name, value in zip(names, row, strict=True)}
                    (self.env if self.frame is None else self.frame).update(values)
                    run(body)
            case For(over_name=over) if over not in self.rule.keys:
                raise Abandoned  # over a history
            case For(name=name, over_name=over, body=body):
                for hyper in self.rule.keys[over][:: -1 if node.backwards else 1]:
                    (self.env if self.frame is None else self.frame)[name.name] = self.name(hyper.name)
                    run(body)
            case Every(period=period, start=start, first=first, body=body):
                every = self.number(period).data[0]
                past = self.step - (self.number(start).data[0] if start is not None else 0)
                if (first and self.step == 1) or (every > 0 and past >= 0 and past % every == 0):
                    run(body)

    def times(self, count: Expr) -> int:
        """Return the count of a ``repeat``."""
        number = self.number(count).data[0]
        if not 0 <= number <= MAX_REPEATS:
            raise Abandoned
        return int(number)

    def assigned(self, node: Assign) -> Thing:
        """Return the value that an assignment assigns."""
        if node.at is not None:
            raise Abandoned
        value = self.value(node.value)
        if node.op == "=":
            return value
        return self.arithmetic(Binary(node.span, node.op[:-1], node.targets[0], node.value), value)

    def assign(self, target: Name, value: Thing, span: Span) -> None:
        """Assign a value to a name; for p, record how far it moves along the gradient."""
        if target.name == "p":
            before = self.grid("p")
            if not isinstance(value, Grid):
                raise Abandoned
            value = each(lambda a, _: a, value, before)
            change = each(lambda a, b, g: (a - b) * g, value, before, self.g)
            far = grid.total(change.data)
            self.moved[span] = self.moved.get(span, 0.0) + (far if math.isfinite(far) else 0.0)
            self.along = each(lambda a, b: a + b, self.along, change)
        self.env[target.name] = value

    def branch(self, branches: Sequence[tuple[Expr, Sequence[Stmt]]], other: Sequence[Stmt]) -> None:
        """Run the branch that holds; for an elementwise condition, run each branch on the elements where it holds."""
        if not branches:
            self.block(other)
            return
        (condition, body), *rest = branches
        held = self.truth(condition)
        if held.is_number:
            if held.data[0]:
                self.block(body)
            else:
                self.branch(rest, other)
            return
        before = dict(self.env)
        with_mask(self.masks, held, lambda: self.block(body))
        taken, self.env = self.env, before.copy()
        with_mask(self.masks, each(negation, held), lambda: self.branch(rest, other))
        for name in {*taken, *self.env}:
            a, b = taken.get(name), self.env.get(name)
            if isinstance(a, Grid) and isinstance(b, Grid) and a is not b:
                self.env[name] = each(select, held, a, b)
            elif name not in self.env:
                self.env[name] = a

    # Functions ----------------------------------------------------------------------------------------------------

    def call_function(self, node: Call) -> tuple[Thing, ...]:
        """Call one of the rule's functions and return its results."""
        assert isinstance(node.function, Name)
        function = self.rule.functions.get(node.function.name)
        if function is None:  # a builtin with several results
            raise Abandoned
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        given = [a.value for a in node.arguments if a.name is None]
        inner: Env = {}
        for i, parameter in enumerate(function.parameters):
            argument = given[i] if i < len(given) else named.get(parameter.name.name, parameter.default)
            if argument is None:
                raise Abandoned
            inner[parameter.name.name] = self.value(argument)
        caller, self.frame = self.frame, inner
        try:
            results = self.function_block(body_of(function))
        finally:
            self.frame = caller
        if results is None:
            raise Abandoned
        return results

    def function_block(self, body: Sequence[Stmt]) -> tuple[Thing, ...] | None:
        """Run the statements of a function; elementwise conditions are not supported."""
        assert self.frame is not None
        for statement in body:
            match statement:
                case Return(values=values):
                    return tuple(self.value(v) for v in values)
                case Assign(targets=(target,)):
                    self.frame[target.name] = self.assigned(statement)
                case Assign(targets=targets, value=Call() as call):
                    self.frame.update(zip((t.name for t in targets), self.call_function(call), strict=True))
                case If(branches=branches, other=other):
                    chosen = next((block for condition, block in branches if self.holds(condition)), other or ())
                    results = self.function_block(chosen)
                    if results is not None:
                        return results
                case Repeat() | For() | Every():
                    self.loop(statement, self.function_block)
                case _:
                    raise Abandoned
        return None
