"""Runs of the interpreter through the statements of a step: for one tensor, and for what tensors have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import landscape
import numpy as np
from interpreter_formulas import NotStatic, Place, Scope, Setting
from interpreter_statements import Run
from interpreter_values import UNKNOWN, Array, Shape, Value, number, spread

from optlang.functions.table import PROGRESS
from optlang.runtime import searches
from optlang.source import Span
from optlang.syntax import tree as ast

#: New values of group and shared states, by the place of the statement that gives them.
Decided = dict[tuple[Place, Span, str], Value]


class Waiting(Exception):
    """A run has come to a sum over the whole model that is not known yet; ``part`` is what the run adds to it."""

    def __init__(self, place: Place, part: float) -> None:
        super().__init__(place)
        self.place, self.part = place, part


class Halted(Exception):
    """The steps of `iterate` have ended before this one."""


class Progress:
    """How far a step has come that is made of several: which one it is, and how often there has been an evaluation."""

    def __init__(self) -> None:
        self.iteration, self.calls, self.most = 1, 1, 1.0
        self.looked = 0  # how often the search of this step has looked
        self.end: Array | None = None  # where it has ended


class TensorRun(Run):
    """The update of one tensor.

    Args:
        setting: What the run is told.
        shape: The tensor's shape.
        states: Values of the tensor's states; those that exist now, or are about to.
        decided: New values of group and shared states.
        totals: Sums over the whole model, as far as they are known.
        draw: Returns random numbers of a kind and shape for a call.
    """

    def __init__(
        self,
        setting: Setting,
        shape: Shape,
        states: dict[str, Value],
        decided: Decided | None = None,
        totals: Mapping[Place, float] | None = None,
        draw: Callable[[str, Shape, int], Array] | None = None,
    ) -> None:
        super().__init__(setting, shape)
        self.states, self.decided, self.totals, self.draw = states, decided or {}, totals, draw
        self.scopes = {state.name: state.scope.value for state in self.rule.states}
        self.calls = 0
        self.ground: tuple[Array, Array] | None = None  # where the step starts, and the slope of the landscape
        self.met: set[Place] = set()
        self.so_far = Progress()
        self.keeps: Callable[[str, Value], Value] = lambda name, value: value  # what a state becomes

    def store(self, statement: ast.Assign, name: str, value: Value, scope: Scope) -> None:
        """Give a name its value; what is kept keeps its shape."""
        assert self.shape is not None
        if scope.top and self.scopes.get(name, "tensor") != "tensor":
            value = self.decided.get(self._key(statement, name), scope.names[name])
        elif scope.top and name == "p":
            value = spread(value, self.shape, self.shape)
        elif scope.top and name in self.states:
            kept, value = self.states[name], number(value)
            if np.ndim(kept) or np.ndim(value) or isinstance(kept, Array):
                value = spread(value, np.shape(kept), self.shape)
            value = self.keeps(name, value)
        scope.names[name] = value

    def follow(self, statement: ast.If | ast.Every, scope: Scope) -> None:
        """See group and shared states as they are after a statement that this tensor need not have carried out."""
        for name, where in self.scopes.items():
            key = self._key(statement, name)
            if scope.top and where != "tensor" and key in self.decided:
                scope.names[name] = self.decided[key]

    def _key(self, statement: ast.Stmt, name: str) -> tuple[Place, Span, str]:
        return tuple(self.path), statement.span, name

    def total(self, place: Place, value: Value) -> float:
        """Return a sum over the whole model, or stop with this tensor's part of it."""
        if self.totals is None:
            raise NotStatic("total")
        if place in self.met:  # what follows a `return` that only some elements take is run twice
            raise NotImplementedError("a total of what depends on where a function has returned")
        self.met.add(place)
        if place not in self.totals:
            raise Waiting(place, float(np.sum(value)))
        return self.totals[place]

    def loss(self) -> Value:
        """Return the loss where the step starts, a sum over all tensors."""
        place = (self.setting.number, -1)
        if self.totals is None or self.ground is None:
            raise NotStatic("loss")
        if place not in self.totals:
            raise Waiting(place, landscape.value(*self.ground))
        return self.totals[place]

    def evaluated(self, name: str, place: Place, value: Value) -> Value:
        """Return the landscape's loss or gradient at a point, or the product of its Hessian with a direction."""
        if self.ground is None:
            raise NotStatic(name)
        start, slope = self.ground
        value = spread(value, self.shape, self.shape)
        if name == "loss":
            return self.total(place, landscape.value(value, slope))
        return landscape.gradient(value, slope) if name == "grad" else landscape.curved(start, value)

    def progress(self, name: str, values: Sequence[Value]) -> Value:
        """Return how far a step has come that is made of several, or end it."""
        if name in PROGRESS:
            return float(self.so_far.iteration if name == "iteration" else self.so_far.calls)
        self.so_far.most = float(values[0])
        if self.so_far.iteration > self.so_far.most or values[1]:
            raise Halted
        return 0.0

    def searched(self, name: str, values: Sequence[Value]) -> Value:
        """Return how far a search goes, for one tensor: that of a ``flat`` rule.

        The search is the runtime's, which other tests compare with others; that it is given the right line is at stake.
        """
        if self.ground is None or not self.rule.flat:
            raise NotImplementedError(name)
        (origin, slope), (d, *options, sign) = self.ground, values

        def line(distance: float) -> tuple[float, float]:
            self.so_far.looked += 1
            there = origin + distance * d
            return sign * landscape.value(there, slope), float(sign * np.sum(landscape.gradient(there, slope) * d))

        begin, numbers = searches.SearchPoint(0.0, *line(0.0)), [float(option) for option in options]
        self.so_far.looked = 0
        if name == "backtracking":
            length = searches.backtracking(line, begin, *numbers)
        else:
            length = searches.strong_wolfe(line, begin, float(np.max(np.abs(d))), *numbers)
        self.so_far.end = origin + length * d
        return length

    def random(self, kind: str, shape: Shape | None) -> Array:
        """Return fresh random numbers."""
        if self.draw is None:
            raise NotStatic(kind)
        assert self.shape is not None
        shape = self.shape if shape is None else shape
        drawn = self.draw(kind, shape, self.calls)
        assert drawn.shape == shape
        self.calls += 1
        return drawn


class CommonRun(Run):
    """A run with tensors unknown, which finds the new values of group states, or of shared ones.

    Args:
        setting: What the run is told.
        owner: ``"group"`` or ``"shared"``: the states that it is for. All others are unknown.
        totals: Sums over the whole model, as far as they are known; None if nothing may depend on them.
    """

    def __init__(self, setting: Setting, owner: str, totals: Mapping[Place, float] | None = None) -> None:
        super().__init__(setting)
        self.totals = totals
        self.own = {state.name for state in self.rule.states if state.scope.value == owner}
        self.decided: Decided = {}

    def store(self, statement: ast.Assign, name: str, value: Value, scope: Scope) -> None:
        """Give a name its value, and note it for the tensors."""
        scope.names[name] = value
        if scope.top and name in self.own:
            self._note(statement, name, value)

    def follow(self, statement: ast.If | ast.Every, scope: Scope) -> None:
        """Note what states are after a statement that a tensor need not carry out."""
        for name in self.own if scope.top else ():
            self._note(statement, name, scope.names[name])

    def _note(self, statement: ast.Stmt, name: str, value: Value) -> None:
        self.decided[tuple(self.path), statement.span, name] = value

    def total(self, place: Place, value: Value) -> Value:
        """Return a sum over the whole model, or wait for the tensors to add it up."""
        if self.totals is None:
            return UNKNOWN
        if place not in self.totals:
            raise Waiting(place, 0.0)
        return self.totals[place]

    def loss(self) -> Value:
        """Return the loss where the step starts."""
        return self.total((self.setting.number, -1), 0.0)

    def evaluated(self, name: str, place: Place, value: Value) -> Value:
        """Return the loss at a point, or something that is different for each tensor."""
        return self.total(place, value) if name == "loss" else UNKNOWN

    def searched(self, name: str, values: Sequence[Value]) -> Value:
        """Return something that is different for each tensor."""
        return UNKNOWN

    def progress(self, name: str, values: Sequence[Value]) -> Value:
        """Return something that is not followed here."""
        return UNKNOWN

    def random(self, kind: str, shape: Shape | None) -> Value:
        """Return something that is different for each tensor."""
        return UNKNOWN
