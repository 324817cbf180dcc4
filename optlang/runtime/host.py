"""Host arithmetic where Python raises: division by zero gives infinity and sqrt(-1) gives NaN, as on the device.

Generated host functions compute with Python floats, which is fast, and correct as long as nothing is out of range. If
something is, the same function runs again on :class:`Real` numbers, which follow IEEE 754.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, cast

from optlang.functions.table import BUILTINS

HostFunction = Callable[..., Any]


def call(function: HostFunction, arguments: Sequence[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the two tuples of numbers that a generated ``host`` returns, under IEEE rules if Python raises.

    A complex result is treated like an exception: it cannot be converted to a float.
    """
    try:
        first, second = function(*arguments)
        return tuple(map(float, first)), tuple(map(float, second))
    except (ArithmeticError, ValueError, TypeError):
        first, second = ieee(function)(*widened(arguments))
        return tuple(map(float, first)), tuple(map(float, second))


def call_group(function: HostFunction, arguments: Sequence[Any]) -> tuple[float, ...]:
    """Return the tuple of numbers that a generated ``group`` returns, computed as :func:`call` does."""
    try:
        return tuple(map(float, function(*arguments)))
    except (ArithmeticError, ValueError, TypeError):
        return tuple(map(float, ieee(function)(*widened(arguments))))


def widened(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments with Python's numbers converted to :class:`Real`."""
    return tuple(Real(a) if type(a) in (int, float) else a for a in arguments)


def ieee(function: HostFunction) -> HostFunction:
    """Return a function whose literals, ``math`` and helpers follow IEEE 754 when its arguments are :class:`Real`."""
    names: dict[str, Any] = dict(cast(types.FunctionType, function).__globals__)
    names |= {"math": RealMath(), "float": Real, "round": lambda x: _safe(round, x)}
    for name, value in list(names.items()):
        if isinstance(value, types.FunctionType) and value.__globals__.get("__name__") == names.get("__name__"):
            names[name] = types.FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
    return cast(HostFunction, names[function.__name__])


def _remainder(a: float, b: float) -> float:
    """Return a % b; NaN where it is undefined."""
    try:
        return a % b
    except ZeroDivisionError:
        return math.nan


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and b % 2 == 1 else math.inf
    except ValueError:  # zero to a negative power, or a negative number to a fractional power
        if a != 0:
            return math.nan
        return math.copysign(math.inf, a) if b % 2 == 1 else math.inf


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or a != a:
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _binary(compute: Callable[[float, float], float], reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: SupportsFloat, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        a, b = float(self), float(other)
        return Real(compute(b, a) if reflected else compute(a, b))

    return method


class Real(float):
    """A float that never raises."""

    __add__, __radd__ = _binary(operator.add), _binary(operator.add, reflected=True)
    __sub__, __rsub__ = _binary(operator.sub), _binary(operator.sub, reflected=True)
    __mul__, __rmul__ = _binary(operator.mul), _binary(operator.mul, reflected=True)
    __truediv__, __rtruediv__ = _binary(_divide), _binary(_divide, reflected=True)
    __mod__, __rmod__ = _binary(_remainder), _binary(_remainder, reflected=True)
    __pow__: Any = _binary(_power)
    __rpow__: Any = _binary(_power, reflected=True)

    def __neg__(self) -> Real:
        return Real(-float(self))

    def __pos__(self) -> Real:
        return self

    def __abs__(self) -> Real:
        return Real(abs(float(self)))


def _limit(name: str, x: float) -> float | bool:
    """Return the value of a ``math`` function where Python raises, as the rule language defines that function."""
    row = BUILTINS.get(name)
    return math.nan if row is None or row.value is None else row.value(x)


def _safe(function: Callable[..., Any], x: Any) -> Any:
    try:
        result = function(float(x))
    except (ArithmeticError, ValueError):
        result = _limit(function.__name__, float(x))
    return result if isinstance(result, bool) else Real(result)


class RealMath:
    """The functions and constants of ``math``, on :class:`Real` numbers."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(math, name)
        if name == "pow":
            return lambda a, b: Real(_power(float(a), float(b)))
        if not callable(value):
            return value
        return lambda x, *rest: Real(value(float(x), *rest)) if rest else _safe(value, x)
