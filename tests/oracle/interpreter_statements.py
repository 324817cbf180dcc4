"""Statements of the interpreter: what a run through a rule does, and what a function's body returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from interpreter_formulas import Formulas, Scope, place_of
from interpreter_values import UNKNOWN, Array, Unknown, Value, number, whole

from optlang.expand.histories import counter
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned, blocks


class _Return(Exception):
    """Carries the results of a function out of its body."""

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
    return isinstance(node, ast.Return) or any(_returns(inner) for body in blocks(node) for inner in body)


class Run(Formulas):
    """One run through a rule's statements, or through some of them."""

    room = 0  # of the history that a loop goes through

    def store(self, statement: ast.Assign, name: str, value: Value, scope: Scope) -> None:
        """Give a name its value."""
        scope.names[name] = value

    def follow(self, statement: ast.If | ast.Every, scope: Scope) -> None:
        """Learn, after statements that may not have been carried out, what does not depend on this run."""

    def run_function(self, body: Sequence[ast.Stmt], scope: Scope) -> tuple[Value, ...]:
        """Return the results of a function's body."""
        results = _result(lambda: self.run(body, scope))
        assert results is not None, "a function must return"
        return results

    def run(self, body: Sequence[ast.Stmt], scope: Scope) -> None:
        """Carry out statements in order."""
        for i, statement in enumerate(body):
            match statement:
                case ast.Assign(at=ast.Name()):
                    self._entry(statement, scope)
                case ast.Assign():
                    self.assign(statement, scope)
                case ast.If() if _returns(statement):  # what follows belongs to the branches that do not return
                    self._if(list(statement.branches), statement.other or (), scope, body[i + 1 :])
                    return
                case ast.If():
                    self._if(list(statement.branches), statement.other or (), scope)
                    self.follow(statement, scope)
                case ast.Repeat():
                    self._repeat(statement, scope)
                case ast.For():
                    self._for(statement, scope)
                case ast.Every():
                    self._every(statement, scope)
                    self.follow(statement, scope)
                case ast.Apply():
                    self.apply_inner(statement, scope)
                case ast.Return():
                    raise _Return(tuple(self.value(v, scope) for v in statement.values))
                case _:
                    raise NotImplementedError(statement)

    def apply_inner(self, statement: ast.Apply, scope: Scope) -> None:
        """Let an inner rule make its step on a name."""
        function, (target, gradient) = statement.call.function, statement.call.arguments
        assert isinstance(function, ast.Name) and isinstance(target.value, ast.Name)
        given = scope.names[target.value.name], self.value(gradient.value, scope)
        moved = self.inner[function.name].step_inside(self, function.name, scope, *given)
        place = statement.span
        self.store(ast.Assign(place, (target.value,), "=", target.value), target.value.name, moved, scope)

    def of_inner(self, node: ast.Member | ast.Call, scope: Scope) -> Value:
        """Return the step of an inner rule, which is not made, or a value of its own."""
        if isinstance(node, ast.Member):
            assert isinstance(node.value, ast.Name)
            return self.inner[node.value.name].member(self, node.value.name, node.name, scope)
        assert isinstance(node.function, ast.Member) and isinstance(node.function.value, ast.Name)
        name, p = node.function.value.name, scope.names["p"]
        moved = self.inner[name].step_inside(self, name, scope, p, self.value(node.arguments[0].value, scope))
        return self.arithmetic("-", moved, p)

    def assign(self, statement: ast.Assign, scope: Scope) -> None:
        """Carry out an assignment."""
        if len(statement.targets) > 1:
            assert isinstance(statement.value, ast.Call)
            results = self.results(statement.value, scope)
        else:
            results = (self.value(statement.value, scope),)
        for target, result in zip(statement.targets, results, strict=True):
            value = result
            if statement.op != "=":
                value = self.arithmetic(statement.op[:-1], scope.names[target.name], value)
            self.store(statement, target.name, value, scope)

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
        truth = self.truth(self.value(condition, scope))
        if isinstance(truth, bool):
            if truth:
                self.run((*body, *rest), scope)
            else:
                self._if(later, other, scope, rest)
            return
        # A condition on the device: carry out both sides and select element by element.
        then, otherwise = scope.copy(), scope.copy()
        results = [_result(lambda: self.run((*body, *rest), then))]
        results.append(_result(lambda: self._if(later, other, otherwise, rest)))
        if results[0] is not None and results[1] is not None:
            raise _Return(tuple(self.select(truth, a, b) for a, b in zip(*results, strict=True)))
        assert results == [None, None], "one side returns and the other does not"
        for name in {**then.names, **otherwise.names}:
            a = then.names.get(name, otherwise.names.get(name))
            b = otherwise.names.get(name, a)
            scope.names[name] = a if a is b else self.select(truth, a, b)

    # Loops and time ------------------------------------------------------------------------------------------

    def _repeat(self, statement: ast.Repeat, scope: Scope) -> None:
        count = number(self.value(statement.count, scope))
        if isinstance(count, Unknown):
            self._forget(statement.body, scope)
            return
        if whole(count) < 0:
            raise ValueError(f"`repeat {count:g}`")
        for turn in range(whole(count)):
            with self.within(*place_of(statement), turn):
                self.run(statement.body, scope)

    def _for(self, statement: ast.For, scope: Scope) -> None:
        if statement.rows:
            for turn, row in enumerate(statement.rows):
                with self.within(*place_of(statement), turn):
                    values = [self.value(value, scope) for value in row]
                    scope.names.update(zip((name.name for name in statement.names), values, strict=True))
                    self.run(statement.body, scope)
            return
        assert isinstance(statement.over, ast.Name)
        if statement.over.name not in self.rule.keys:
            self._for_history(statement, scope)
            return
        parts = self.rule.keys[statement.over.name]
        assert parts[0].part is not None, "`for` goes through a tuple of hyperparameters"
        for turn, part in enumerate(reversed(parts) if statement.backwards else parts):
            with self.within(*place_of(statement), turn):
                scope.names[statement.name.name] = self.setting.hypers[part.name]
                self.run(statement.body, scope)

    def _for_history(self, statement: ast.For, scope: Scope) -> None:
        history, filled = scope.names[statement.over_name], scope.names[counter(statement.over_name)]
        if isinstance(history, Unknown) or isinstance(filled, Unknown):
            self._forget(statement.body, scope)
            return
        places = range(len(history) - int(filled), len(history))
        for turn, place in enumerate(reversed(places) if statement.backwards else places):
            with self.within(*place_of(statement), turn):
                scope.names[statement.name.name] = float(place)
                self.room = len(history)
                self.run(statement.body, scope)

    def _entry(self, statement: ast.Assign, scope: Scope) -> None:
        """Carry out ``a[i] = x``: a gets an entry for each of the history that is gone through."""
        assert statement.at is not None
        (target,), value = statement.targets, np.asarray(number(self.value(statement.value, scope)))
        entries = np.array(scope.names.get(target.name, np.zeros((self.room, *value.shape))))
        entries[whole(scope.names[statement.at.name])] = value
        scope.names[target.name] = entries

    def _every(self, statement: ast.Every, scope: Scope) -> None:
        period = number(self.value(statement.period, scope))
        start = 0.0 if statement.start is None else number(self.value(statement.start, scope))
        if isinstance(period, Unknown) or isinstance(start, Unknown):
            self._forget(statement.body, scope)
            return
        assert not isinstance(period, Array) and not isinstance(start, Array), "a period is no value of a tensor"
        t = scope.names["t"]
        due = period > 0 and t >= start and (t - start) % period == 0
        if due or (statement.first and t == 1):
            self.run(statement.body, scope)

    def _forget(self, body: Sequence[ast.Stmt], scope: Scope) -> None:
        """Take what statements assign as unknown, for how often they are carried out is up to each tensor."""
        scope.names.update({name.name: UNKNOWN for name in assigned(body)})
