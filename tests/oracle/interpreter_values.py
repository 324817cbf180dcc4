"""Values of the interpreter, and what operators and functions do to them.

A value on the device is an array (a 0-d one for one number per tensor), any other a plain Python value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Value = Any  # float, bool, str, None, np.ndarray, or UNKNOWN
Array = np.ndarray
Shape = tuple[int, ...]


class Unknown:
    """What a tensor's value is while group and shared states are computed, before any tensor is looked at."""


UNKNOWN = Unknown()


def number(value: Value) -> Value:
    """Return a condition as 0 or 1; leave numbers alone."""
    if isinstance(value, Array):
        return value.astype(np.float64) if value.dtype == np.bool_ else value
    return float(value) if isinstance(value, bool) else value


def whole(value: Value) -> int:
    """Return a size, a count or a place: a whole number that is known before the step."""
    if isinstance(value, Array) or value != math.floor(value):
        raise ValueError(f"{value} is no whole number known before the step")
    return int(value)


def flattened(shape: Shape) -> Shape:
    """Return the shape of the matrix made of a tensor: the first dimension by the rest."""
    return shape[0], math.prod(shape[1:])


def in_shape(value: Array, shape: Shape) -> Array:
    """Give the matrix made of a tensor the tensor's own shape back; leave anything else alone."""
    if len(shape) in (0, 2) or value.shape != flattened(shape):
        return value
    return value.reshape(shape)


def spread(value: Value, to: Shape, shape: Shape) -> Array:
    """Return a number, or an array whose sizes are equal or 1, in the shape ``to`` of what it is stored in.

    Args:
        value: What is stored.
        to: The shape it is stored in.
        shape: The parameter's: only what has that shape takes a flattened matrix.
    """
    array = np.asarray(number(value), dtype=np.float64)
    if to == shape:
        array = in_shape(array, shape)
    if array.ndim not in (0, len(to)):
        raise ValueError(f"a value of shape {array.shape} does not fit where shape {to} is kept")
    return np.array(np.broadcast_to(array, to))


def _meeting(arrays: Sequence[Array], shape: Shape | None) -> Sequence[Array]:
    """Return arrays that meet element by element; refuses what only numpy would let meet."""
    if shape is not None and any(a.shape == shape for a in arrays):
        arrays = [in_shape(a, shape) for a in arrays]
    if len({a.ndim for a in arrays if a.ndim}) > 1:
        raise ValueError(f"shapes {[a.shape for a in arrays]} do not meet element by element")
    return arrays


def apply(function: Callable[..., Any], *values: Value, shape: Shape | None = None) -> Value:
    """Apply a numpy function element by element; the result is an array if, and only if, an operand is one.

    Args:
        function: The function.
        *values: Its operands.
        shape: The parameter's, which flattened matrices take beside values of that shape.
    """
    if any(isinstance(v, Unknown) for v in values):
        return UNKNOWN
    result = function(*_meeting([np.asarray(v) for v in values], shape))
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
    "asinh": np.arcsinh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "erfc": np.vectorize(math.erfc, otypes=[np.float64]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "sign": _sign,
    "round": np.rint,
    "isfinite": np.isfinite,
    "nan_to_num": np.nan_to_num,
    "f32": lambda x: x.astype(np.float32).astype(np.float64),
    "bf16": _bfloat16,
    "max": np.maximum,
    "min": np.minimum,
}


def _norm(x: Array, order: float, **along: Any) -> Array:
    if math.isinf(order):
        return np.abs(x).max(**along) if order > 0 else np.abs(x).min(**along)
    return np.sum(np.abs(x) ** order, **along) ** (1 / order) if order else np.sum(x != 0.0, **along) * 1.0


def _softmax(x: Array, axis: Any = None) -> Array:
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return powers / np.sum(powers, axis=axis, keepdims=True)


def _logsumexp(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    most = np.max(x, axis=axis, keepdims=True)
    most = np.where(np.isinf(most), 0.0, most)
    total = np.sum(np.exp(x - most), axis=axis, keepdims=keepdims)
    return np.log(total) + most.reshape(total.shape)


def _median(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the lower one of two in the middle; numpy's quantiles of a NaN are NaN."""
    return np.quantile(x, 0.5, axis=axis, keepdims=keepdims, method="lower")


#: Functions of a tensor, or of its parts along dimensions, with an option: given it, and numpy's `axis` and `keepdims`.
WITH_OPTION: dict[str, Callable[..., Any]] = {
    "norm": _norm,
    "var": lambda x, correction, **along: np.var(x, ddof=correction, **along),
    "std": lambda x, correction, **along: np.std(x, ddof=correction, **along),
}

#: The same without one; those that keep the shape are not given `keepdims`.
ALONG: dict[str, Callable[..., Any]] = {"logsumexp": _logsumexp, "median": _median, "softmax": _softmax}

REDUCTIONS: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
