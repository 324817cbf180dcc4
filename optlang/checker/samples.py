"""Sampling of static values, chosen to reach every branch of a rule.

A rule has one variant for each set of answers to its static questions (is ``amsgrad`` true, is ``momentum`` 0, is
``ndim`` above 1?). The checker interprets a rule once for each of a small set of samples. It thus sees exactly what a
variant sees, and raises no false alarms where conditions exclude each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from optlang.declarations.constants import NotConstant, fold
from optlang.declarations.scope import Scope
from optlang.functions.table import FACT_NAMES
from optlang.rule import Hyper, HyperType, OneOf, Range, Value
from optlang.syntax.tree import Binary, Call, Compare, Expr, Name, Slice, Ternary, Unary
from optlang.syntax.walk import expressions

SHAPES: tuple[tuple[int, ...], ...] = ((2, 3), (6,), (), (3, 2), (2, 3, 2), (1, 2, 3, 2), (64, 64), (1, 6), (6, 1))

#: Shapes for matrix rules. Their sizes differ from each other and from small numbers in rules.
MATRIX_SHAPES: tuple[tuple[int, ...], ...] = (
    *((5, 7), (9, 6), (6,), (6, 5, 7), (5, 6, 3, 7), ()),
    *((64, 64), (6, 6), (1, 6), (6, 1), (3, 2), (2, 3)),
)


@dataclass(frozen=True)
class Sample:
    """Values of the hyperparameters and of the tensor's facts, by name.

    ``defaults`` is true if all hyperparameters have their defaults.
    """

    values: Mapping[str, Value]
    shape: tuple[int, ...]
    defaults: bool = False

    @property
    def ordinary(self) -> bool:
        """Whether the tensor is a typical matrix: neither square nor a single row or column."""
        return len(self.shape) == 2 and min(self.shape) > 1 and self.shape[0] != self.shape[1]


@dataclass(frozen=True)
class _Hyper:
    """A change of a hyperparameter."""

    name: str
    value: Value


@dataclass(frozen=True)
class _Shape:
    """A change of the tensor's shape."""

    shape: tuple[int, ...]


_Change = _Hyper | _Shape


def facts(shape: tuple[int, ...]) -> dict[str, Value]:
    """Return the facts of a tensor of a given shape."""
    rows = shape[-2] if len(shape) > 1 else 1
    cols = shape[-1] if shape else 1
    numbers = {"ndim": len(shape), "numel": math.prod(shape), "rows": rows, "cols": cols}
    return {name: float(number) for name, number in numbers.items()}


def ordinary_value(hyper: Hyper, nonzero: bool = True) -> float:
    """Return a typical number that a hyperparameter allows."""
    default = hyper.default
    if isinstance(default, float) and math.isfinite(default) and (default != 0 or not nonzero):
        return default
    bounds = hyper.domain
    if isinstance(bounds, OneOf):
        numbers = [v for v in bounds.values if isinstance(v, float)]
        return next((v for v in numbers if v), numbers[0] if numbers else 0.1)
    if isinstance(bounds, Range):
        if math.isfinite(bounds.low) and math.isfinite(bounds.high):
            return (bounds.low + bounds.high) / 2 or bounds.high / 4 or bounds.low / 4
        for value in (0.1, bounds.low + 1, bounds.high - 1):
            if math.isfinite(value) and value in bounds:
                return value
    return 0.1


def samples(
    scope: Scope,
    exprs: Iterable[Expr],
    conditions: Iterable[Expr],
    limit: int,
    matrices: bool = False,
    whole: Iterable[str] = (),
) -> list[Sample]:
    """Return the samples to check, starting with all defaults.

    Args:
        scope: The rule's names.
        exprs: Every expression of the rule.
        conditions: The expressions in condition position, as in ``if momentum:``.
        limit: Maximum number of samples.
        matrices: Whether it is a matrix rule.
        whole: The hyperparameters that are sizes or counts.
    """
    compared, asked = _questions(exprs)
    asked |= {condition.name for condition in conditions if isinstance(condition, Name)}
    axes = {h.name: _candidates(h, compared.get(h.name, ()), h.name in asked) for h in scope.hypers.values()}
    for name in whole:
        axes[name] = _whole(scope.hypers[name], axes[name])
    shapes = [(MATRIX_SHAPES if matrices else SHAPES)[0]]
    if matrices or any(fact in compared or fact in asked for fact in FACT_NAMES):
        more = MATRIX_SHAPES if matrices else SHAPES
        shapes = list(dict.fromkeys((*more, *_shapes(compared))))
    names = [name for name, values in axes.items() if len(values) > 1]
    base = {name: values[0] for name, values in axes.items()}
    found = [Sample({**base, **facts(shapes[0])}, shapes[0], True)]
    others: list[_Change] = [_Shape(shape) for shape in shapes[1:]]
    choices: list[list[_Change]] = [[_Hyper(name, v) for v in axes[name][1:]] for name in names]
    choices = [others, *choices] if matrices else [*choices, others]
    for changes in _combinations([axis for axis in choices if axis]):
        changed = {change.name: change.value for change in changes if isinstance(change, _Hyper)}
        shape = next((change.shape for change in changes if isinstance(change, _Shape)), shapes[0])
        found.append(Sample({**base, **changed, **facts(shape)}, shape, not changed))
        if len(found) >= limit:
            break
    return found


def _combinations(axes: list[list[_Change]]) -> Iterator[tuple[_Change, ...]]:
    """Yield changes along one axis, then along two, and so on."""
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield from itertools.product(*chosen)


def _questions(exprs: Iterable[Expr]) -> tuple[dict[str, list[Value]], set[str]]:
    """Return the constants that each name is compared with, and the names used as conditions."""
    compared: dict[str, list[Value]] = {}
    asked: set[str] = set()
    for root in exprs:
        for node in expressions(root):
            match node:
                case Compare(operands=operands):
                    for a, b in itertools.pairwise(operands):
                        _compare(a, b, compared)
                        _compare(b, a, compared)
                case Ternary(condition=Name(name=name)) | Unary(op="not", operand=Name(name=name)):
                    asked.add(name)
                case Binary(op="and" | "or", left=left, right=right):
                    asked.update(side.name for side in (left, right) if isinstance(side, Name))
                case Call(function=Name(name="where"), arguments=(first, *_)) if isinstance(first.value, Name):
                    asked.add(first.value.name)
                case Slice():  # `dim=1:`, or a part of a tensor in a matrix rule
                    asked.add("ndim")
                case _:
                    pass
    return compared, asked


def _compare(name: Expr, other: Expr, compared: dict[str, list[Value]]) -> None:
    names = [node.name for node in expressions(name) if isinstance(node, Name)]
    try:
        value = fold(other)
    except NotConstant:
        value = 0.5
    for found in names:
        compared.setdefault(found, []).append(value)


def _candidates(hyper: Hyper, compared: Iterable[Value], asked: bool) -> list[Value]:
    """Return values to try for a hyperparameter, starting with its default (or a typical one)."""
    values: list[Value]
    match hyper.type:
        case HyperType.FLAG:
            values = [bool(hyper.default), not hyper.default]
        case HyperType.TEXT | HyperType.OPTIONAL_TEXT:
            listed = hyper.domain.values if isinstance(hyper.domain, OneOf) else ()
            values = [hyper.default if not hyper.required else "", *listed, *compared, "another"]
            values = [
                v for v in values if isinstance(v, str | None) and (v in listed or (v is not None and not listed))
            ]
        case HyperType.OPTIONAL:
            values = [hyper.default, None, ordinary_value(hyper), *_near(hyper, compared, asked)]
        case _:
            values = [ordinary_value(hyper, nonzero=hyper.required), *_near(hyper, compared, asked)]
    return list(dict.fromkeys(values))


def _near(hyper: Hyper, compared: Iterable[Value], asked: bool) -> list[Value]:
    """Return numbers on both sides of the constants a hyperparameter is compared with."""
    numbers = [v for v in compared if isinstance(v, float)]
    if asked:
        numbers.append(0.0)
        numbers.append(ordinary_value(hyper))
    around = [x for v in numbers for x in (v, v + 0.25, v - 0.25, v + 1, v - 1)] if numbers else []
    inside = [x for x in around if hyper.domain is None or x in hyper.domain]
    sides: dict[tuple[int, ...], Value] = {}
    for x in inside:
        sides.setdefault(tuple((x > v) - (x < v) for v in numbers), x)
    return list(sides.values())


def _whole(hyper: Hyper, values: list[Value]) -> list[Value]:
    """Return values of a hyperparameter that is a size or count: its default and small integers."""
    found = [v for v in values if isinstance(v, (bool, str)) or v is None or v % 1 == 0 or v == hyper.default]
    small = (v for v in (2.0, 3.0, 0.0) if hyper.domain is None or v in hyper.domain)
    return list(dict.fromkeys((*found, *small))) or values


def _shapes(compared: Mapping[str, Iterable[Value]]) -> Iterator[tuple[int, ...]]:
    """Yield shapes with facts on both sides of the constants they are compared with."""
    numbers = {
        fact: [int(v) for v in compared.get(fact, ()) if isinstance(v, float) and 1 <= v < 1e12] for fact in FACT_NAMES
    }
    for n in numbers["numel"]:
        yield from ((1, n + d) for d in (-1, 0, 1) if n + d > 0)
    for n in numbers["rows"]:
        yield from ((n + d, 7) for d in (-1, 0, 1) if n + d > 0)
    for n in numbers["cols"]:
        yield from ((7, n + d) for d in (-1, 0, 1) if n + d > 0)
    for n in numbers["ndim"]:
        yield from ((2, 3, 4, 5, 6, 7, 8, 9)[: n + d] for d in (0, 1) if 4 < n + d <= 8)
