"""Reductions over a whole tensor or along dimensions, and related functions."""

from __future__ import annotations

from optlang.functions import values
from optlang.functions.row import REDUCTION, Builtin

#: Over the whole tensor or along ``dim``.
VARIANCE = (
    "(mean((x - mean(x, dim=dim))^2, dim=dim) if correction == 0 else "
    "sum((x - mean(x, dim=dim))^2, dim=dim) / (sum(x^0, dim=dim) - correction))"
)
#: The largest element, subtracted before exponentiation; an infinite one is not subtracted.
TOP = "(max(x, dim=dim) if isfinite(max(x, dim=dim)) else 0)"
#: The initial value of a sum in a Triton kernel, and how to combine two partial sums.
ADDED = ("0.0", "{} + {}")


FUNCTIONS: tuple[Builtin, ...] = (
    Builtin(
        "sum",
        "x",
        REDUCTION,
        "Sum, accumulated in float64.",
        value=values.total,
        static=False,
        parts=ADDED,
        reduction=True,
    ),
    Builtin(
        "mean",
        "x",
        REDUCTION,
        "Mean, accumulated in float64.",
        value=values.mean,
        static=False,
        parts=ADDED,
        reduction=True,
    ),
    Builtin(
        "norm",
        "x, ord = 2",
        REDUCTION,
        "Vector norm of the elements: Euclidean, or of order 1, inf, -inf (the smallest magnitude), 0 (the number of "
        "nonzero elements) or any other number.",
        definition=(
            "sqrt(sum(x^2, dim=dim)) if ord == 2 else sum(abs(x), dim=dim) if ord == 1 else "
            "max(abs(x), dim=dim) if ord == inf else min(abs(x), dim=dim) if ord == -inf else "
            "sum(x != 0, dim=dim) if ord == 0 else sum(abs(x)^ord, dim=dim)^(1/ord)"
        ),
        latex=r"\left\lVert {0} \right\rVert",
        reduction=True,
    ),
    Builtin("rms", "x", REDUCTION, "Root of the mean square.", definition="sqrt(mean(x^2, dim=dim))", reduction=True),
    Builtin("dot", "x, y", REDUCTION, "Sum of elementwise products.", definition="sum(x*y, dim=dim)", reduction=True),
    Builtin(
        "var",
        "x, correction = 0",
        REDUCTION,
        "Variance: the sum of squared deviations from the mean, divided by n - correction.",
        definition=VARIANCE,
        reduction=True,
    ),
    Builtin(
        "std",
        "x, correction = 0",
        REDUCTION,
        "Standard deviation, the root of the variance; `torch.std` has `correction = 1`.",
        definition=f"sqrt({VARIANCE})",
        reduction=True,
    ),
    Builtin(
        "logsumexp",
        "x",
        REDUCTION,
        "Logarithm of the sum of exponentials, accurate for large x.",
        definition=f"{TOP} + log(sum(exp(x - {TOP}), dim=dim))",
        reduction=True,
        free=True,
    ),
    Builtin(
        "softmax",
        "x, dim = none",
        REDUCTION,
        "exp(x) / sum(exp(x)): weights that sum to 1, over the whole tensor or along `dim`.",
        definition="powers = exp(x - max(x, dim=dim))\nreturn powers / sum(powers, dim=dim)",
        free=True,
    ),
    Builtin(
        "median",
        "x, dim = none",
        REDUCTION,
        "Median, the lower of the two middle elements as in `torch.median`; NaN if an element is NaN.",
        definition=(
            "y = sort(x if dim != none else flatten(x), dim ?? -1)\n"
            "place = cumsum(y^0, dim ?? -1)\n"
            "middle = sum(y if place == floor((max(place) + 1)/2) else 0, dim=dim)\n"
            "return middle if middle <= max(x, dim=dim) else max(x, dim=dim)"
        ),
        matrix=True,
        free=True,
    ),
)
