"""Elementwise functions."""

from __future__ import annotations

import math
from typing import Any

from optlang.functions import values
from optlang.functions.row import ELEMENTWISE, TYPES, Builtin


def _unary(name: str, summary: str, **others: Any) -> Builtin:
    """Return the row of a unary function that has the same name in every dialect, except as given in ``others``."""
    spelled = {"torch": f"torch.{name}({{0}})", "host": f"math.{name}({{0}})", "cpp": f"std::{name}({{0}})"}
    own = {**spelled, "triton": f"libdevice.{name}({{0}})", "value": getattr(math, name, None), **others}
    return Builtin(name, "x", ELEMENTWISE, summary, **{**own, "value": values.guarded(own["value"])})


FUNCTIONS: tuple[Builtin, ...] = (
    _unary(
        "abs",
        "Absolute value.",
        host="abs({0})",
        triton="tl.abs({0})",
        value=abs,
        latex=r"\left| {0} \right|",
        cost=1,
        of_conditions=True,
    ),
    _unary("sqrt", "Square root; NaN for a negative number.", triton="triton_sqrt({0})", latex=r"\sqrt{{0}}"),
    Builtin("rsqrt", "x", ELEMENTWISE, "One over the square root.", definition="1 / sqrt(x)"),
    _unary("exp", "Exponential.", latex=r"\exp"),
    _unary("log", "Natural logarithm.", value=values.log, latex=r"\log"),
    _unary("expm1", "exp(x) - 1, accurate near 0."),
    _unary("log1p", "log(1 + x), accurate near 0.", value=values.log1p),
    _unary("sin", "Sine.", latex=r"\sin"),
    _unary("cos", "Cosine.", latex=r"\cos"),
    _unary("tanh", "Hyperbolic tangent.", latex=r"\tanh"),
    _unary("atan", "Inverse tangent."),
    _unary("asinh", "Inverse hyperbolic sine.", free=True),
    _unary("erf", "Error function."),
    _unary("erfc", "1 - erf(x), accurate for large x.", free=True),
    _unary(
        "sigmoid",
        "Logistic function 1 / (1 + exp(-x)).",
        host="(0.5 * (1.0 + math.tanh(0.5 * {0})))",
        cpp="sigmoid_({0})",
        triton="triton_divide(1.0, 1.0 + libdevice.exp(-({0})))",
        value=lambda x: 0.5 * (1 + math.tanh(0.5 * x)),
        static=False,
    ),
    Builtin(
        "softplus",
        "x",
        ELEMENTWISE,
        "log(1 + exp(x)), accurate for large x.",
        definition="max(x, 0) + log1p(exp(-abs(x)))",
        of_conditions=True,
        free=True,
    ),
    _unary(
        "sign",
        "-1, 0 or 1; NaN for NaN, so a NaN gradient is not hidden.",
        torch="sign({0})",
        host="host_sign({0})",
        cpp="sign_({0})",
        triton="triton_sign({0})",
        value=values.sign,
        static=False,
    ),
    Builtin("sgn", "x", ELEMENTWISE, "Alias of sign.", definition="sign(x)"),
    Builtin("square", "x", ELEMENTWISE, "x^2.", definition="x^2", of_conditions=True),
    _unary(
        "floor",
        "Largest integer not above x.",
        host="float(math.floor({0}))",
        triton="tl.floor({0})",
        value=values.floor,
        latex=r"\left\lfloor {0} \right\rfloor",
        cost=1,
    ),
    _unary(
        "round",
        "Nearest integer; halves round to even.",
        host="float(round({0}))",
        cpp="std::nearbyint({0})",
        triton="libdevice.rint({0})",
        value=values.nearest,
        cost=1,
    ),
    Builtin(
        "isfinite",
        "x",
        ELEMENTWISE,
        "Whether x is neither infinite nor NaN.",
        "torch.isfinite({0})",
        "math.isfinite({0})",
        "isfinite_({0})",
        "triton_isfinite({0})",
        value=math.isfinite,
        boolean=True,
    ),
    _unary(
        "nan_to_num",
        "x with NaN replaced by 0, and infinities by the largest finite numbers.",
        host="host_nan_to_num({0})",
        cpp="nan_to_num_({0})",
        triton="triton_nan_to_num({0})",
        value=values.nan_to_num,
        static=False,
    ),
    Builtin(
        "lerp",
        "a, b, w",
        ELEMENTWISE,
        "Linear interpolation from a to b: (1 - w)*a + w*b.",
        definition="(1 - w)*a + w*b",
    ),
    Builtin(
        "clamp",
        "x, low, high",
        ELEMENTWISE,
        "x clipped to [low, high]; NaN stays NaN.",
        definition="min(max(x, low), high)",
    ),
    Builtin(
        "where",
        "c, a, b",
        ELEMENTWISE,
        "a where the condition c holds, else b (the same as `a if c else b`).",
        "torch.where({0}, {1}, {2})",
        "({1} if {0} else {2})",
    ),
    Builtin(
        "max",
        "*x",
        ELEMENTWISE,
        "Largest of two or more values, NaN if one is; of one value, its largest element (takes dim=).",
        "torch.maximum({0}, {1})",
        "host_max({*})",
        "max_({0}, {1})",
        "triton_max({0}, {1})",
        latex=r"\max",
        value=values.extreme(max),
        cost=1,
        parts=('float("-inf")', "triton_max({}, {})"),
        reduction=True,
    ),
    Builtin(
        "min",
        "*x",
        ELEMENTWISE,
        "Smallest of two or more values, NaN if one is; of one value, its smallest element (takes dim=).",
        "torch.minimum({0}, {1})",
        "host_min({*})",
        "min_({0}, {1})",
        "triton_min({0}, {1})",
        latex=r"\min",
        value=values.extreme(min),
        cost=1,
        parts=('float("inf")', "triton_min({}, {})"),
        reduction=True,
    ),
)

#: Number types.
ROUNDING: tuple[Builtin, ...] = (
    Builtin(
        "f32",
        "x",
        TYPES,
        "x rounded to float32.",
        "{0}.to(torch.float32)",
        "float(torch.tensor({0}, dtype=torch.float32).item())",
        "rounded<float>({0})",
        "({0}).to(tl.float32).to({real})",
        value=float,
        static=False,
    ),
    Builtin(
        "bf16",
        "x",
        TYPES,
        "x rounded to bfloat16.",
        "{0}.to(torch.bfloat16)",
        "float(torch.tensor({0}, dtype=torch.bfloat16).item())",
        "rounded<bfloat16>({0})",
        "({0}).to(tl.bfloat16).to({real})",
        value=float,
        static=False,
    ),
    Builtin("eps_of", "x", TYPES, "The machine epsilon of the dtype of p."),
)
