"""The oracle itself, against numbers worked out by hand or by a few lines of numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from interpreter import Interpreter, routed, step_all
from interpreter_values import apply, spread

from optlang.checker.check import check_text
from optlang.diagnostics import render_all
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


# Matrices ----------------------------------------------------------------------------------------------------

G = np.random.default_rng(7).standard_normal((4, 3))
SQUARE = G.T @ G + np.eye(3)
V = np.array([3.0, -1.0, 2.0, 0.5])


def sliced(expression: str, g: Any) -> Any:
    """Return a value of any shape: as a state that starts so."""
    square = " and rows == cols" if np.ndim(g) == 2 and g.shape[0] == g.shape[1] else ""
    require = f"require ndim == {np.ndim(g)}{square}"
    runner = interpreter(f"optimizer X\n{require}\nstate s = {expression}\ns += 0\np -= 0*g\n")
    runner.step([np.zeros_like(g)], [np.array(g)])
    return runner.state[0]["s"]


def eigenvalues(x: Any) -> Any:
    return np.linalg.eigh(x)[0]


@pytest.mark.parametrize(
    ("expression", "g", "expected"),
    [
        ("g @ g.T", G, G @ G.T),
        ("g.T @ g @ g.T", G, G.T @ G @ G.T),
        ("g @ g[0, :]", G, G @ G[0]),
        ("g[:, 1] @ g", G, G[:, 1] @ G),
        ("matrix(g)", np.arange(24.0).reshape(2, 3, 4), np.arange(24.0).reshape(2, 12)),
        ("matrix(g)", V, V[:, None]),
        ("g[1:3, :2]", G, G[1:3, :2]),
        ("g[:, 1:]", G, G[:, 1:]),
        ("g[: min(rows, cols) - 1]", G, G[:2]),
        ("g[0:2]", G, G[0:2]),
        ("g[-1]", G, G[-1]),
        ("g[2, :]", G, G[2]),
        ("g[1, 2]", G, G[1, 2]),
        ("g[argsort(g[:, 0]), :][:, argsort(-g[0])]", G, G[np.argsort(G[:, 0])][:, np.argsort(-G[0])]),
        # Each order works along its own dimension.
        ("g[argsort(g[:, 0]), argsort(-g[0])]", G, G[np.ix_(np.argsort(G[:, 0]), np.argsort(-G[0]))]),
        ("zeros(cols, 2) + 0*g[0, 0]", G, np.zeros((3, 2))),
        ("ones(rows)*g[0, 0]", G, np.full(4, G[0, 0])),
        ("eye(rows)*g[0, 0]", G, np.eye(4) * G[0, 0]),
        ("diag(g)", V, np.diag(V)),
        ("diag(g)", G, np.diagonal(G)),
        ("trace(g)*eye(3)", SQUARE, np.trace(SQUARE) * np.eye(3)),
        ("outer(g, 2*g)", V, 2 * V[:, None] * V[None, :]),
        ("flip(g)", V, V[::-1]),
        ("flip(g, 0)", G, G[::-1]),
        ("flip(g, dim=1)", G, G[:, ::-1]),
        ("inv(g)", SQUARE, np.linalg.inv(SQUARE)),
        ("solve(g, g[0])", SQUARE, np.linalg.solve(SQUARE, SQUARE[0])),
        ("cholesky(g) @ cholesky(g).T", SQUARE, SQUARE),
        ("eigh(g)[0]", SQUARE, eigenvalues(SQUARE)),
        ("eigh(g).vectors @ diag(eigh(g).values) @ eigh(g)[1].T", SQUARE, SQUARE),
        ("svd(g).S", G, np.sqrt(eigenvalues(G.T @ G)[::-1])),
        ("svd(g)[0] @ diag(svd(g)[1]) @ svd(g)[2]", G, G),
        ("qr(g) @ qr(g).R", G, G),
        ("qr(g).T @ qr(g)[0]", G, np.eye(3)),
        ("sort(g)", V, [-1, 0.5, 2, 3]),
        ("sort(g).order", V, [1, 3, 2, 0]),
        ("sort(g)[0]", G, np.sort(G, axis=1)),
        ("argsort(g)", V, [1, 3, 2, 0]),
        ("sort(g, 0)", G, np.sort(G, axis=0)),
        ("sort(g, dim=0).order", G, np.argsort(G, axis=0)),
        ("argsort(g, -2)", G, np.argsort(G, axis=0)),
        ("flatten(g)", G, G.ravel()),
        ("flatten(g[0, :])", G, G[0]),
        ("cumsum(g)", V, [3, 2, 4, 4.5]),
        ("cumsum(g, 0)", G, np.cumsum(G, axis=0)),
        ("cumsum(flip(sort(flatten(g))))", G, np.cumsum(np.sort(G.ravel())[::-1])),
        ("project_simplex(g)", V, [1, 0, 0, 0]),
        ("project_simplex(g, 4)", V, [2.5, 0, 1.5, 0]),
        ("project_l1_ball(g, dim=0, radius=4)", V, [7 / 3, -1 / 3, 4 / 3, 0]),
        ("prox_nuclear(g, 100)", G, 0 * G),
        ("topk(g, 2)", V, [3, 2]),
        ("topk(g, k=2).places", V, [0, 2]),
        ("inv_root(g, 1)", SQUARE, np.linalg.inv(SQUARE)),
        ("inv_root(g, 2) @ g @ inv_root(g, 2)", SQUARE, np.eye(3)),
        ("project_orthogonal(g).T @ project_orthogonal(g)", G, np.eye(3)),
        ("mean(g @ g.T, dim=0)", G, (G @ G.T).mean(0, keepdims=True)),
        ("norm(g @ g.T)*eye(2)", G, np.linalg.norm(G @ G.T) * np.eye(2)),
        ("bf16(g @ g.T*0 + 1.00390625)", G, np.ones((4, 4))),
        ("rows(g @ g.T)*eye(1)", G, [[4]]),
        ("(rows(g.T) + 10*cols(g.T))*eye(1)", G, [[43]]),
        ("(rows(g[0]) + 10*cols(g[0]))*eye(1)", G, [[31]]),
    ],
)
def test_matrices(expression: str, g: Any, expected: Any) -> None:
    result = sliced(expression, g)
    if np.ndim(expected):
        assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_several_results() -> None:
    text = (
        "optimizer X\nrequire ndim == 2\nstate w = zeros(2), order = zeros(2)\n"
        "U, S, Vh = svd(g)\np = U @ diag(S^3) @ Vh\nw, order = topk(S, 2)"
    )
    runner, p = interpreter(text), np.zeros_like(G)
    runner.step([p], [G])
    np.testing.assert_allclose(p, G @ G.T @ G, rtol=1e-12)
    np.testing.assert_allclose(runner.state[0]["w"], np.linalg.svd(G)[1][:2])
    np.testing.assert_array_equal(runner.state[0]["order"], [0, 1])


def test_results_of_the_rules_own_functions() -> None:
    text = "optimizer X\ndef f(x):\n    a = x @ x.T\n    return a @ x, trace(a)\np = f(g)[0]*f(g)[1]"
    np.testing.assert_allclose(after(text, 0 * G, G), G @ G.T @ G * np.sum(G * G), rtol=1e-12)


@pytest.mark.parametrize("g", [G, G.T])
def test_newton_schulz(g: Any) -> None:
    x = g if g.shape[0] <= g.shape[1] else g.T
    x = x / np.linalg.norm(x)
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    expected = x if x.shape == g.shape else x.T
    np.testing.assert_allclose(value("newton_schulz(g, steps=3)", g), expected, rtol=1e-12)
    own = (
        "optimizer X\ndef f(x, n = 3):\n    y = x.T if rows(x) > cols(x) else x\n    y /= norm(y)\n    repeat n:\n"
        "        a = y @ y.T\n        y = 3.4445*y + (-4.775*a + 2.0315*a @ a) @ y\n"
        "    if rows(x) > cols(x): return y.T\n    return y\np = f(g)"
    )
    np.testing.assert_allclose(after(own, 0 * g, g), expected, rtol=1e-12)


def test_a_flattened_parameter_takes_its_shape_back() -> None:
    g = np.random.default_rng(3).standard_normal((2, 3, 4))
    m = g.reshape(2, 12)
    text = (
        "optimizer X\nrequire ndim >= 1\nstate s\nstate k = matrix(p)\n"
        "u = matrix(g) @ matrix(g).T @ matrix(g)\ns = u\nk = k + u\np = g + u"
    )
    runner, p = interpreter(text), np.ones_like(g)
    runner.step([p], [g])
    u = m @ m.T @ m
    np.testing.assert_allclose(p, g + u.reshape(g.shape), rtol=1e-12)
    np.testing.assert_allclose(runner.state[0]["s"], u.reshape(g.shape), rtol=1e-12)
    np.testing.assert_allclose(runner.state[0]["k"], 1 + u, rtol=1e-12)  # a state that is a matrix stays one


def test_what_numpy_would_let_meet_does_not() -> None:
    with pytest.raises(ValueError, match="do not meet"):
        apply(np.add, np.ones(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        spread(np.ones(3), (2, 3), (2, 3))
    with pytest.raises(ValueError, match="do not meet"):  # flattened, but the other is not shaped like p
        apply(np.add, np.ones((2, 12)), np.ones((2, 1, 4)), shape=(2, 3, 4))
    assert apply(np.add, np.ones((1, 3)), np.ones((2, 1))).shape == (2, 3)


def test_states_of_any_shape_start_from_what_is_known_before_the_step() -> None:
    text = """optimizer X
hyper rank = 2
require ndim == 2
state P = zeros(r, cols) if tall else zeros(rows, r)
state m when wide
state S = 0.5*eye(rows)
r = min(rank, rows, cols)
tall = rows >= cols
wide = not tall
P = P + g[:r, :] if tall else P + g[:, :r]
if wide: m += g
S = S + g @ g.T
p -= S @ g
"""
    runner = interpreter(text)
    a, b = np.zeros((4, 3)), np.zeros((3, 4))
    runner.step([a, b], [G, G.T])
    first, second = runner.state
    np.testing.assert_array_equal(first["P"], G[:2, :])
    np.testing.assert_array_equal(second["P"], G.T[:, :2])
    assert "m" not in first
    np.testing.assert_array_equal(second["m"], G.T)
    np.testing.assert_allclose(first["S"], 0.5 * np.eye(4) + G @ G.T)
    np.testing.assert_allclose(b, -(0.5 * np.eye(3) + G.T @ G) @ G.T)


def test_a_state_keeps_its_shape_though_it_may_be_spread() -> None:
    # With rank 1 the basis has one row, like a reduced value, and must not grow to the shape of p.
    text = """optimizer X
hyper rank = 1
require ndim == 2
r = min(rank, rows)
state P = zeros(r, cols)
P = g[:r, :]
p = g @ P.T @ P
"""
    np.testing.assert_allclose(after(text, 0 * G, G), G @ np.outer(G[0], G[0]))


def test_shampoo() -> None:
    text = """optimizer X
hyper lr = 0.1, k = 2
require ndim == 2
state L = 1e-3*eye(rows), R = 1e-3*eye(cols)
state Li = zeros(rows, rows), Ri = zeros(cols, cols)
L += g @ g.T
R += g.T @ g
every k:
    Li = inv_root(L, 4)
    Ri = inv_root(R, 4)
p -= lr * Li @ g @ Ri
"""

    def root(x: Any) -> Any:
        w, q = np.linalg.eigh(x)
        return q @ np.diag(w**-0.25) @ q.T

    grads = np.random.default_rng(5).standard_normal((4, 4, 3))
    p, left, right = np.ones((4, 3)), 1e-3 * np.eye(4), 1e-3 * np.eye(3)
    first, second = np.zeros((4, 4)), np.zeros((3, 3))
    for t, g in enumerate(grads, 1):
        left, right = left + g @ g.T, right + g.T @ g
        if t % 2 == 0:
            first, second = root(left), root(right)
        p = p - 0.1 * first @ g @ second
    np.testing.assert_allclose(after(text, np.ones((4, 3)), *grads), p, rtol=1e-9)


# Loops and time ----------------------------------------------------------------------------------------------


def test_repeat() -> None:
    text = "optimizer X\nhyper n = 3\nx = g\nrepeat n:\n    y = 2*x\n    repeat 2: x = y + x\np = x"
    assert after(text, [0.0], [1.0]) == 5**3
    assert after(text, [0.0], [1.0], n=0) == 1


def test_for_goes_through_a_tuple() -> None:
    text = "optimizer X\nhyper betas = (b1 = 2, b2 = 3, b3 = 5)\nx = g\nfor b in betas:\n    x = 10*x + b\np = x"
    assert after(text, [0.0], [1.0]) == 1235
    assert after(text, [0.0], [1.0], betas=(1, 1, 2)) == 1112


@pytest.mark.parametrize(
    ("when", "due"),
    [
        ("3", [3, 6, 9]),
        ("k", [2, 4, 6, 8, 10]),
        ("3 from 1", [1, 4, 7, 10]),
        ("3 from k", [2, 5, 8]),
        ("2 from 5", [5, 7, 9]),
        ("4 or first", [1, 4, 8]),
        ("4 from 3 or first", [1, 3, 7]),
        ("0", []),
        ("-k", []),
        ("0 or first", [1]),
    ],
)
def test_every(when: str, due: list[int]) -> None:
    text = f"optimizer X\nhyper k = 2\nstate n: scalar\nevery {when}:\n    n += t\n    p += g*0.5^t\np += 0*k"
    runner, p = interpreter(text), np.zeros(1)
    for _ in range(10):
        runner.step([p], [np.ones(1)])
    assert p[0] == sum(0.5**t for t in due)
    assert runner.state[0]["n"] == sum(due)


def test_what_a_group_keeps_follows_the_groups_own_time() -> None:
    text = "optimizer X\ngroup state w = 1\nevery 2: w *= 3\np += 100*w*g\nrepeat 2: w += 1\np += w*g"
    runner, a, b, g = interpreter(text), np.zeros(1), np.zeros(1), np.ones(1)
    runner.step([a, b], [g, None])  # w = 3
    runner.step([a, b], [None, g])  # w = 11: the group's second step, though b's first
    assert (a[0], b[0], runner.group_state["w"]) == (103, 911, 11)


# The whole model ---------------------------------------------------------------------------------------------


def test_what_a_group_keeps_is_found_without_looking_at_matrices() -> None:
    text = """optimizer X
hyper k = 2
require ndim == 2
group state w = 0
def turned(x):
    y = x.T if rows(x) > cols(x) else x
    U, S, Vh = svd(y)
    if trace(U) > 100: return U, S
    return U[:, argsort(S)[:1]], sort(S)
u, s = turned(g)
x = newton_schulz(g)[:k, :] @ zeros(cols, 1)
repeat min(rows, 2): s *= 2
every k from 1: w += 1
p = w*(g + mean(u) - mean(u)) + sum(x) + 0*mean(s)
w += 10*t
"""
    runner, p = interpreter(text), 0 * G
    runner.step([p], [G])
    np.testing.assert_allclose(p, G)
    assert runner.group_state["w"] == 11


def test_total_is_one_number_over_all_tensors_with_a_gradient() -> None:
    runner = interpreter("optimizer X\np = total(g) + 100*total(ndim + 0*mean(g)) + 0*g")
    tensors = [np.zeros(2), np.zeros((1, 3)), np.zeros(1)]
    runner.step(tensors, [np.array([1.0, 2.0]), np.ones((1, 3)), None])
    assert [x.flat[0] for x in tensors] == [306, 306, 0]


def test_a_total_may_rest_on_another() -> None:
    text = """optimizer X
hyper clip = 1
def scaled(x) = x/total(abs(x))
if gnorm(g) > clip: g = g*clip/gnorm(g)
repeat 2: g = scaled(g) + g
p = g
"""
    a, b = np.array([3.0]), np.array([0.0, -4.0])
    x, y = np.zeros(1), np.zeros(2)
    interpreter(text).step([x, y], [a, b])
    whole = np.concatenate([a, b]) / 5
    for _ in range(2):
        whole = whole / np.abs(whole).sum() + whole
    np.testing.assert_allclose(np.concatenate([x, y]), whole)
    x = np.zeros(1)
    interpreter(text, {"clip": 9}).step([x], [a])
    np.testing.assert_allclose(x, 3 + 1 + 1)  # not clipped


def test_a_total_is_over_the_tensors_that_reach_it() -> None:
    text = """optimizer X
a = total(g) if t > 1 or total(10*g) > 0 else total(100*g)
if ndim > 1: b = total(1000*g)
else: b = 0
p = a + b + 0*g
"""
    runner = interpreter(text)
    old, new, matrix, g = np.zeros(1), np.zeros(1), np.zeros((1, 1)), np.ones(1)
    runner.step([old], [g])
    assert old[0] == 1  # the condition holds
    runner.step([old, new, matrix], [g, g, np.ones((1, 1))])
    # `old` does not look at the condition's sum, the others do; then all three come to the first.
    assert (old[0], new[0], matrix[0, 0]) == (3, 3, 1003)


@pytest.mark.parametrize("body", ["repeat 2: x = f(x)", "x = f(f(x))", "x = f(x)\nx = f(x)"])
def test_totals_keep_their_order_in_loops_and_functions(body: str) -> None:
    text = f"""optimizer X
def f(x):
    a = total(x)
    if t > 1: a += total(2*x)
    return a*x
x = g
{body}
p = x
"""
    runner, old, new = interpreter(text), np.zeros(1), np.zeros(1)
    runner.step([old], [np.array([1.0])])
    runner.step([old, new], [np.array([2.0]), np.array([3.0])])
    x, y = 2.0, 3.0
    for _ in range(2):
        x, y = x * (x + y + 2 * x), y * (x + y)
    assert (old[0], new[0]) == (x, y)


def test_a_total_that_no_tensor_reaches_is_zero() -> None:
    runner = interpreter("optimizer X\nshared state w = 5\nevery 2: w = 1 + total(g)\np += w*g")
    a, b, g = np.zeros(1), np.zeros(1), np.ones(1)
    runner.step([a, b], [g, None])
    runner.step([a, b], [None, g])  # the optimizer's second step, but the first of this tensor
    assert (a[0], b[0]) == (5, 1)


PRODIGY = """optimizer X
hyper lr = 1, beta = 0.25, d0 = 0.5
state s
state p0 = p
shared state d = d0
shared state num = 0
k = d*lr
num = beta*num + k*total(g*(p0 - p))
s = beta*s + k*g
old = d
d = max(d, num/total(abs(s)))
p -= k*g + (d - old)
"""


def prodigy(params: list[Any], history: list[list[Any]], lr: float) -> tuple[list[Any], float]:
    """Return where the rule above takes some parameters, and its `d`."""
    start, s, d, num = params, [0 * p for p in params], 0.5, 0.0
    for grads in history:
        k = d * lr
        num = 0.25 * num + k * sum(float((g * (a - p)).sum()) for g, a, p in zip(grads, start, params, strict=True))
        s = [0.25 * x + k * g for x, g in zip(s, grads, strict=True)]
        new = max(d, num / sum(float(np.abs(x).sum()) for x in s))
        params, d = [p - k * g - (new - d) for p, g in zip(params, grads, strict=True)], new
    return params, d


def history_of(steps: int) -> list[list[Any]]:
    rng = np.random.default_rng(11)
    return [[1 + rng.standard_normal(3), 1 + rng.standard_normal((2, 2))] for _ in range(steps)]


def test_shared_state_is_old_before_its_assignment_and_new_after() -> None:
    history = history_of(5)
    expected, d = prodigy([np.ones(3), np.ones((2, 2))], history, lr=0.5)
    assert d > 0.5, "it must have grown"
    runner, params = interpreter(PRODIGY, {"lr": 0.5}), [np.ones(3), np.ones((2, 2))]
    for grads in history:
        runner.step(params, grads)
    for mine, theirs in zip(params, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert runner.shared_state["d"] == pytest.approx(d, rel=1e-12)


def test_groups_share_totals_and_shared_states() -> None:
    history = history_of(5)
    (a, b), d = prodigy([np.ones(3), np.ones((2, 2))], history, lr=0.5)
    rule = interpreter(PRODIGY).rule
    one, two = Interpreter(rule, {"lr": 0.5}), Interpreter(rule, {"lr": 0.5, "d0": 77})  # the first one's d0 counts
    x, y = np.ones(3), np.ones((2, 2))
    for first, second in history:
        step_all([one, two], [[x], [y]], [[first], [second]])
    np.testing.assert_allclose(x, a, rtol=1e-12)
    np.testing.assert_allclose(y, b, rtol=1e-12)
    assert two.shared_state["d"] == one.shared_state["d"] == pytest.approx(d, rel=1e-12)


def test_shared_states_have_the_first_groups_time() -> None:
    rule = interpreter("optimizer X\nhyper h = 1\nshared state w = 0\nw += h*t\np += w*g + 1000*group.t").rule
    one, two = Interpreter(rule, {"h": 10}), Interpreter(rule)
    x, y, g = np.zeros(1), np.zeros(1), np.ones(1)
    step_all([one, two], [[x], [y]], [[g], [None]])
    step_all([one, two], [[x], [y]], [[g], [g]])
    assert (x[0], y[0]) == (10 + 1000 + 30 + 2000, 30 + 1000)
    step_all([one, two], [[x], [y]], [[None], [None]])
    assert one.shared_state["w"] == 30


def test_rules_side_by_side_have_nothing_in_common() -> None:
    rules = [interpreter(f"optimizer X\nshared state w = 0\nw += {k}*total(g)\np = w + 0*g").rule for k in (2, 3)]
    one, two, three = Interpreter(rules[0]), Interpreter(rules[1]), Interpreter(rules[0])
    x, y, z, g = np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1)
    step_all([one, two, three], [[x], [y], [z]], [[g], [g], [g]])
    assert (x[0], y[0], z[0]) == (4, 3, 4)


# Events, chance, routes --------------------------------------------------------------------------------------


def test_eval_and_train() -> None:
    text = (
        "optimizer X\nhyper h = 2\nstate z = p\n"
        "on eval:\n    q = p\n    p = h*z\n    z = q\n"
        "on train:\n    q = p\n    p = z\n    z = q/h\n"
        "p -= g; z += g"
    )
    runner, a, b = interpreter(text), np.ones(1), np.ones(1)
    runner.eval()
    runner.train()
    runner.step([a, b], [np.array([3.0]), None])
    runner.train()
    assert (a[0], runner.state[0]["z"][0]) == (-2, 4)
    for _ in range(2):
        runner.eval()
        assert (a[0], runner.state[0]["z"][0], b[0]) == (8, -2, 1)  # b has never been updated
    for _ in range(2):
        runner.train()
        assert (a[0], runner.state[0]["z"][0]) == (-2, 4)


def test_every_call_draws_afresh_and_once_a_step() -> None:
    asked: list[tuple[Any, ...]] = []

    def draw(*call: Any) -> Any:
        asked.append(call)
        return np.full(call[1], len(asked), dtype=float)

    text = (
        "optimizer X\na = randn()\nb = rand(cols, 2)\ns = total(a*g)\nc = randn()\np = a + 10*c + 100*s + mean(b) + 0*g"
    )
    runner, x, y = interpreter(text, draw=draw), np.zeros(3), np.zeros((1, 2))
    runner.step([x, y], [np.ones(3), None])
    runner.step([x, y], [None, np.ones((1, 2))])
    assert asked == [
        ("randn", (3,), 0, 0, 1),
        ("rand", (3, 2), 1, 0, 1),
        ("randn", (3,), 2, 0, 1),
        ("randn", (1, 2), 0, 1, 1),
        ("rand", (2, 2), 1, 1, 1),
        ("randn", (1, 2), 2, 1, 1),
    ]
    # The sum is found in a second run, which must see the numbers of the first.
    assert x[0] == 1 + 30 + 100 * 3 * 1 + 2
    assert y[0, 0] == 4 + 60 + 100 * 2 * 4 + 5


def test_what_is_made_of_uniform_numbers() -> None:
    uniform = np.array([0.1, 0.3, 0.5, 0.7])

    def drawn(expression: str) -> Any:
        runner, p = interpreter(f"optimizer X\np = {expression} + 0*g", draw=lambda *_: uniform), np.zeros(4)
        runner.step([p], [np.ones(4)])
        return p

    np.testing.assert_array_equal(drawn("rademacher()"), [-1, -1, 1, 1])
    np.testing.assert_array_equal(drawn("bernoulli(0.5)"), [1, 1, 0, 0])
    np.testing.assert_array_equal(drawn("bernoulli(0.9*g)"), [1, 1, 1, 1])


def test_numbers_are_drawn_without_being_given() -> None:
    runner, p = interpreter("optimizer X\np = randn() + 0*g"), np.zeros(10_000)
    runner.step([p], [p])
    first = p.copy()
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1
    runner.step([p], [p])
    assert not np.any(p == first)


def test_routes() -> None:
    rule = interpreter("optimizer X\nroute Lion when ndim >= 2 and not group.adam\nroute AdamW otherwise").rule
    assert [routed(rule, shape) for shape in ((2, 3), (3,), ())] == ["Lion", "AdamW", "AdamW"]
    assert routed(rule, (2, 3), {"adam": True}) == "AdamW"
    rule = interpreter("optimizer X\nroute Lion when cols > 2").rule
    with pytest.raises(ValueError, match="no route"):
        routed(rule, (2,))


def test_requirements_on_tensors() -> None:
    runner = interpreter('optimizer X\nrequire ndim >= 2 "matrices only"\np -= g')
    runner.step([np.zeros((1, 1))], [np.ones((1, 1))])
    with pytest.raises(ValueError, match="matrices only"):
        runner.step([np.zeros((1, 1)), np.zeros(1)], [np.ones((1, 1)), None])
