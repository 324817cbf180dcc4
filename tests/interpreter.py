"""The oracle: a rule run directly over its syntax tree, in float64 numpy.

It shares nothing with the compiler: no SymPy, no generated source, no torch. Every name has a value, every statement
is carried out where it stands. Values on the device are arrays (0-d ones for one number per tensor), all others are
plain Python values; that is the only difference between a condition that chooses and one that selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from interpreter_values import (
    ARITHMETIC,
    COMPARISONS,
    ELEMENTWISE,
    REDUCTIONS,
    UNKNOWN,
    Array,
    Unknown,
    Value,
    apply,
    number,
)

from optlang.language import tree as ast
from optlang.language.builtins import BUILTINS
from optlang.language.kinds import Level
from optlang.language.parse import parse
from optlang.language.rule import Rule, State
from optlang.source import Source


class _Return(Exception):
    """Carries the results of a user's function out of its body."""

    def __init__(self, values: tuple[Value, ...]) -> None:
        super().__init__()
        self.values = values


def _result(run: Callable[[], None]) -> tuple[Value, ...] | None:
    """Return what statements return, None if they do not."""
    try:
        run()
    except _Return as result:
        return result.values
    return None


def _returns(node: ast.Stmt) -> bool:
    """Return whether a statement is, or holds, a ``return``."""
    if isinstance(node, ast.If):
        blocks = [body for _, body in node.branches] + [node.other or ()]
        return any(_returns(statement) for block in blocks for statement in block)
    return isinstance(node, ast.Return)


@cache
def _definition(text: str) -> ast.Expr:
    """Return an expression of the builtins table as a tree."""
    (statement,) = parse(Source(f"x = {text}")).items
    assert isinstance(statement, ast.Assign)
    return statement.value


@dataclass
class Scope:
    """What names mean at one point of one tensor's update."""

    names: dict[str, Value]
    stepped: set[str] = field(default_factory=set)  # states that exist for this tensor

    def child(self, names: Mapping[str, Value]) -> Scope:
        """Return a scope for a function's body: the outer names and its own."""
        return Scope({**self.names, **names}, self.stepped)


class Interpreter:
    """Runs a rule on numpy arrays.

    Args:
        rule: A checked rule.
        hypers: Values by param-group key (tuples whole) or by name; the rest are defaults.
        group: The user's own keys, which the rule reads as ``group.NAME``.
        eps: What ``eps_of`` is: the machine epsilon of the type that the parameters stand for.
    """

    def __init__(
        self,
        rule: Rule,
        hypers: Mapping[str, Any] | None = None,
        group: Mapping[str, Any] | None = None,
        eps: float = float(np.finfo(np.float64).eps),
    ) -> None:
        self.rule = rule
        self.group = dict(group or {})
        self.eps = eps
        self.hypers: dict[str, Value] = {h.name: h.default for h in rule.hypers if not h.required}
        self.set(**(hypers or {}))
        self.states = {state.name: state for state in rule.states}
        self.state: list[dict[str, Value]] = []
        self.counts: list[int] = []
        self.group_steps = 0
        self.group_state: dict[str, Value] = {}
        self._group_values: dict[tuple[int, str], Value] = {}  # new group state values by statement, of this step
        self._new_group_state: dict[str, Value] = {}
        self._in_group = False

    def set(self, **values: Any) -> None:
        """Change hyperparameters, by key or by name."""
        keys = self.rule.keys
        for name, value in values.items():
            parts = keys.get(name, ())
            if parts and parts[0].part is not None:
                self.hypers.update(zip((h.name for h in parts), value, strict=True))
            else:
                self.hypers[name] = value

    def step(self, params: Sequence[Array], grads: Sequence[Array | None]) -> None:
        """Update ``params`` in place; a tensor without a gradient is left alone, and so is a group of such."""
        if all(grad is None for grad in grads):
            return
        while len(self.state) < len(params):
            self.state.append({})
            self.counts.append(0)
        self.group_steps += 1
        with np.errstate(all="ignore"):
            self._step_group()
            for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
                if grad is not None:
                    self._step_tensor(index, param, grad)
            self.group_state.update(self._new_group_state)

    # One group, one tensor -----------------------------------------------------------------------------------

    def _common(self, t: int) -> dict[str, Value]:
        return {**self.hypers, "t": float(t), "first": t == 1}

    def _step_group(self) -> None:
        """Run the body with tensors unknown, to find the new values of the group's states."""
        self._group_values = {}
        self._in_group = True
        names = self._common(self.group_steps)
        group_states = [s for s in self.rule.states if s.scope == "group"]
        for state in group_states:
            if state.name not in self.group_state:
                initial = 0.0 if state.initial is None else self.eval(state.initial, Scope(names))
                self.group_state[state.name] = number(initial)
        if group_states:
            unknown = dict.fromkeys(["p", "g", "ndim", "numel", "rows", "cols", *self.states], UNKNOWN)
            scope = Scope({**names, **unknown, **self.group_state})
            self.run(self.rule.body, scope)
            self._new_group_state = {s.name: scope.names[s.name] for s in group_states}
        self._in_group = False

    def _step_tensor(self, index: int, param: Array, grad: Array) -> None:
        self.counts[index] += 1
        state = self.state[index]
        shape = param.shape
        facts = {
            "ndim": float(len(shape)),
            "numel": float(param.size),
            "rows": float(shape[-2]) if len(shape) > 1 else 1.0,
            "cols": float(shape[-1]) if shape else 1.0,
        }
        raw = {"p": np.array(param, dtype=np.float64), "g": np.array(grad, dtype=np.float64)}
        scope = Scope({**self._common(self.counts[index]), **self.group_state, **facts, **raw})
        here = [s for s in self.rule.states if s.scope != "group" and self._exists(s, scope)]
        scope.stepped = {s.name for s in here}
        for s in here:
            if s.name not in state:
                state[s.name] = self._start(s, scope)
        scope.names.update({s.name: state[s.name] for s in here})
        self.run(self.rule.body, scope)
        state.update({s.name: scope.names[s.name] for s in here})
        param[...] = scope.names["p"]

    def _exists(self, state: State, scope: Scope) -> bool:
        return state.when is None or bool(self.eval(state.when, scope))

    def _start(self, state: State, scope: Scope) -> Value:
        if state.initial is None:
            level = state.kind.level
            return np.zeros_like(scope.names["p"]) if level is Level.ELEMENT else 0.0
        return self._fit(state, number(self.eval(state.initial, scope)), scope)

    def _fit(self, state: State, value: Value, scope: Scope) -> Value:
        """Give a value the shape of the state that it is stored in."""
        if state.kind.level is Level.ELEMENT:
            return np.array(np.broadcast_to(value, scope.names["p"].shape), dtype=np.float64)
        old = scope.names.get(state.name)
        if state.kind.level is Level.REDUCED and isinstance(old, Array):
            return np.array(np.broadcast_to(value, old.shape), dtype=np.float64)
        return value

    # Statements ----------------------------------------------------------------------------------------------

    def run(self, body: Sequence[ast.Stmt], scope: Scope) -> None:
        """Carry out statements in order."""
        for i, statement in enumerate(body):
            match statement:
                case ast.Assign():
                    self._assign(statement, scope)
                case ast.If() if _returns(statement):  # what follows belongs to the branches that do not return
                    self._if(list(statement.branches), statement.other or (), scope, body[i + 1 :])
                    return
                case ast.If():
                    self._if(list(statement.branches), statement.other or (), scope)
                    self._follow_group(statement, scope)
                case ast.Return():
                    raise _Return(tuple(self.eval(v, scope) for v in statement.values))
                case _:
                    raise NotImplementedError(statement)

    def _assign(self, statement: ast.Assign, scope: Scope) -> None:
        if len(statement.targets) > 1:
            assert isinstance(statement.value, ast.Call)
            results: tuple[Value, ...] = self._call(statement.value, scope)
        else:
            results = (self.eval(statement.value, scope),)
        for target, result in zip(statement.targets, results, strict=True):
            value = result
            if statement.op != "=":
                value = self._arithmetic(statement.op[:-1], scope.names[target.name], value)
            self._store(statement, target.name, value, scope)

    def _store(self, statement: ast.Assign, name: str, value: Value, scope: Scope) -> None:
        state = self.states.get(name)
        if state is not None and state.scope == "group":
            # Decided once per step, without a tensor: see `_step_group`.
            if self._in_group:
                self._group_values[id(statement), name] = value
            else:
                value = self._group_values.get((id(statement), name), scope.names[name])
        elif not self._in_group and name in scope.stepped:
            assert state is not None
            value = self._fit(state, number(value), scope)
        elif not self._in_group and name == "p":
            value = np.array(np.broadcast_to(number(value), scope.names["p"].shape), dtype=np.float64)
        scope.names[name] = value

    def _follow_group(self, statement: ast.If, scope: Scope) -> None:
        """Keep what group states are after an ``if``, or let a tensor see it."""
        for state in self.rule.states:
            if state.scope == "group":
                key = id(statement), state.name
                if self._in_group:
                    self._group_values[key] = scope.names[state.name]
                elif key in self._group_values:
                    scope.names[state.name] = self._group_values[key]

    def _if(
        self,
        branches: list[tuple[ast.Expr, Any]],
        other: Sequence[ast.Stmt],
        scope: Scope,
        rest: Sequence[ast.Stmt] = (),
    ) -> None:
        """Carry out an ``if``, and ``rest`` after it."""
        if not branches:
            self.run((*other, *rest), scope)
            return
        (condition, body), *later = branches
        truth = self._truth(self.eval(condition, scope))
        if isinstance(truth, bool):
            if truth:
                self.run((*body, *rest), scope)
            else:
                self._if(later, other, scope, rest)
            return
        # A condition on the device: carry out both sides and select element by element.
        then, otherwise = Scope(dict(scope.names), scope.stepped), Scope(dict(scope.names), scope.stepped)
        results = [_result(lambda: self.run((*body, *rest), then))]
        results.append(_result(lambda: self._if(later, other, otherwise, rest)))
        if results[0] is not None and results[1] is not None:
            raise _Return(tuple(self._select(truth, a, b) for a, b in zip(*results, strict=True)))
        assert results == [None, None], "one side returns and the other does not"
        for name in {**then.names, **otherwise.names}:
            a = then.names.get(name, otherwise.names.get(name))
            b = otherwise.names.get(name, a)
            scope.names[name] = a if a is b else self._select(truth, a, b)

    # Expressions ---------------------------------------------------------------------------------------------

    def eval(self, node: ast.Expr, scope: Scope) -> Value:
        """Return the value of an expression."""
        match node:
            case ast.Number():
                return float(node.value)
            case ast.Infinity():
                return math.inf
            case ast.Text() | ast.Bool():
                return node.value
            case ast.Nothing():
                return None
            case ast.Name():
                return scope.names[node.name]
            case ast.Member():
                return self._member(node)
            case ast.Unary():
                return self._unary(node, scope)
            case ast.Binary():
                return self._binary(node, scope)
            case ast.Compare():
                return self._compare(node, scope)
            case ast.Ternary():
                truth = self._truth(self.eval(node.condition, scope))
                if isinstance(truth, bool):
                    return self.eval(node.then if truth else node.other, scope)
                return self._select(truth, self.eval(node.then, scope), self.eval(node.other, scope))
            case ast.Call():
                results = self._call(node, scope)
                assert len(results) == 1
                return results[0]
            case _:
                raise NotImplementedError(node)

    def _member(self, node: ast.Member) -> Value:
        assert isinstance(node.value, ast.Name) and node.value.name == "group"
        return float(self.group_steps) if node.name == "t" else self.group[node.name]

    def _unary(self, node: ast.Unary, scope: Scope) -> Value:
        value = self.eval(node.operand, scope)
        if node.op == "not":
            truth = self._truth(value)
            return not truth if isinstance(truth, bool) else apply(np.logical_not, truth)
        return apply(np.negative if node.op == "-" else np.positive, number(value))

    def _binary(self, node: ast.Binary, scope: Scope) -> Value:
        left = self.eval(node.left, scope)
        if node.op == "??":
            return self.eval(node.right, scope) if left is None else left
        if node.op in ("and", "or"):
            truth = self._truth(left)
            if isinstance(truth, bool) and truth is (node.op == "or"):
                return truth  # what is not needed is not looked at
            function = np.logical_and if node.op == "and" else np.logical_or
            return apply(function, truth, self._truth(self.eval(node.right, scope)))
        return self._arithmetic(node.op, left, self.eval(node.right, scope))

    def _arithmetic(self, op: str, left: Value, right: Value) -> Value:
        a, b = number(left), number(right)
        if op == "^" and isinstance(b, float) and not isinstance(a, Unknown):
            return apply(lambda x: np.float_power(x, b), a)
        return apply(ARITHMETIC[op], a, b)

    def _compare(self, node: ast.Compare, scope: Scope) -> Value:
        values = [self.eval(operand, scope) for operand in node.operands]
        result: Value = True
        for op, a, b in zip(node.ops, values, values[1:], strict=False):
            if any(v is None or isinstance(v, str) for v in (a, b)):
                holds: Value = (type(a) is type(b) and a == b) is (op == "==")
            else:
                holds = apply(COMPARISONS[op], number(a), number(b))
            result = apply(np.logical_and, result, holds)
        return result

    def _truth(self, value: Value) -> bool | Array | Unknown:
        """Return a condition: a plain one decides, an array selects."""
        if isinstance(value, Unknown):
            return value
        return value != 0 if isinstance(value, Array) else bool(value)

    def _select(self, condition: Array | Unknown, a: Value, b: Value) -> Value:
        return apply(np.where, condition, number(a), number(b))

    # Functions -----------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, scope: Scope) -> tuple[Value, ...]:
        assert isinstance(node.function, ast.Name)
        name = node.function.name
        if name in self.rule.functions:
            return self._call_user(self.rule.functions[name], node, scope)
        return (self._call_builtin(name, node, scope),)

    def _call_user(self, function: ast.Def, node: ast.Call, scope: Scope) -> tuple[Value, ...]:
        names: dict[str, Value] = {}
        for parameter, argument in zip(function.parameters, node.arguments, strict=False):
            if argument.name is None:
                names[parameter.name.name] = self.eval(argument.value, scope)
        names.update({a.name: self.eval(a.value, scope) for a in node.arguments if a.name is not None})
        for parameter in function.parameters:
            if parameter.name.name not in names:
                assert parameter.default is not None
                names[parameter.name.name] = self.eval(parameter.default, scope)
        inner = scope.child(names)
        if not isinstance(function.body, tuple):
            return (self.eval(function.body, inner),)
        try:
            self.run(function.body, Scope(inner.names))
        except _Return as result:
            return result.values
        raise AssertionError("a function must return")

    def _call_builtin(self, name: str, node: ast.Call, scope: Scope) -> Value:
        builtin = BUILTINS[name]
        dim = next((a.value for a in node.arguments if a.name == "dim"), None)
        arguments = [a for a in node.arguments if a.name != "dim"]
        if name == "where":
            by_name = dict(zip(("c", "a", "b"), arguments, strict=True))
            by_name.update({a.name: a for a in arguments if a.name is not None})
            return self.eval(ast.Ternary(node.span, by_name["c"].value, by_name["a"].value, by_name["b"].value), scope)
        if builtin.definition is not None:
            names = self._bind(builtin.parameters, arguments, scope)
            names["dim"] = None if dim is None else self._dims(dim, scope)
            return self.eval(_definition(builtin.definition), scope.child(names))
        values = [number(self.eval(a.value, scope)) for a in arguments]
        if name == "eps_of":
            return self.eps
        if name in REDUCTIONS and len(values) == 1:
            return self._reduce(name, values[0], None if dim is None else self._dims(dim, scope))
        result = values[0]
        if len(values) == 1:
            return apply(ELEMENTWISE[name], result)
        for value in values[1:]:
            result = apply(ELEMENTWISE[name], result, value)
        return result

    def _bind(
        self, parameters: Sequence[tuple[str, str | None]], arguments: Sequence[ast.Argument], scope: Scope
    ) -> dict[str, Value]:
        names: dict[str, Value] = {}
        for (parameter, default), argument in zip(
            parameters, [*arguments, *[None] * (len(parameters) - len(arguments))], strict=True
        ):
            if argument is not None and argument.name is None:
                names[parameter] = self.eval(argument.value, scope)
            elif default is not None:
                names[parameter] = self.eval(_definition(default), scope)
        names.update({a.name: self.eval(a.value, scope) for a in arguments if a.name is not None})
        return names

    def _dims(self, node: ast.Expr, scope: Scope) -> tuple[int, ...] | None:
        """Return ``dim=``: numbers as written, or the dimensions handed on by a derived function."""
        if isinstance(node, ast.Name):
            return scope.names[node.name]  # type: ignore[no-any-return]
        items = node.items if isinstance(node, ast.Tuple) else (node,)
        return tuple(int(self.eval(item, scope)) for item in items)

    def _reduce(self, name: str, value: Value, dims: tuple[int, ...] | None) -> Value:
        if isinstance(value, Unknown):
            return value
        function = REDUCTIONS[name]
        if dims is None:
            return np.asarray(function(np.asarray(value)))
        return np.asarray(function(np.asarray(value), axis=dims, keepdims=True))
