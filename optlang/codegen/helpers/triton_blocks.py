"""Functions that generated Triton kernels call, for what Triton lacks or computes otherwise.

Triton's own division and root of float32 are approximate, so both are asked for as IEEE 754 has them; its maximum drops
NaN unless told otherwise.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def triton_divide(a, b):
    if (a + b).dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def triton_sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def triton_power(x, n: tl.constexpr):
    result = x
    for _ in tl.static_range(n - 1):
        result *= x
    return result


@triton.jit
def triton_pow(x, y):
    none = tl.zeros_like(x + y)
    return libdevice.pow(x + none, y + none)


@triton.jit
def triton_mod(x, y):
    rest = libdevice.fmod(x, y + tl.zeros_like(x))
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@triton.jit
def triton_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def triton_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def triton_sign(x):
    return tl.where(x == x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype), x)


@triton.jit
def triton_isfinite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def triton_inside(x, inside, other):
    if inside is None:
        return x.to(tl.float64)
    else:
        return tl.where(inside, x.to(tl.float64), other)


@triton.jit
def triton_nan_to_num(x):
    if x.dtype == tl.float32:
        big: tl.constexpr = 3.4028234663852886e38
    else:
        big: tl.constexpr = 1.7976931348623157e308
    return tl.where(x != x, 0.0, tl.minimum(tl.maximum(x, -big), big))
