"""Host arithmetic: as Python computes it where it can, as IEEE 754 says where it cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlang.runtime import host
from optlang.runtime.host import Real

NUMBERS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 3.0, math.inf, -math.inf, math.nan, 1e308])


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


@given(NUMBERS, NUMBERS)
def test_operators_agree_with_numpy(a: float, b: float) -> None:
    x, y = np.float64(a), np.float64(b)
    with np.errstate(all="ignore"):
        for ours, theirs in (
            (Real(a) + b, x + y),
            (a - Real(b), x - y),
            (Real(a) * Real(b), x * y),
            (Real(a) / b, x / y),
            (a / Real(b), x / y),
        ):
            assert same(float(ours), float(theirs)), (a, b)
        power, reference = float(Real(a) ** b), float(x**y)
        assert same(power, reference) or math.isclose(power, reference, rel_tol=1e-13), (a, b)


@given(NUMBERS)
def test_functions_agree_with_numpy(a: float) -> None:
    ours = host.RealMath()
    with np.errstate(all="ignore"):
        for name in ("sqrt", "log", "exp", "expm1", "log1p", "sin", "cos", "tanh", "floor"):
            got, wanted = float(getattr(ours, name)(Real(a))), float(getattr(np, name)(a))
            assert same(got, wanted) or math.isclose(got, wanted, rel_tol=1e-13, abs_tol=1e-300), (name, a)
        assert same(float(ours.atan(a)), float(np.arctan(a))) or math.isclose(ours.atan(a), math.atan(a))


def module(body: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "generated"}
    exec(f"import math\ndef inverse(x):\n    return 1/x\ndef host(a, t, flag):\n    return {body}", names)
    return names


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(a/t, 1.0), ()", ((0.25, 1.0), ())),
        ("(a/(t - 4), 1 - 0.9**t), (a,)", ((math.inf, 1 - 0.9**4), (1.0,))),
        ("(math.sqrt(-a),), ()", ((math.nan,), ())),
        ("((-a)**0.5,), ()", ((math.nan,), ())),
        ("(10.0**(100*t), math.exp(1000*a)), ()", ((math.inf, math.inf), ())),
        ("(inverse(t - 4),), ()", ((math.inf,), ())),
        ("(float(round(1/(t - 4))), float(math.floor(-1/(t - 4)))), ()", ((math.inf, -math.inf), ())),
        ("(max(math.log(t - 4), -5.0), 2.0 if flag else 1.0), ()", ((-5.0, 2.0), ())),
    ],
)
def test_calls(body: str, expected: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    result = host.call(module(body)["host"], (1.0, 4.0, True))  # type: ignore[arg-type]
    assert len(result) == 2
    for got, wanted in zip(result, expected, strict=True):
        assert len(got) == len(wanted)
        assert all(type(x) is float and same(x, y) for x, y in zip(got, wanted, strict=True))


def test_a_mistake_in_generated_code_is_not_hidden() -> None:
    with pytest.raises(TypeError):
        host.call(module("(len(a),), ()")["host"], (1.0, 4.0, True))  # type: ignore[arg-type]
