"""What statements assign, in one variant of a rule: kinds that fit, values on every path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.language.expressions import Reader
from optlang.language.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level
from optlang.language.scope import DeclaredState
from optlang.language.tree import (
    Assign,
    Bool,
    Call,
    Expr,
    If,
    Infinity,
    Member,
    Name,
    Nothing,
    Number,
    Return,
    Stmt,
    Text,
)
from optlang.language.values import MISTAKE, Sort, Uses, Value, combine, merge
from optlang.language.walk import body_of, expressions

ATOMS = (Number, Infinity, Text, Bool, Nothing, Name, Member)
Results = tuple[Value, ...]


class Variant(Reader):
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
        value = self.assigned(node)
        if target.name == "p":
            self.filling(value, node.value)
        elif target.name in self.scope.states:
            self.store_state(target, value, node.value)
        elif target.name not in self.scope.hypers:
            self.store(target, value, node.value)

    def assigned(self, node: Assign) -> Value:
        """Return the value that an assignment to one name gives it."""
        if node.op == "=":
            return self.value(node.value)
        target = node.targets[0]
        before = self.number(target)
        return combine((before, self.number(node.value)))

    def results(self, node: Assign) -> Results:
        """Return the values that an assignment gives to several names."""
        call = node.value
        if isinstance(call, Call) and isinstance(call.function, Name) and call.function.name in self.scope.functions:
            results = self.call_function(call)
            if len(results) == len(node.targets):
                return results
        return (MISTAKE,) * len(node.targets)

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
        self.env = _meet(taken, self.env, held)
        self.path = outside

    # Functions ----------------------------------------------------------------------------------------------

    def call_function(self, node: Call) -> Results:
        """Read a function of the rule with the values it is called with."""
        assert isinstance(node.function, Name)
        function = self.scope.functions[node.function.name]
        given = [a.value for a in node.arguments if a.name is None]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        inner: dict[str, Value] = {}
        for i, parameter in enumerate(function.parameters):
            name = parameter.name.name
            argument = given[i] if i < len(given) else named.get(name)
            if argument is not None:
                inner[name] = _bound(argument, self.value(argument))
            elif parameter.default is not None:
                caller, self.frame = self.frame, None
                inner[name] = self.value(parameter.default)
                self.frame = caller
            else:
                inner[name] = MISTAKE
        caller, self.frame = self.frame, inner
        results = self.function_block(body_of(function))
        self.frame = caller
        return results if results is not None else (MISTAKE,)

    def function_block(self, body: Sequence[Stmt]) -> Results | None:
        """Read statements of a function; returns its results if it returns."""
        assert self.frame is not None
        for i, statement in enumerate(body):
            match statement:
                case Return(values=values):
                    return tuple(self.returned(v) for v in values)
                case Assign(targets=(target,)):
                    self.frame[target.name] = _bound(statement.value, self.assigned(statement))
                case Assign(targets=targets):
                    for target, value in zip(targets, self.results(statement), strict=True):
                        self.frame[target.name] = value
                case If(branches=branches, other=other):
                    results = self.function_if(branches, other or (), body[i + 1 :])
                    if results is not None:
                        return results
                case _:
                    pass
        return None

    def returned(self, expr: Expr) -> Value:
        """Return the value of one result of a function."""
        return _bound(expr, self.value(expr))

    def function_if(
        self,
        branches: Sequence[tuple[Expr, tuple[Stmt, ...]]],
        other: tuple[Stmt, ...],
        following: Sequence[Stmt],
    ) -> Results | None:
        """Read an ``if`` of a function; ``following`` are the statements behind it."""
        assert self.frame is not None
        if not branches:
            return self.function_block(other)
        (condition, body), *rest = branches
        held = self.condition(condition)
        answer = self.decide(condition, held)
        if answer is not None:
            return self.function_block(body) if answer else self.function_if(rest, other, following)
        before = dict(self.frame)
        ours = self.function_block(body)
        if ours is None:
            after_ours = self.frame
            theirs, self.frame = None, before.copy()
            theirs = self.function_if(rest, other, following)
            if theirs is None:
                self.frame = _meet(after_ours, self.frame, held)
                return None
            self.frame = after_ours
            ours = self.function_block(following)
        else:
            self.frame = before
            theirs = self.function_if(rest, other, following) or self.function_block(following)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return ours or theirs
        return tuple(merge((a, b), held) for a, b in zip(ours, theirs, strict=True))


def _bound(expr: Expr, value: Value) -> Value:
    """Return what is known of a value under a new name: numbers that are computed choose no variant."""
    if value.literal or value.sort is not Sort.NUMBER or isinstance(expr, ATOMS):
        return value
    return replace(value, uses=value.uses | Uses.LOCAL)


def _meet(a: dict[str, Value], b: dict[str, Value], condition: Value) -> dict[str, Value]:
    """Return what is known of names after two branches."""
    met: dict[str, Value] = {}
    for name in (*a, *(name for name in b if name not in a)):
        one, two = a.get(name), b.get(name)
        if one is not None and two is not None:
            met[name] = one if one is two else merge((one, two), condition)
        else:
            known = one if one is not None else two
            assert known is not None
            met[name] = replace(merge((known,), condition), missing=True)
    return met


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
