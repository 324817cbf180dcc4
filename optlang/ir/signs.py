"""Sign analysis: finds states that are never negative, states used as divisors, and states that start as 0.

Every value gets an interval that holds for all gradients. States that start nonnegative are assumed to stay so; the
assumption is dropped for states whose update does not preserve it, until a fixed point is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sympy as sp

from optlang.identity import Count
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program


class Traits(NamedTuple):
    """Properties of the numbers in a state, as recorded in its slot."""

    signed: bool = True
    divides: bool = True
    zero: bool = False
    averages: bool = False
    cancels: bool = False
    mixed: bool = False


class Bounds(NamedTuple):
    """The interval from ``low`` to ``high``."""

    low: float
    high: float

    def joined(self, other: Bounds) -> Bounds:
        """Return the smallest interval that contains both."""
        return Bounds(min(self.low, other.low), max(self.high, other.high))


def multiplied(one: Bounds, other: Bounds) -> Bounds:
    """Return the interval of the product; zero times any bound is 0, because no value is infinite."""
    ends = [0.0 if 0.0 in (a, b) else a * b for a in one for b in other]
    return Bounds(min(ends), max(ends))


ANY, POSITIVE, UNIT = Bounds(-math.inf, math.inf), Bounds(0.0, math.inf), Bounds(0.0, 1.0)
NOTHING = Bounds(0.0, 0.0)

#: Ranges of functions, for any argument.
KNOWN = {
    **dict.fromkeys(("abs", "exp", "norm", "norm1", "sumsq", "count", "numel", "rows", "cols"), POSITIVE),
    **dict.fromkeys(("sigmoid", "rand"), UNIT),
    **dict.fromkeys(("sign", "tanh", "sin", "cos", "erf"), Bounds(-1.0, 1.0)),
}
#: Functions of a tensor's numbers whose result lies between their minimum and maximum.
BETWEEN = ("max", "min", "mean", "rms", "sqrt", "amax", "amin", "cbrt", "nan_to_num", "relu")

#: Matrix operations that only move the numbers of their first argument.
MOVING = ("index", "shaped", "transpose", "flip")


def of_states(
    programs: Sequence[Program], start: Program, ranges: Mapping[ValueName, tuple[float, float]]
) -> dict[ValueName, Traits]:
    """Return the properties of each state.

    Args:
        programs: The possible steps of the rule.
        start: The initial values.
        ranges: The ranges of the hyperparameters.
    """
    initial = {store.target: store.expr for store in start.stores}
    starting = _Intervals(start, ranges, set())
    hopeful = {name for name, expr in initial.items() if starting.of(expr).low >= 0}
    while True:
        kept = {name for name in hopeful if all(_keeps(program, ranges, hopeful, name) for program in programs)}
        if kept == hopeful:
            break
        hopeful = kept
    divisors = {name for program in programs for name in _divisors(program)}
    zero = {name for name, expr in initial.items() if starting.of(expr) == NOTHING}
    averages = set()
    for name in initial:
        writing = [program for program in programs if any(store.target == name for store in program.stores)]
        if writing and all(_fades(program, ranges, hopeful, name) for program in writing):
            averages.add(name)
    cancelling = {name for program in programs for name in _cancelling(program, _Intervals(program, ranges, hopeful))}
    mixed = {name for program in programs for name in _mixed(program)}
    sets = (divisors, zero, averages, cancelling, mixed)
    return {name: Traits(name not in hopeful, *(name in found for found in sets)) for name in initial}


def _keeps(
    program: Program, ranges: Mapping[ValueName, tuple[float, float]], hopeful: set[ValueName], name: ValueName
) -> bool:
    """Return whether a step keeps a nonnegative state nonnegative."""
    intervals = _Intervals(program, ranges, hopeful)
    return all(intervals.of(store.expr).low >= 0 for store in program.stores if store.target == name)


def _fades(
    program: Program, ranges: Mapping[ValueName, tuple[float, float]], hopeful: set[ValueName], name: ValueName
) -> bool:
    """Return whether a state's old value enters its new value with a smaller weight, so that errors decay."""
    intervals = _Intervals(program, ranges, hopeful)
    if _follows_parameter(program, name, _Slopes(intervals, program, "p")):
        return False
    found = _Slopes(intervals, program, name)
    slopes = [found.of(store.expr) for store in program.stores if store.target == name]
    return all(slope.low > -1 and slope.high < 1 for slope in slopes)


def _follows_parameter(program: Program, name: ValueName, slopes: _Slopes) -> bool:
    """Return whether a state depends on the parameter, and on gradients only through its update."""
    exprs = {value.symbol: value.expr for value in program.values}
    moved = {symbol for symbol, slope in slopes.known.items() if slope == Bounds(1.0, 1.0)}
    known = {i.symbol: i.name for i in program.inputs}
    found: set[sp.Symbol] = set()
    todo = [store.expr for store in program.stores if store.target == name]
    while todo:
        for symbol in todo.pop().free_symbols - found:
            found.add(symbol)
            if symbol in exprs and symbol not in moved:
                todo.append(exprs[symbol])
    names = {known.get(symbol) for symbol in found}
    return "g" not in names and bool("p" in names or found & moved)


def _divisors(program: Program) -> Iterable[ValueName]:
    """Yield the names of the inputs that reach a divisor, through any values.

    A reduction does not become 0 because one element is 0, nor the square of a difference because one operand is.
    """
    exprs = {value.symbol: value.expr for value in program.values}
    found: set[sp.Symbol] = set()
    todo = [power.base for value in program.values for power in value.expr.atoms(sp.Pow) if _is_divided(power)]
    while todo:
        for symbol in _reaching(todo.pop()) - found:
            found.add(symbol)
            if symbol in exprs:
                todo.append(exprs[symbol])
    return (i.name for i in program.inputs if i.symbol in found)


def _cancelling(program: Program, intervals: _Intervals) -> Iterable[ValueName]:
    """Yield the names of the inputs in differences that are a divisor or the argument of a root.

    If the operands are nearly equal, an error in one of them is as large as the difference.
    """
    exprs = {value.symbol: value.expr for value in program.values}
    powers = (power for value in program.values for power in value.expr.atoms(sp.Pow))
    todo = [power.base for power in powers if _is_divided(power) or not power.exp.is_Integer]
    seen: set[sp.Symbol] = set()
    found: set[sp.Symbol] = set()
    while todo:
        expr = todo.pop()
        if isinstance(expr, algebra.Reduction | algebra.MatrixOperation) or _is_even(expr):
            continue
        if expr.is_Add and any(intervals.of(term).low < 0 >= intervals.of(term).high for term in expr.args):
            found |= expr.free_symbols
        if expr.is_Symbol and expr not in seen:
            seen.add(expr)
            todo += [exprs[expr]] if expr in exprs else []
        todo += expr.args
    names = {i.symbol: i.name for i in program.inputs}
    behind = [*found]
    while behind:
        symbol = behind.pop()
        if symbol in names:
            yield names[symbol]
        elif symbol in exprs:
            more = exprs[symbol].free_symbols - found
            found |= more
            behind += more


def _mixed(program: Program) -> Iterable[ValueName]:
    """Yield the names of the inputs of matrix operations, which mix their numbers."""
    exprs = {value.symbol: value.expr for value in program.values}
    found: set[sp.Symbol] = set()
    operations = (o for value in program.values for o in value.expr.atoms(algebra.MatrixOperation))
    todo = [arg for o in operations if algebra.name_of(o) not in MOVING for arg in o.args]
    while todo:
        expr = todo.pop()
        if expr.is_Symbol and expr not in found:
            found.add(expr)
            todo += [exprs[expr]] if expr in exprs else []
        if not isinstance(expr, algebra.MatrixOperation) or algebra.name_of(expr) in MOVING:
            todo += expr.args
    return (i.name for i in program.inputs if i.symbol in found)


def _is_even(expr: sp.Expr) -> bool:
    return bool(expr.is_Pow and expr.exp.is_Integer and int(expr.exp) % 2 == 0)


def _reaching(expr: sp.Expr) -> set[sp.Symbol]:
    """Return the symbols of a divisor that can make it 0."""
    if isinstance(expr, algebra.Reduction | algebra.MatrixOperation):
        return set()
    if _is_even(expr):
        return _reaching(expr.base) if expr.base.is_Symbol else set()
    if expr.is_Symbol:
        return {expr}
    return set().union(*map(_reaching, expr.args))


def _is_divided(power: sp.Pow) -> bool:
    return bool(power.exp.is_number and power.exp.is_negative)


class _Intervals:
    """The intervals of a program's values."""

    def __init__(
        self, program: Program, ranges: Mapping[ValueName, tuple[float, float]], hopeful: set[ValueName]
    ) -> None:
        self.known: dict[sp.Symbol, Bounds] = {}
        for given in program.inputs:
            if given.name in hopeful:
                self.known[given.symbol] = POSITIVE
            elif given.name in ranges:
                self.known[given.symbol] = Bounds(*ranges[given.name])
            elif given.name in ("t", Count.GROUP):
                self.known[given.symbol] = Bounds(1.0, math.inf)
        for value in program.values:
            self.known[value.symbol] = self.of(value.expr)

    def of(self, expr: sp.Expr) -> Bounds:
        """Return the interval of an expression."""
        if expr.is_Symbol:
            return self.known.get(expr, ANY)
        if expr.is_Number or expr.is_NumberSymbol:
            number = float(expr)
            return Bounds(number, number)
        if expr.is_Add:
            parts = [self.of(a) for a in expr.args]
            return Bounds(sum(p.low for p in parts), sum(p.high for p in parts))
        if expr.is_Mul:
            return self.product(expr.args)
        if expr.is_Pow:
            return self._power(expr)
        return self._function(expr) if expr.is_Function else ANY

    def product(self, factors: Sequence[sp.Expr]) -> Bounds:
        """Return the interval of a product."""
        found = Bounds(1.0, 1.0)
        for factor in factors:
            found = multiplied(found, self.of(factor))
        return found

    def _power(self, expr: sp.Pow) -> Bounds:
        base, exponent = self.of(expr.base), self.of(expr.exp)
        even = expr.exp.is_Integer and int(expr.exp) % 2 == 0
        if not (even or base.low >= 0):
            return ANY
        if base.low >= 0 and base.high <= 1 and exponent.low >= 0:
            return UNIT
        if expr.exp == sp.Integer(-1) and base.low >= 0:
            low = 0.0 if math.isinf(base.high) or not base.high else 1 / base.high
            return Bounds(low, math.inf if not base.low else 1 / base.low)
        return POSITIVE

    def _function(self, expr: sp.Expr) -> Bounds:
        name, args = algebra.name_of(expr), expr.args
        if name in MOVING:
            return self.of(args[0])
        if name in ("select", "where"):
            return self.of(args[1]).joined(self.of(args[2]))
        if name == "maximum" or (name == "max" and len(args) > 1):
            ends = [self.of(a) for a in args]
            return Bounds(max(e.low for e in ends), max(e.high for e in ends))
        if name == "minimum" or (name == "min" and len(args) > 1):
            ends = [self.of(a) for a in args]
            return Bounds(min(e.low for e in ends), min(e.high for e in ends))
        if name in KNOWN:
            return KNOWN[name]
        if name in (*BETWEEN, "sum") and self.of(args[0]).low >= 0:
            return POSITIVE
        return ANY


class _Slopes:
    """The derivatives of a program's values with respect to a state, as intervals."""

    def __init__(self, intervals: _Intervals, program: Program, name: ValueName) -> None:
        self.intervals = intervals
        self.known: dict[sp.Symbol, Bounds] = {i.symbol: Bounds(1.0, 1.0) for i in program.inputs if i.name == name}
        for value in program.values:
            if value.expr.free_symbols & self.known.keys():
                self.known[value.symbol] = self.of(value.expr)

    def of(self, expr: sp.Expr) -> Bounds:
        """Return the interval of the derivative of an expression."""
        if not expr.free_symbols & self.known.keys():
            return NOTHING
        if expr.is_Symbol:
            return self.known[expr]
        if expr.is_Add:
            parts = [self.of(a) for a in expr.args]
            return Bounds(sum(p.low for p in parts), sum(p.high for p in parts))
        if expr.is_Mul:
            moving = [a for a in expr.args if a.free_symbols & self.known.keys()]
            if len(moving) == 1:
                slope, rest = self.of(moving[0]), self.intervals.product([a for a in expr.args if a is not moving[0]])
                return multiplied(slope, rest)
        if expr.is_Function and algebra.name_of(expr) in MOVING and not any(map(self._moves, expr.args[1:])):
            return self.of(expr.args[0])
        if expr.is_Function and algebra.name_of(expr) in ("select", "where", "max", "min"):
            found = NOTHING
            for arg in expr.args:
                found = found.joined(ANY if algebra.is_condition(arg) and self._moves(arg) else self.of(arg))
            return found
        return ANY

    def _moves(self, expr: sp.Expr) -> bool:
        return bool(expr.free_symbols & self.known.keys())
