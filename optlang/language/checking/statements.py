"""What statements assign, in one variant of a rule: kinds that fit, values on every path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.language.checking.inlining import Inliner, meet
from optlang.language.checking.scope import DeclaredState
from optlang.language.checking.values import Sort, Uses, Value
from optlang.language.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level
from optlang.language.tree import (
    Assign,
    Expr,
    If,
    Name,
    Stmt,
)
from optlang.language.walk import expressions


class Variant(Inliner):
    """Reads a whole rule in one world."""

    path: tuple[tuple[Expr, Value], ...] = ()  # conditions of the blocks around, as far as they matter to state

    def rule(self, body: Sequence[Stmt]) -> None:
        """Read the states and the statements of a rule."""
        self.declaring = True
        for state in self.scope.states.values():
            self.exists[state.name] = self.state_exists(state)
        for state in self.scope.states.values():
            self.kinds[state.name] = self.initial_kind(state)
        self.declaring = False
        self.body = body
        self.block(body)

    # States -------------------------------------------------------------------------------------------------

    def state_exists(self, state: DeclaredState) -> bool:
        """Return whether a state exists in this world."""
        if state.when is None:
            return True
        held = self.condition(state.when)
        if held.sort is Sort.UNKNOWN and not held.is_static:
            return True
        if not held.is_static and self.findings.error_inside(state.when.span):
            return True
        if not held.is_static:
            self.report(
                "E303",
                "whether a state exists must be known before the first step",
                state.when.span,
                label="not a condition that a variant can be chosen by",
                help="after `when`, compare hyperparameters and facts of the tensor (ndim, numel, rows, cols)",
            )
            return True
        if state.scope == "group" and held.uses & Uses.FACT:
            self.report(
                "E303",
                "a group state cannot depend on one tensor's shape",
                state.when.span,
                label="differs from tensor to tensor",
                help="make it a state of each tensor: leave `group` away",
            )
            return True
        return self.decide(state.when, held) is not False

    def initial_kind(self, state: DeclaredState) -> Kind:
        """Return the kind of a state, which its initial value gives."""
        initial = state.item.initial
        grouped, scalar = state.scope == "group", state.item.type == "scalar"
        if initial is None or not self.exists[state.name]:
            return HOST if grouped else (SCALAR if scalar else ELEMENT)
        value = self.number(initial)
        if grouped:
            self.group_initial(state, initial, value)
            return HOST
        if scalar:
            if value.kind.level > Level.SCALAR and value.sort is not Sort.UNKNOWN:
                self.report(
                    "E301",
                    f"`{state.item.name.text}` is one number, but its initial value is {_shape(value.kind)}",
                    initial.span,
                    label=_shape(value.kind),
                    help="leave `: scalar` away, or reduce the value: `norm(x)`, `mean(x)`",
                )
            return SCALAR
        return value.kind if value.kind.level >= Level.SCALAR else ELEMENT

    def group_initial(self, state: DeclaredState, initial: Expr, value: Value) -> None:
        """Check that the initial value of a group state can be computed from hyperparameters alone."""
        if value.sort is not Sort.UNKNOWN and not value.is_static and not self.findings.error_inside(initial.span):
            self.report(
                "E312",
                f"the initial value of `{state.item.name.text}` cannot be computed when the group is made",
                initial.span,
                label="expected arithmetic on numbers and hyperparameters",
                help="functions such as max, min, sqrt, exp and log can be used here",
            )

    # Statements ---------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> None:
        """Read statements of the rule."""
        for statement in body:
            match statement:
                case Assign():
                    self.assign(statement)
                case If():
                    self.branch(statement.branches, statement.other or ())
                case _:
                    pass

    def assign(self, node: Assign) -> None:
        """Read one assignment."""
        if len(node.targets) > 1:
            results = self.results(node)
            for target, value in zip(node.targets, results, strict=True):
                self.store(target, value, node.value)
            return
        target = node.targets[0]
        if target.name in self.scope.states:
            self.state(target)  # reported before what the value reads
        value = self.assigned(node)
        if target.name == "p":
            self.filling(value, node.value)
        elif target.name in self.scope.states:
            self.store_state(target, value, node.value)
        elif target.name not in self.scope.hypers:
            self.store(target, value, node.value)

    def store(self, target: Name, value: Value, expr: Expr) -> None:
        """Give a local name (or one of several targets) its value."""
        if target.name == "p":
            self.filling(value, expr)
        elif target.name in self.scope.states:
            self.store_state(target, value, expr)
        elif target.name not in self.scope.hypers:
            if target.name == "g":
                self.filling(value, expr)
            keep = value.literal or value.sort is not Sort.NUMBER
            self.env[target.name] = value if keep else replace(value, uses=value.uses | Uses.LOCAL)

    def filling(self, value: Value, expr: Expr) -> None:
        """Check that a value can be stored in a tensor."""
        if value.sort in (Sort.TEXT, Sort.NONE):
            self.number(expr)

    def store_state(self, target: Name, value: Value, expr: Expr) -> None:
        """Check that a state can hold a value."""
        state = self.scope.states[target.name]
        self.state(target)
        self.filling(value, expr)
        if value.sort is Sort.UNKNOWN:
            return
        if state.scope == "group":
            self.store_group(target, value, expr)
            return
        kind = self.kinds[target.name]
        for cause, given in ((expr, value.kind), *((c, v.kind) for c, v in self.path)):
            if not _fits(given, kind):
                self.misfit(target, state, kind, cause, given, cause is expr)
                return

    def misfit(self, target: Name, state: DeclaredState, kind: Kind, cause: Expr, given: Kind, direct: bool) -> None:
        """Report a value that has more elements than the state it is assigned to."""
        held = "one number for each tensor" if kind.level is Level.SCALAR else str(kind)
        if direct:
            message = f"`{target.text}` is {held}, but this value is {_shape(given)}"
        else:
            message = f"`{target.text}` is {held}, but is assigned where a condition is {_shape(given)}"
        helps = "reduce the value: `norm(x)`, `mean(x)`, `sum(x)`"
        if kind.level is Level.REDUCED:
            helps = "reduce the value over the same dimensions, written the same way"
        other = f"give `{target.text}` an initial value of the larger shape"
        if state.item.type == "scalar":
            other = "leave `: scalar` away for a state shaped like p"
        self.report(
            "E301",
            message,
            cause.span,
            label=_shape(given),
            help=f"{helps}; or {other}",
            related=(("declared here", state.item.span),),
        )

    def store_group(self, target: Name, value: Value, expr: Expr) -> None:
        """Check that a group state takes no value that differs from tensor to tensor."""
        for cause, given in ((expr, value), *self.path):
            if not given.uses & (Uses.TENSOR | Uses.FACT):
                continue
            name = self.culprit(cause)
            self.report(
                "E302",
                f"`{target.text}` is one number for the whole group and cannot depend on a single tensor",
                name.span,
                label=f"`{name.text}` differs from tensor to tensor"
                if isinstance(name, Name)
                else "differs from tensor to tensor",
                help=f"use hyperparameters, t and group states only, or declare `state {target.text}` for each tensor",
                related=(("declared here", self.scope.states[target.name].item.span),),
            )
            return

    def culprit(self, expr: Expr) -> Expr:
        """Return the first name in an expression that belongs to a single tensor, or the expression."""
        for node in expressions(expr):
            if isinstance(node, Name) and node.name not in self.scope.functions:
                known = self.env.get(node.name)
                if node.name in self.scope.states or node.name in ("p", "g", *self.world.values):
                    known = self.name(node)
                if known is not None and known.uses & (Uses.TENSOR | Uses.FACT):
                    return node
        return expr

    # Branches -----------------------------------------------------------------------------------------------

    def branch(self, branches: Sequence[tuple[Expr, Sequence[Stmt]]], other: Sequence[Stmt]) -> None:
        """Read an ``if``: the branch a variant takes, or both sides of a condition that only a step decides."""
        if not branches:
            self.block(other)
            return
        (condition, body), *rest = branches
        held = self.condition(condition)
        answer = self.decide(condition, held)
        outside = self.path
        # A static condition gives a state no larger shape, but it may differ from tensor to tensor (`ndim > 1`).
        self.path = (*outside, (condition, held if answer is None else replace(held, kind=STATIC)))
        if answer is not None:
            if answer:
                self.block(body)
            else:
                self.branch(rest, other)
            self.path = outside
            return
        before = dict(self.env)
        self.block(body)
        taken, self.env = self.env, before.copy()
        self.branch(rest, other)
        self.env = meet(taken, self.env, held)
        self.path = outside


def _fits(value: Kind, held: Kind) -> bool:
    """Whether a state of kind ``held`` can take a value, which is spread where it is smaller."""
    if value.level <= Level.SCALAR or held.level is Level.ELEMENT:
        return True
    if held.level is Level.SCALAR or value.level is Level.ELEMENT:
        return False
    return held.dims <= value.dims


def _shape(kind: Kind) -> str:
    """Return what a kind looks like, as a phrase."""
    if kind.level is Level.ELEMENT:
        return "shaped like p"
    if kind.level is Level.REDUCED:
        return str(kind)
    return "one number"
