"""Expressions of the interpreter: operators, functions, and where in a run they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from interpreter_matrices import FUNCTIONS, MAKERS, part, product, sizes, transpose
from interpreter_values import (
    ALONG,
    ARITHMETIC,
    COMPARISONS,
    ELEMENTWISE,
    REDUCTIONS,
    UNKNOWN,
    WITH_OPTION,
    Array,
    Shape,
    Unknown,
    Value,
    apply,
    number,
    spread,
    whole,
)

from optlang.functions.table import BUILTINS, EMPTY, EVALUATIONS, HALT, PROGRESS, PUSH, RANDOMS, SEARCHES, SIZES
from optlang.rule import Rule
from optlang.source import Source
from optlang.syntax import tree as ast
from optlang.syntax.parse import parse

#: Where in a run something stands: numbers that are smaller for what comes before.
Place = tuple[int, ...]


def place_of(node: ast.Node) -> Place:
    """Return where a node stands in a rule: the line, where that counts, and where the node ends."""
    return node.span.line, node.span.end


class NotStatic(LookupError):
    """What is asked for is not known before the first step."""


@cache
def _expression(text: str) -> ast.Expr:
    """Return an expression of the builtins table as a tree."""
    (statement,) = parse(Source(f"x = {text}")).items
    assert isinstance(statement, ast.Assign)
    return statement.value


@cache
def _block(text: str) -> tuple[ast.Stmt, ...]:
    """Return a block of the builtins table as statements."""
    (function,) = parse(Source("def f():\n" + "".join(f"    {line}\n" for line in text.split("\n")))).items
    assert isinstance(function, ast.Def) and isinstance(function.body, tuple)
    return function.body


@dataclass
class Scope:
    """What names mean at one point of a run; ``top`` is false inside a function."""

    names: dict[str, Value]
    top: bool = True

    def child(self, names: Mapping[str, Value]) -> Scope:
        """Return a scope for a function's body: the outer names and its own."""
        return Scope({**self.names, **names}, False)

    def copy(self) -> Scope:
        """Return a scope of the same names, for one side of a choice."""
        return Scope(dict(self.names), self.top)


@dataclass
class Setting:
    """What a run is told besides names: the rule, its param group, and the machine epsilon of the parameters.

    ``steps`` is ``group.t``, None where there is no time; ``number`` tells apart the rules of one optimizer.
    """

    rule: Rule
    hypers: Mapping[str, Value]
    group: Mapping[str, Any]
    eps: float
    steps: int | None = None
    number: int = 0


class Formulas:
    """Expressions in one run through a rule.

    Args:
        setting: What the run is told.
        shape: The parameter's shape, None if the run is for no single tensor.
    """

    def __init__(self, setting: Setting, shape: Shape | None = None) -> None:
        self.setting = setting
        self.rule = setting.rule
        self.shape = shape
        self.path = [setting.number]

    # What depends on whose run it is -------------------------------------------------------------------------

    def run_function(self, body: Sequence[ast.Stmt], scope: Scope) -> tuple[Value, ...]:
        """Return the results of a function's body."""
        raise NotImplementedError

    def total(self, place: Place, value: Value) -> Value:
        """Return the sum of a value over all tensors of the optimizer."""
        raise NotStatic("total")

    def loss(self) -> Value:
        """Return the loss where the step starts."""
        raise NotStatic("loss")

    def evaluated(self, name: str, place: Place, value: Value) -> Value:
        """Return the loss or the gradient at a point, or the product of the Hessian with a direction."""
        raise NotStatic(name)

    def progress(self, name: str, values: Sequence[Value]) -> Value:
        """Return how far a step has come that is made of several, or end it."""
        raise NotStatic(name)

    def searched(self, name: str, values: Sequence[Value]) -> Value:
        """Return how far a search goes along a direction, the first of ``values``."""
        raise NotStatic(name)

    def random(self, kind: str, shape: Shape | None) -> Value:
        """Return random numbers; None is the parameter's shape."""
        raise NotStatic(kind)

    inner: Mapping[str, Any] = {}  # inner rules by name; see `interpreter_inner`

    def of_inner(self, node: ast.Member | ast.Call, scope: Scope) -> Value:
        """Return something of an inner rule."""
        raise NotImplementedError(node)

    # Places --------------------------------------------------------------------------------------------------

    @contextmanager
    def within(self, *place: int) -> Iterator[None]:
        """Look at something that has places of its own inside: a function, a turn of a loop, the sides of a choice.

        These places grow in the order in which the parts of a rule are looked at, but for a ternary and its sides.
        """
        self.path.extend(place)
        try:
            yield
        finally:
            del self.path[-len(place) :]

    # Expressions ---------------------------------------------------------------------------------------------

    def value(self, node: ast.Expr, scope: Scope) -> Value:
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
                if node.name == "loss" and node.name not in scope.names:
                    return self.loss()
                return scope.names[node.name]
            case ast.Member(value=ast.Name(name=name)) | ast.Call(function=ast.Member(value=ast.Name(name=name))) if (
                name in self.inner
            ):
                return self.of_inner(node, scope)
            case ast.Member():
                return self._member(node, scope)
            case ast.Unary():
                return self._unary(node, scope)
            case ast.Binary():
                return self._binary(node, scope)
            case ast.Compare():
                return self._compare(node, scope)
            case ast.Ternary():
                return self._ternary(node, scope)
            case ast.Index():
                return self._index(node, scope)
            case ast.Call():
                return self._one(node, self.results(node, scope))
            case _:
                raise NotImplementedError(node)

    def apply(self, function: Any, *values: Value) -> Value:
        """Apply a function element by element."""
        return apply(function, *values, shape=self.shape)

    def truth(self, value: Value) -> bool | Array | Unknown:
        """Return a condition: a plain one decides, an array selects."""
        if isinstance(value, Unknown):
            return value
        return value != 0 if isinstance(value, Array) else bool(value)

    def select(self, condition: Array | Unknown, a: Value, b: Value) -> Value:
        """Return ``a`` where a condition holds, else ``b``."""
        return self.apply(np.where, condition, number(a), number(b))

    def arithmetic(self, op: str, left: Value, right: Value) -> Value:
        """Return the result of an operator on numbers."""
        a, b = number(left), number(right)
        if op == "@":
            return UNKNOWN if isinstance(a, Unknown) or isinstance(b, Unknown) else product(a, b)
        if op == "^" and isinstance(b, float) and not isinstance(a, Unknown):
            return self.apply(lambda x: np.float_power(x, b), a)
        return self.apply(ARITHMETIC[op], a, b)

    def _member(self, node: ast.Member, scope: Scope) -> Value:
        if isinstance(node.value, ast.Name) and node.value.name == "group":
            if node.name != "t":
                return self.setting.group[node.name]
            if self.setting.steps is None:
                raise NotStatic("group.t")
            return float(self.setting.steps)
        if node.name != "T":
            assert isinstance(node.value, ast.Call) and isinstance(node.value.function, ast.Name)
            names = BUILTINS[node.value.function.name].results
            return self.results(node.value, scope)[names.index(node.name)]
        value = self.value(node.value, scope)
        return value if isinstance(value, Unknown) else transpose(number(value))

    def _unary(self, node: ast.Unary, scope: Scope) -> Value:
        value = self.value(node.operand, scope)
        if node.op == "not":
            truth = self.truth(value)
            return not truth if isinstance(truth, bool) else self.apply(np.logical_not, truth)
        return self.apply(np.negative if node.op == "-" else np.positive, number(value))

    def _binary(self, node: ast.Binary, scope: Scope) -> Value:
        left = self.value(node.left, scope)
        if node.op == "??":
            return self.value(node.right, scope) if left is None else left
        if node.op in ("and", "or"):
            truth = self.truth(left)
            if isinstance(truth, bool) and truth is (node.op == "or"):
                return truth  # what is not needed is not looked at
            function = np.logical_and if node.op == "and" else np.logical_or
            return self.apply(function, truth, self.truth(self.value(node.right, scope)))
        return self.arithmetic(node.op, left, self.value(node.right, scope))

    def _compare(self, node: ast.Compare, scope: Scope) -> Value:
        values = [self.value(operand, scope) for operand in node.operands]
        result: Value = True
        for op, a, b in zip(node.ops, values, values[1:], strict=False):
            if any(v is None or isinstance(v, str) for v in (a, b)):
                holds: Value = (type(a) is type(b) and a == b) is (op == "==")
            else:
                holds = self.apply(COMPARISONS[op], number(a), number(b))
            result = self.apply(np.logical_and, result, holds)
        return result

    def _ternary(self, node: ast.Ternary, scope: Scope) -> Value:
        truth = self.truth(self.value(node.condition, scope))
        with self.within(*place_of(node)):  # whatever is in the sides comes after the condition
            if isinstance(truth, bool):
                return self.value(node.then if truth else node.other, scope)
            return self.select(truth, self.value(node.then, scope), self.value(node.other, scope))

    # Parts ---------------------------------------------------------------------------------------------------

    def _one(self, node: ast.Call, results: tuple[Value, ...]) -> Value:
        """Return what a call is where one value stands."""
        if len(results) == 1:
            return results[0]
        assert isinstance(node.function, ast.Name)
        bare = BUILTINS[node.function.name].bare
        if bare is None:
            raise ValueError(f"`{node.function.name}` has several results")
        return results[bare]

    def _index(self, node: ast.Index, scope: Scope) -> Value:
        if isinstance(node.value, ast.Call):
            results = self.results(node.value, scope)
            if len(results) > 1 and len(node.items) == 1 and isinstance(node.items[0], ast.Number):
                return results[int(node.items[0].value)]
            value = self._one(node.value, results)
        else:
            value = self.value(node.value, scope)
        items = [self._subscript(item, scope) for item in node.items]
        return UNKNOWN if any(isinstance(v, Unknown) for v in (value, *items)) else part(number(value), items)

    def _subscript(self, item: ast.Expr | ast.Slice, scope: Scope) -> Any:
        if not isinstance(item, ast.Slice):
            place = self.value(item, scope)
            return place if isinstance(place, Unknown) else np.asarray(number(place))
        ends = [None if end is None else self.value(end, scope) for end in (item.start, item.stop)]
        if any(isinstance(end, Unknown) for end in ends):
            return UNKNOWN
        return slice(*(None if end is None else whole(end) for end in ends))

    # Functions -----------------------------------------------------------------------------------------------

    def results(self, node: ast.Call, scope: Scope) -> tuple[Value, ...]:
        """Return everything that a function returns."""
        assert isinstance(node.function, ast.Name)
        name = node.function.name
        if name in self.rule.functions:
            return self._call_user(self.rule.functions[name], node, scope)
        if name in FUNCTIONS:
            return self._call_matrix(name, node, scope)
        return (self._call_builtin(name, node, scope),)

    def _call_user(self, function: ast.Def, node: ast.Call, scope: Scope) -> tuple[Value, ...]:
        names: dict[str, Value] = {}
        for parameter, argument in zip(function.parameters, node.arguments, strict=False):
            if argument.name is None:
                names[parameter.name.name] = self.value(argument.value, scope)
        names.update({a.name: self.value(a.value, scope) for a in node.arguments if a.name is not None})
        with self.within(*place_of(node)):
            for parameter in function.parameters:
                if parameter.name.name not in names:
                    assert parameter.default is not None
                    names[parameter.name.name] = self.value(parameter.default, scope)
            inner = scope.child(names)
            if isinstance(function.body, tuple):
                return self.run_function(function.body, inner)
            return (self.value(function.body, inner),)

    def _call_matrix(self, name: str, node: ast.Call, scope: Scope) -> tuple[Value, ...]:
        builtin = BUILTINS[name]
        bound = self._bind(builtin.parameters, node.arguments, scope)
        values = [number(bound[parameter]) for parameter, _ in builtin.parameters]
        if any(isinstance(v, Unknown) for v in values):
            return (UNKNOWN,) * max(1, len(builtin.results))
        found = FUNCTIONS[name](*values)
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else (np.asarray(found),)

    def _call_builtin(self, name: str, node: ast.Call, scope: Scope) -> Value:
        if name == "where":
            return self._where(node, scope)
        if name in RANDOMS:
            return self._random(name, node, scope)
        if name in (EMPTY, PUSH):
            return self._history(name, [number(self.value(a.value, scope)) for a in node.arguments])
        builtin = BUILTINS.get(name)
        if name in WITH_OPTION or name in ALONG:
            return self._along(name, node, scope)
        if builtin is not None and builtin.definition is not None and name not in ELEMENTWISE:
            return self._call_derived(name, node, scope)
        # Only a reduction has `dim=`.
        dim = next((a.value for a in node.arguments if a.name == "dim"), None)
        values = [number(self.value(a.value, scope)) for a in node.arguments if a.name != "dim"]
        if name == "total":
            return self.total((*self.path, *place_of(node)), values[0])
        if name in PROGRESS or name == HALT:
            return self.progress(name, values)
        if name in SEARCHES:
            bound = self._bind(BUILTINS[name].parameters, node.arguments, scope)
            return self.searched(name, [number(bound[parameter]) for parameter, _ in BUILTINS[name].parameters])
        if name in EVALUATIONS:
            return self.evaluated(name, (*self.path, *place_of(node)), values[0])
        if name == "eps_of":
            return self.setting.eps
        if name in SIZES:
            if isinstance(values[0], Unknown):
                return UNKNOWN
            if name == "size":
                return float(np.shape(values[0])[whole(values[1])])
            return sizes(values[0])[SIZES.index(name)]
        if name in MAKERS:
            unknown = any(isinstance(v, Unknown) for v in values)
            return UNKNOWN if unknown else np.asarray(MAKERS[name](*map(whole, values)))
        if name in REDUCTIONS and len(values) == 1:
            return self._reduce(name, values[0], None if dim is None else self._dims(dim, scope, values[0]))
        result = values[0]
        if len(values) == 1:
            return self.apply(ELEMENTWISE[name], result)
        for value in values[1:]:
            result = self.apply(ELEMENTWISE[name], result, value)
        return result

    def _history(self, name: str, values: Sequence[Value]) -> Value:
        """Return an empty history, or one with one more entry and without its oldest."""
        if self.shape is None or any(isinstance(v, Unknown) for v in values):
            return UNKNOWN
        if name == EMPTY:
            return np.zeros((whole(values[0]), *self.shape))
        history, x = values
        return np.concatenate([history[1:], spread(x, history.shape[1:], self.shape)[None]])

    def _along(self, name: str, node: ast.Call, scope: Scope) -> Value:
        """Return a function of a tensor, or of its parts along dimensions, that numpy has."""
        parameters = [parameter for parameter, _ in BUILTINS[name].parameters]
        bound = {
            a.name or parameters[i]: a.value
            if (a.name or parameters[i]) == "dim"
            else number(self.value(a.value, scope))
            for i, a in enumerate(node.arguments)
        }
        x, dim = bound.pop("x"), bound.pop("dim", None)
        if isinstance(x, Unknown):
            return UNKNOWN
        dims = None if dim is None else self._dims(dim, scope, x)
        along: dict[str, Any] = {} if dims is None else {"axis": dims}
        if name in ALONG:
            kept = {} if name == "softmax" or dims is None else {"keepdims": True}
            return np.asarray(ALONG[name](np.asarray(x), **along, **kept))
        option = next(iter(bound.values()), 2.0 if name == "norm" else 0.0)
        return np.asarray(WITH_OPTION[name](np.asarray(x), option, **along, **({"keepdims": True} if along else {})))

    def _call_derived(self, name: str, node: ast.Call, scope: Scope) -> Value:
        builtin = BUILTINS[name]
        text, dim = builtin.definition, None
        assert text is not None
        arguments = node.arguments
        if builtin.takes_dim:
            places = [parameter for parameter, _ in builtin.parameters]
            place = places.index("dim") if "dim" in places else len(arguments)
            given = [a for i, a in enumerate(arguments) if a.name == "dim" or (i == place and a.name is None)]
            arguments = tuple(a for a in arguments if a not in given)
            dim = given[0].value if given else None
        names = self._bind(builtin.parameters, arguments, scope)
        names["dim"] = None if dim is None else self._dims(dim, scope, names[builtin.parameters[0][0]])
        with self.within(*place_of(node)):
            if builtin.block:
                return self.run_function(_block(text), scope.child(names))[0]
            return self.value(_expression(text), scope.child(names))

    def _where(self, node: ast.Call, scope: Scope) -> Value:
        positional = [a.value for a in node.arguments if a.name is None]
        by_name = dict(zip(("c", "a", "b"), positional, strict=False))
        by_name.update({a.name: a.value for a in node.arguments if a.name is not None})
        return self.value(ast.Ternary(node.span, by_name["c"], by_name["a"], by_name["b"]), scope)

    def _random(self, name: str, node: ast.Call, scope: Scope) -> Value:
        values = [number(self.value(a.value, scope)) for a in node.arguments]
        if name == "bernoulli":
            chance, values = values[0], []
        known = not any(isinstance(v, Unknown) for v in values)
        shape = tuple(map(whole, values)) if values and known else None
        drawn = self.random("randn" if name == "randn" else "rand", shape)
        if name == "bernoulli":
            return self.apply(lambda x, q: np.where(x < q, 1.0, 0.0), drawn, chance)
        return self.apply(lambda x: np.where(x < 0.5, -1.0, 1.0), drawn) if name == "rademacher" else drawn

    def _bind(
        self, parameters: Sequence[tuple[str, str | None]], arguments: Sequence[ast.Argument], scope: Scope
    ) -> dict[str, Value]:
        names: dict[str, Value] = {}
        for (parameter, default), argument in zip(
            parameters, [*arguments, *[None] * (len(parameters) - len(arguments))], strict=True
        ):
            if argument is not None and argument.name is None:
                names[parameter] = self.value(argument.value, scope)
            elif default is not None:
                names[parameter] = self.value(_expression(default), scope)
        names.update({a.name: self.value(a.value, scope) for a in arguments if a.name is not None})
        return names

    def _dims(self, node: ast.Expr, scope: Scope, value: Value) -> tuple[int, ...] | None:
        """Return ``dim=``: numbers as written, those of a value, or those handed on by a derived function."""
        if isinstance(node, ast.Slice):
            ends = (None if end is None else whole(self.value(end, scope)) for end in (node.start, node.stop))
            return tuple(range(np.ndim(value)))[slice(*ends)]
        if isinstance(node, ast.Tuple):
            return tuple(whole(self.value(item, scope)) for item in node.items)
        dims = self.value(node, scope)
        return dims if dims is None or isinstance(dims, tuple) else (whole(dims),)

    def _reduce(self, name: str, value: Value, dims: tuple[int, ...] | None) -> Value:
        if isinstance(value, Unknown):
            return value
        function = REDUCTIONS[name]
        if dims is None:
            return np.asarray(function(np.asarray(value)))
        return np.asarray(function(np.asarray(value), axis=dims, keepdims=True))
