"""Values of the interpreter, and what operators and functions do to them.

A value on the device is an array (a 0-d one for one number per tensor), any other a plain Python value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Value = Any  # float, bool, str, None, np.ndarray, or UNKNOWN
Array = np.ndarray


class Unknown:
    """What a tensor's value is while group states are computed, before any tensor is looked at."""


UNKNOWN = Unknown()


def number(value: Value) -> Value:
    """Return a condition as 0 or 1; leave numbers alone."""
    if isinstance(value, Array):
        return value.astype(np.float64) if value.dtype == np.bool_ else value
    return float(value) if isinstance(value, bool) else value


def apply(function: Callable[..., Any], *values: Value) -> Value:
    """Apply a numpy function; the result is an array if, and only if, an operand is one."""
    if any(isinstance(v, Unknown) for v in values):
        return UNKNOWN
    result = function(*(np.asarray(v) for v in values))
    return np.asarray(result) if any(isinstance(v, Array) for v in values) else result.item()


def _bfloat16(x: Array) -> Array:
    """Round to bfloat16, ties to even, through float32."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    out = rounded.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(np.isfinite(x), out, x)


def _sign(x: Array) -> Array:
    return np.where(np.isnan(x), x, np.sign(x))


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
    "^": np.power,
}

COMPARISONS: dict[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}

ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("sqrt", "exp", "log", "expm1", "log1p", "sin", "cos", "tanh", "floor")},
    "abs": np.abs,
    "atan": np.arctan,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sign": _sign,
    "round": np.rint,
    "isfinite": np.isfinite,
    "nan_to_num": np.nan_to_num,
    "f32": lambda x: x.astype(np.float32).astype(np.float64),
    "bf16": _bfloat16,
    "max": np.maximum,
    "min": np.minimum,
}

REDUCTIONS: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
