"""Functions that generated arithmetic on the host calls."""

import math


def host_sign(x):
    """Sign of a number; NaN stays NaN."""
    return x if x != x else float((x > 0) - (x < 0))


def host_max(*x):
    """Largest of some numbers; NaN if one of them is."""
    return math.nan if any(map(math.isnan, x)) else max(x)


def host_min(*x):
    """Smallest of some numbers; NaN if one of them is."""
    return math.nan if any(map(math.isnan, x)) else min(x)


def host_nan_to_num(x):
    """0 for NaN, the largest float64 for an infinity."""
    big = 1.7976931348623157e308
    return 0.0 if x != x else max(-big, min(big, x))
