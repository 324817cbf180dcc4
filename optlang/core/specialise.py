"""Specialisation: a checked rule with its static questions answered -> straight-line statements.

Given the values of the hyperparameters and the facts of a tensor, everything static is decided: branches not taken are
removed, functions (the user's and derived builtins) are inlined, loops are unrolled, and options become literals.
Assignments remain, and ``if`` and ``every`` on values known only during a step. In a rule with matrices, shapes are
inferred too, so that a mismatch is found before anything is computed.

The answers form the *key* of the variant: value sets with equal keys specialise to the same statements, so one compiled
kernel serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.core.calls import CallReducer
from optlang.core.core import VERIFYING, Core, verify
from optlang.core.known import known_locals
from optlang.kinds import Level
from optlang.rule import Rule, State, Values
from optlang.syntax import tree as ast
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import assigned


def specialise(rule: Rule, values: Values, shape: tuple[int, ...] | None = None, event: str | None = None) -> Core:
    """Specialise a rule.

    Args:
        rule: The checked rule.
        values: Hyperparameters, keys of the param group and facts of the tensor.
        shape: The tensor's shape; by default a matrix with the sizes given in ``values``.
        event: ``eval`` or ``train`` to specialise ``on eval`` or ``on train`` instead of the step.

    Returns:
        The specialised statements and the key of the variant.

    Raises:
        Unfit: If the tensor's shape does not suit the rule.
    """
    work = _Specialiser(rule, values, shape)
    work.before_states()
    known = tuple(work.out)
    states = tuple(s for s in rule.states if s.when is None or work.decides(s.when))
    start = work.initial(states)
    body = work.statements(rule.body if event is None else rule.events[event])
    ndim = len(work.shape)
    core = Core(
        tuple(work.answers),
        states,
        start,
        (*known, *body),
        frozenset(work.dims),
        work.sizes is not None,
        ndim,
        event,
        tuple(work.questions),
        tuple(work.asked),
        work.told,
        work.sizes is not None or work.fixed_ndim,
    )
    if VERIFYING:
        verify(core, rule)
    return core


class _Specialiser(CallReducer):
    """One specialisation of a rule; see the module docstring."""

    def before_states(self) -> None:
        """Compute the locals that are known before the step, which states and functions may read anywhere."""
        rule = self.rule
        names = known_locals(rule)
        for statement in rule.body:
            if isinstance(statement, ast.Assign) and statement.targets[0].name in names:
                target = statement.targets[0]
                self.at = statement.span
                value = self.reduce(statement.value, {})
                self.assign(target, "=", value, statement.span)
                known = self.number(value)
                if known is not None:
                    self.values[target.name] = known
                    self.told[target.name] = self.sized(value)

    def initial(self, states: Sequence[State]) -> tuple[ast.Stmt, ...]:
        """Return the statements that initialise the states."""
        for state in states:
            if state.initial is not None:
                self.at = state.span
                value = self.reduce(state.initial, {})
                self.assign(ast.Name(state.span, state.name, state.name), "=", value, state.span)
            if self.sizes is not None and not self.sizes.names.get(state.name):  # a number is broadcast
                whole = state.scope is StateScope.TENSOR and state.kind.level > Level.SCALAR
                self.sizes.names[state.name] = self.shape if whole else ()
        return self.take()

    def statements(self, body: Sequence[ast.Stmt]) -> tuple[ast.Stmt, ...]:
        """Specialise a block and return its statements."""
        self.block(body)
        return self.take()

    def statement(self, node: ast.Stmt) -> None:
        """Specialise one statement."""
        self.at = node.span
        match node:
            case ast.Assign(targets=(target,), op=op, value=value, at=None):
                self.assign(target, op, self.reduce(value, {}), node.span)
            case ast.Assign(at=ast.Name()):
                self.entry(node)
            case ast.Assign(targets=targets, value=ast.Call() as call):
                results = self.several(call, {})
                # Results are bound before any target is assigned: `x, y = swap(x, y)`.
                held = [self.fresh(t.name, r) for t, r in zip(targets, results, strict=True)]
                for target, value in zip(targets, held, strict=True):
                    self.assign(target, "=", value, node.span)
            case ast.If():
                self.branches(node)
            case ast.Repeat(count=count, body=body):
                for turn in range(self.times(count, {})):
                    self.within(node, lambda: self.block(body), turn)
            case ast.For(over=ast.Name(name=over)) if over not in self.rule.keys:
                self.history(node)
            case ast.For(names=names, body=body):
                for turn, row in enumerate(self.turns(node)):
                    self.at = node.span
                    values = [self.reduce(value, {}) for value in row]
                    for name, value in zip(names, values, strict=True):
                        self.assign(name, "=", value, node.span)
                    self.within(node, lambda: self.block(body), turn)
            case ast.Every(period=period, start=start, body=body):
                length = self.reduce(period, {})
                begin = None if start is None else self.reduce(start, {})
                for target in assigned((node,)):
                    self.known.pop(target.name, None)
                before, known = self.take(), dict(self.known)
                block = self.statements(body)
                self.known = known
                self.out = [*before, replace(node, period=length, start=begin, body=block)]
            case _:
                raise AssertionError(f"the checker let {type(node).__name__} through")

    def history(self, node: ast.For) -> None:
        """Specialise a ``for`` over a history, which remains a loop."""
        assert self.sizes is not None
        for target in assigned((node,)):
            self.known.pop(target.name, None)
        self.entries[node.name.name] = self.sizes.of(node.over)[0]
        before, known = self.take(), dict(self.known)
        block = self.statements(node.body)
        self.known = known
        self.out = [*before, replace(node, body=block)]

    def entry(self, node: ast.Assign) -> None:
        """Specialise ``a[i] = x``, which sets one value per entry of a history."""
        assert self.sizes is not None and node.at is not None
        value = self.atom("entry", self.reduce(node.value, {}))
        (target,) = node.targets
        self.sizes.names[target.name] = (self.entries[node.at.name], *self.sizes.of(value))
        self.out.append(replace(node, value=value))

    def block(self, body: Sequence[ast.Stmt]) -> None:
        """Specialise statements in order."""
        for statement in body:
            self.statement(statement)

    def branches(self, node: ast.If) -> None:
        """Inline the taken branch of a static ``if``, or emit an ``if`` with the branches that remain."""
        left: list[tuple[ast.Expr, tuple[ast.Stmt, ...]]] = []
        other = node.other
        for condition, body in node.branches:
            held = self.condition(condition, {})
            if isinstance(held, ast.Bool):
                if not held.value:
                    continue
                other = body
                break
            left.append((held, body))
        if not left:
            for statement in other or ():
                self.statement(statement)
            return
        for target in assigned((node,)):  # no longer a literal on every path
            self.known.pop(target.name, None)
        before = self.take()
        known = dict(self.known)
        blocks = []
        for condition, body in left:
            self.known = dict(known)
            blocks.append((condition, self.statements(body)))
        self.known = dict(known)
        rest = self.statements(other) if other else None
        self.known = known
        self.out = [*before, ast.If(node.span, tuple(blocks), rest)]
