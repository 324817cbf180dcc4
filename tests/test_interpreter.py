"""The oracle itself, against numbers worked out by hand or by a few lines of numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from interpreter import Interpreter

from optlang.diagnostics import render_all
from optlang.language.check import check_text
from optlang.source import Source


def interpreter(text: str, hypers: dict[str, Any] | None = None, **kwargs: Any) -> Interpreter:
    rule, findings = check_text(Source(text))
    assert rule is not None, render_all(findings)
    return Interpreter(rule, hypers, **kwargs)


def after(text: str, p: Any, *grads: Any, **hypers: Any) -> Any:
    """Return the parameter after a step for each gradient."""
    runner, param = interpreter(text, hypers), np.array(p, dtype=np.float64)
    for g in grads:
        runner.step([param], [np.array(g, dtype=np.float64)])
    return param


def value(expression: str, g: Any, head: str = "", **hypers: Any) -> Any:
    """Return an expression's value at the first step, for p = 0 and a gradient."""
    return after(f"optimizer X\n{head}\np = {expression}\n", np.zeros_like(np.asarray(g, dtype=float)), g, **hypers)


def test_momentum_from_one_line() -> None:
    result = after("v = beta*v + g; p -= lr*v", [1.0], [2.0], [4.0], lr=0.5, beta=0.25)
    assert result == 1 - 0.5 * 2 - 0.5 * (0.25 * 2 + 4)


def test_order_is_textual() -> None:
    # The step uses last step's m, which is 0 at first.
    result = after("optimizer X\nstate m\np -= m; m = g", [0.0], [3.0], [5.0])
    assert result == -3


def test_adam_as_numpy_writes_it() -> None:
    text = (
        "optimizer X\nhyper lr = 0.1, betas = (b1 = 0.9, b2 = 0.99), eps = 1e-8\nstate m, v\n"
        "m = lerp(m, g, 1 - b1); v = b2*v + (1 - b2)*g^2\n"
        "p -= lr*debias(m, b1)/(sqrt(debias(v, b2)) + eps)\n"
    )
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((5, 3, 2))
    p, m, v = np.ones((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    np.testing.assert_allclose(after(text, np.ones((3, 2)), *grads), p, rtol=1e-14)


def test_tuples_are_set_by_key_and_parts_by_name() -> None:
    text = "optimizer X\nhyper betas = (a = 1, b = 2)\np = a + 10*b + 0*g"
    assert after(text, [0.0], [0.0], betas=(3, 4)) == 43
    assert after(text, [0.0], [0.0], b=7) == 71


def test_device_conditions_select_element_by_element() -> None:
    text = "optimizer X\nif g > 0: p = 1\nelif g < -2: p = 2\nelse: p = 3"
    np.testing.assert_array_equal(after(text, [0.0, 0, 0], [5.0, -5, -1]), [1, 2, 3])
    np.testing.assert_array_equal(value("g if g > 0 else -g", [1.0, -2]), [1, 2])
    np.testing.assert_array_equal(value("where(not g > 0 or g > 4, 7, g)", [1.0, -2, 5]), [1, 7, 7])


def test_a_scalar_condition_chooses_for_the_whole_tensor() -> None:
    np.testing.assert_array_equal(value("g if norm(g) > 4 else 0", [3.0, 4]), [3, 4])
    np.testing.assert_array_equal(value("g if norm(g) > 6 else 0", [3.0, 4]), [0, 0])


def test_a_host_condition_looks_at_one_side_only() -> None:
    # The other side would be infinite.
    assert value("g if t == 1 else g/(t - 1)", [2.0]) == 2


def test_nan_takes_the_else_side_and_is_not_hidden() -> None:
    nan = math.nan
    assert value("where(g > 0, 1, 2)", [nan]) == 2
    for expression in ("sign(g)", "max(g, 0)", "min(0, g)", "clamp(g, -1, 1)", "abs(g)"):
        assert math.isnan(value(expression, [nan])[0]), expression
    assert value("nan_to_num(g)", [nan]) == 0
    assert value("isfinite(g) + 0", [nan]) == 0


def test_conditions_count_as_zero_and_one() -> None:
    np.testing.assert_array_equal(value("g*(g > 0)", [2.0, -2]), [2, 0])
    assert (value("mean(g > 0)", [1.0, 2, 3, -1]) == 0.75).all()
    np.testing.assert_array_equal(value("(g > 0) + (g > 1)", [2.0, 0.5]), [2, 1])
    np.testing.assert_array_equal(value("0 < g < 2", [1.0, 3, -1]), [1, 0, 0])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2^3^2*g", 512.0),
        ("-2^2*g", -4.0),
        ("7 % 3*g", 1.0),
        ("-7 % 3 + 0*g", 2.0),
        ("g/0", math.inf),
        ("(-8)^(1/3)*g", math.nan),
        ("round(2.5)*g", 2.0),
        ("rsqrt(4)*g", 0.5),
        ("erf(0.5)*g", math.erf(0.5)),
        ("sigmoid(g)", 1 / (1 + math.exp(-1))),
        ("eps_of(p)*g", 2.0**-52),
        ("bf16(g*1.00390625)", 1.0),
        ("f32(g/3)", float(np.float32(1 / 3))),
        ("soft_threshold(3*g, 1)", 2.0),
        ("cosine(4, 0.5)*g", 1.0),
        ("warmup(4)*g", 0.25),
        ("numel*g + 10*ndim + 100*cols + 1000*rows", 1111.0),
    ],
)
def test_functions_and_operators(expression: str, expected: float) -> None:
    np.testing.assert_array_equal(value(expression, [1.0]), [expected])


def test_reductions_keep_their_dimensions() -> None:
    g = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(value("g - mean(g, dim=-1)", g), g - g.mean(-1, keepdims=True))
    np.testing.assert_array_equal(value("g/norm(g, dim=0)", g), g / np.sqrt((g**2).sum(0, keepdims=True)))
    np.testing.assert_array_equal(value("g*max(g, dim=(-1, -2))", g), g * 5)
    np.testing.assert_allclose(value("0*g + std(g) + var(g) + dot(g, g)", g), g.std() + g.var() + 55)
    np.testing.assert_array_equal(value("0*g + min(g) + max(g) + sum(g)", g), np.full((2, 3), 20.0))


def test_states_start_from_raw_values_and_exist_when_asked() -> None:
    text = (
        "optimizer X\nhyper flag = false\nstate z = p, a = g\nstate k when flag\nstate r = mean(g, dim=-1)\n"
        "state c: scalar = 2\n"
        "g = 0*g; p = 5; c *= 3\nif flag: k += 1\nz = z + a; r += 1"
    )
    runner = interpreter(text, {"flag": False})
    param = np.array([[1.0, 2.0]])
    runner.step([param], [np.array([[10.0, 20.0]])])
    assert "k" not in runner.state[0]
    np.testing.assert_array_equal(runner.state[0]["z"], [[11, 22]])
    np.testing.assert_array_equal(runner.state[0]["r"], [[16]])
    assert runner.state[0]["c"] == 6
    runner.set(flag=True)
    runner.step([param], [np.array([[1.0, 1.0]])])
    np.testing.assert_array_equal(runner.state[0]["k"], [[1, 1]])


def test_functions_see_time_and_return_several_results() -> None:
    text = (
        "optimizer X\nhyper h = 2\n"
        "def f(x, y = 3) = x*y*h + t\n"
        "def both(x):\n    if t > 1: return x, -x\n    z = 2*x\n    return z, x\n"
        "a, b = both(g)\np = f(a, y = 1) + 100*f(b)\n"
    )
    assert after(text, [0.0], [1.0]) == (2 * 2 + 1) + 100 * (1 * 3 * 2 + 1)
    assert after(text, [0.0], [1.0], [1.0]) == (1 * 2 + 2) + 100 * (-1 * 3 * 2 + 2)


def test_absent_gradients_and_counts() -> None:
    runner = interpreter("optimizer X\np = t + 10*group.t + 0*g")
    a, b, g = np.zeros(1), np.zeros(1), np.ones(1)
    runner.step([a, b], [g, None])
    runner.step([a, b], [g, g])
    assert (a[0], b[0]) == (2 + 20, 1 + 20)


def test_group_state_moves_once_a_step_whatever_the_tensors() -> None:
    text = "optimizer X\nhyper lr = 1\ngroup state w = 0\np -= w\nw += lr*t\np -= 10*w*g"
    runner = interpreter(text)
    a, b, g = np.zeros(1), np.zeros(1), np.ones(1)
    runner.step([a, b], [g, None])  # w: 0 -> 1
    runner.step([a, b], [g, g])  # w: 1 -> 3
    assert a[0] == -(0 + 10) - (1 + 30)
    assert b[0] == -(1 + 30)
    runner.step([a, b], [None, None])
    assert runner.group_state["w"] == 3  # a group without gradients makes no step


def test_keys_of_the_users_own() -> None:
    runner = interpreter("optimizer X\np -= group.scale*g", group={"scale": 4.0})
    p = np.zeros(1)
    runner.step([p], [np.ones(1)])
    assert p[0] == -4


def test_none_and_strings() -> None:
    text = 'optimizer X\nhyper a = none, mode = "x" in {"x", "y"}\np = (a ?? 3)*g\nif mode == "y": p = -p'
    assert after(text, [0.0], [1.0]) == 3
    assert after(text, [0.0], [1.0], a=5, mode="y") == -5


def test_assigning_to_p_is_a_rounding_point_not_algebra() -> None:
    text = "optimizer X\nstate c\nd = g + c\nq = p\np += d\nc = d - (p - q)"
    p = after(text, [1e16], *[[1.0]] * 4)
    assert p == 1e16 + 4
