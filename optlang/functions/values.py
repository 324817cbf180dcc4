"""Functions on Python floats with IEEE 754 semantics: nothing raises, and NaN propagates."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable


def guarded(function: Callable[[float], float]) -> Callable[[float], float]:
    """Return ``function`` extended by NaN outside its domain and infinity on overflow."""

    def safe(x: float) -> float:
        try:
            return float(function(x))
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return safe


def extreme(choose: Callable[..., float]) -> Callable[..., float]:
    """Return ``min`` or ``max`` with NaN propagation."""

    def safe(*values: float) -> float:
        return math.nan if any(map(math.isnan, values)) else choose(values)

    return safe


def log(x: float) -> float:
    """Return the logarithm of a number."""
    return -math.inf if x == 0 else math.log(x)


def log1p(x: float) -> float:
    """Return log(1 + x)."""
    return -math.inf if x == -1 else math.log1p(x)


def floor(x: float) -> float:
    """Return the largest integer not above x."""
    return x if math.isinf(x) else float(math.floor(x))


def nearest(x: float) -> float:
    """Return the nearest integer."""
    return x if math.isinf(x) else float(round(x))


def sign(x: float) -> float:
    """Return the sign of a number."""
    return x if math.isnan(x) else float((x > 0) - (x < 0))


def nan_to_num(x: float) -> float:
    """Return 0 for NaN, and the largest finite number for an infinity."""
    return 0.0 if math.isnan(x) else max(-sys.float_info.max, min(sys.float_info.max, x))


def total(*values: float) -> float:
    """Return the sum of the arguments."""
    return sum(values)


def mean(*values: float) -> float:
    """Return the mean of the arguments."""
    return sum(values) / len(values)
