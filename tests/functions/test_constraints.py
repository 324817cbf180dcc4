"""Projections and proximal maps, each by what proves it right: feasible, and no other point is nearer.

A point y of a convex set is the projection of x if, and only if, <x - y, z> is largest at z = y among all z of the
set; that largest value, the support function of the set, has a formula. A point y is what the proximal map of a norm, k
times, makes of x if, and only if, the dual norm of x - y is at most k and <x - y, y> is k times the norm of y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import Interpreter
from trajectories import checked, library_class

import optlang

Array = np.ndarray
Proof = Callable[[Array, Array], tuple[float, float]]

SHAPES = ((), (1,), (7,), (4, 5), (3, 2, 1, 4))
WHOLE = {
    "project_simplex(q)": (),
    "project_simplex(q, 2.5)": (),
    "project_l1_ball(q)": (),
    "project_l1_ball(q, radius = 3)": (),
    "project_l2_ball(q, 2)": (),
    "project_unit_norm(q)": (),
    "project_box(q, -0.5, 1)": (),
    "project_nonnegative(q)": (),
    "prox_group_lasso(q, 0.7)": (),
    "prox_elastic_net(q, 0.7, 0.3)": (),
    "prox_l0(q, 0.7)": (),
    "soft_threshold(q, 0.7)": (),
}
ALONG = {
    "project_simplex(q, 2.5, dim=-1)": (-1,),
    "project_simplex(q, dim=0)": (0,),
    "project_l1_ball(q, 1.5, dim=1)": (1,),
    "project_l2_ball(q, dim=-1)": (-1,),
    "project_unit_norm(q, -2)": (-2,),
    "prox_group_lasso(q, 0.7, dim=-1)": (-1,),
    "prox_group_lasso(q, 0.7, dim=(0, 1))": (0, 1),
}
#: Those for which a step is more than one pass over the elements.
SORTING = ("project_simplex", "project_l1_ball", "project_orthogonal", "prox_nuclear")
OF_MATRICES = ("project_orthogonal(q)", "prox_nuclear(q, 0.7)")


def image(expression: str, x: Array, dtype: torch.dtype = torch.float64, backend: str = "eager") -> Array:
    """Return what a rule makes of a parameter by a function of ``q``, a step of no length from it."""
    cls: Any = optlang.compile(text(expression, x.ndim), backend=backend)
    p = torch.nn.Parameter(torch.tensor(x, dtype=dtype))
    p.grad = torch.zeros_like(p)
    cls([p]).step()
    assert p.dtype == dtype
    return np.asarray(p.detach().double().numpy())


def interpreted(expression: str, x: Array) -> Array:
    """Return the same of the interpreter."""
    p = np.array(x)
    Interpreter(checked(text(expression, x.ndim))).step([p], [np.zeros_like(p)])
    return p


def text(expression: str, ndim: int) -> str:
    """Return the rule."""
    return f"optimizer X\nrequire ndim == {ndim}\nq = p - g\np = {expression}\n"


def values(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Return random values, some of them equal."""
    x = np.random.default_rng(seed).normal(scale=2.0, size=shape)
    return np.asarray(np.where(np.abs(x) < 0.3, 0.3, x))


# Proofs: how far y is from feasible, and how far from optimal -------------------------------------------------------


def simplex(total: float) -> Proof:
    return lambda x, y: (
        max(abs(y.sum() - total), -y.min()),
        total * (x - y).max() - ((x - y) * y).sum(),
    )


def l1_ball(radius: float) -> Proof:
    return lambda x, y: (
        max(np.abs(y).sum() - radius, 0.0),
        radius * np.abs(x - y).max() - ((x - y) * y).sum(),
    )


def l2_ball(radius: float) -> Proof:
    return lambda x, y: (
        max(np.linalg.norm(y) - radius, 0.0),
        radius * np.linalg.norm(x - y) - ((x - y) * y).sum(),
    )


def box(low: float, high: float) -> Proof:
    return lambda x, y: (
        max(y.max() - high, low - y.min(), 0.0),
        np.maximum((x - y) * low, (x - y) * high).sum() - ((x - y) * y).sum(),
    )


def nonnegative(x: Array, y: Array) -> tuple[float, float]:
    return max(-y.min(), (x - y).max()), ((x - y) * y).sum()


def unit_norm(x: Array, y: Array) -> tuple[float, float]:
    # No point of the sphere is nearer than its radius is to the norm.
    return abs(np.linalg.norm(y) - 1), np.linalg.norm(x - y) - abs(np.linalg.norm(x) - 1)


def orthogonal(x: Array, y: Array) -> tuple[float, float]:
    gram = y @ y.T if len(y) <= len(y.T) else y.T @ y
    nearest = np.linalg.norm(np.linalg.svd(x, compute_uv=False) - 1)
    return np.abs(gram - np.eye(len(gram))).max(), np.linalg.norm(x - y) - nearest


def of_norm(k: float, norm: Callable[[Array], float], dual: Callable[[Array], float], l2: float = 0.0) -> Proof:
    return lambda x, y: (
        max(dual(x - y - l2 * y) - k, 0.0),
        k * norm(y) - ((x - y - l2 * y) * y).sum(),
    )


def l0(k: float) -> Proof:
    def cost(x: Array, y: Array) -> Array:
        return np.asarray(k * (y != 0) + (x - y) ** 2 / 2)

    return lambda x, y: (0.0, (cost(x, y) - np.minimum(cost(x, 0 * x), cost(x, x))).max())


def largest(x: Array) -> float:
    return float(np.abs(x).max())


def sum_of_sizes(x: Array) -> float:
    return float(np.abs(x).sum())


def nuclear(x: Array) -> float:
    return float(np.linalg.norm(x, "nuc"))


def spectral(x: Array) -> float:
    return float(np.linalg.norm(x, 2))


def rows(x: Array) -> Array:
    return np.asarray(np.linalg.norm(x, axis=1))


def euclidean(x: Array) -> float:
    return float(np.linalg.norm(x))


PROOFS: dict[str, Proof] = {
    "project_simplex(q)": simplex(1),
    "project_simplex(q, 2.5)": simplex(2.5),
    "project_l1_ball(q)": l1_ball(1),
    "project_l1_ball(q, radius = 3)": l1_ball(3),
    "project_l2_ball(q, 2)": l2_ball(2),
    "project_unit_norm(q)": unit_norm,
    "project_box(q, -0.5, 1)": box(-0.5, 1),
    "project_nonnegative(q)": nonnegative,
    "prox_group_lasso(q, 0.7)": of_norm(0.7, euclidean, euclidean),
    "prox_elastic_net(q, 0.7, 0.3)": of_norm(0.7, sum_of_sizes, largest, l2=0.3),
    "prox_l0(q, 0.7)": l0(0.7),
    "soft_threshold(q, 0.7)": of_norm(0.7, sum_of_sizes, largest),
    "project_orthogonal(q)": orthogonal,
    "prox_nuclear(q, 0.7)": of_norm(0.7, nuclear, spectral),
    "project_simplex(q, 2.5, dim=-1)": simplex(2.5),
    "project_simplex(q, dim=0)": simplex(1),
    "project_l1_ball(q, 1.5, dim=1)": l1_ball(1.5),
    "project_l2_ball(q, dim=-1)": l2_ball(1),
    "project_unit_norm(q, -2)": unit_norm,
    "prox_group_lasso(q, 0.7, dim=-1)": of_norm(0.7, euclidean, euclidean),
    "prox_group_lasso(q, 0.7, dim=(0, 1))": of_norm(0.7, euclidean, euclidean),
}


def proven(expression: str, x: Array, y: Array, dims: tuple[int, ...], tolerance: float) -> None:
    """Check the proof of every part that the function works on."""
    assert np.isfinite(y).all()
    for a, b in zip(parts(x, dims), parts(y, dims), strict=True):
        feasible, optimal = PROOFS[expression](a, b)
        assert feasible < tolerance and abs(optimal) < tolerance


def parts(x: Array, dims: tuple[int, ...]) -> list[Array]:
    """Return the parts of a tensor along some dimensions as vectors; without dimensions, the tensor."""
    if not dims:
        return [x]
    axes = [d % x.ndim for d in dims]
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return list(np.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, count))


CASES = [
    *((expression, shape, ()) for expression in WHOLE for shape in SHAPES),
    *((expression, shape, dims) for expression, dims in ALONG.items() for shape in ((4, 5), (3, 2, 4))),
    *((expression, shape, ()) for expression in OF_MATRICES for shape in ((4, 5), (6, 2), (1, 3))),
]


@pytest.mark.parametrize(("expression", "shape", "dims"), CASES, ids=str)
def test_nothing_is_nearer(expression: str, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    for seed in range(3):
        x = values(shape, seed)
        y = image(expression, x)
        proven(expression, x, y, dims, 1e-11)
        np.testing.assert_allclose(interpreted(expression, x), y, rtol=1e-12, atol=1e-13)
        narrow = x.astype(np.float32).astype(np.float64)
        proven(expression, narrow, image(expression, narrow, torch.float32), dims, 2e-5)
        if expression.startswith("project"):
            np.testing.assert_allclose(image(expression, y), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("expression", [*WHOLE, *ALONG, *OF_MATRICES])
def test_narrow_types_are_rounded_once(expression: str, dtype: torch.dtype) -> None:
    x = torch.tensor(values((4, 5))).to(dtype).double().numpy()
    wide = torch.tensor(image(expression, x, torch.float32))
    np.testing.assert_array_equal(image(expression, x, dtype), wide.to(dtype).double())


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sorts", [False, True])
def test_kernels_do_the_same(sorts: bool, dtype: torch.dtype) -> None:
    wanted = [e for e in (*WHOLE, *ALONG, *OF_MATRICES) if e.startswith(SORTING) is sorts]
    states = "".join(f"state s{i}\n" for i in range(len(wanted)))
    rule = f"optimizer X\nrequire ndim == 2\n{states}q = p - g\n"
    rule += "".join(f"s{i} = s{i} + {expression}\n" for i, expression in enumerate(wanted)) + "p -= 0*s0\n"
    p = torch.nn.Parameter(torch.tensor(values((4, 5)), dtype=dtype))
    p.grad = torch.zeros_like(p)
    optimizer = optlang.compile(rule, backend="auto")([p])
    optimizer.step()
    for i, expression in enumerate(wanted):
        result, expected = optimizer.state[p][f"s{i}"].double(), image(expression, values((4, 5)), dtype)
        np.testing.assert_allclose(result, expected, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-6)


# Corners --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", [*WHOLE, *OF_MATRICES])
def test_zero_stays_finite(expression: str) -> None:
    y = image(expression, np.zeros((2, 3)))
    assert np.isfinite(y).all()
    if "simplex" in expression:
        np.testing.assert_allclose(y, y.flat[0])
    elif "orthogonal" not in expression:  # to which all orthogonal matrices are equally near
        assert (y == 0).all()


@pytest.mark.parametrize("expression", [*ALONG, "prox_group_lasso(q, 0, dim=-1)", "project_l1_ball(q, 0, dim=-1)"])
def test_zero_parts_stay_finite_beside_others(expression: str) -> None:
    x = values((3, 4))
    x[1], x[:, 2] = 0, 0
    assert np.isfinite(image(expression, x)).all()


@pytest.mark.parametrize("expression", [*WHOLE, *ALONG])
def test_a_nan_is_not_hidden(expression: str) -> None:
    x = values((3, 4))
    x[1, 2] = np.nan
    spoilt = np.isnan(x)
    if not expression.startswith(("project_box", "project_nonnegative", "soft", "prox_l0", "prox_elastic")):
        spoilt = spoilt | spoilt.any(axis=ALONG.get(expression, (0, 1)), keepdims=True)
    for y in (image(expression, x), interpreted(expression, x)):
        np.testing.assert_array_equal(np.isnan(y), spoilt)


def test_points_of_the_set_stay() -> None:
    x = np.array([[0.25, -0.5], [0.125, 0.0]])
    for expression in (
        "project_l1_ball(q)",
        "project_l2_ball(q)",
        "project_box(q, -1, 1)",
        "project_l1_ball(q, dim=0)",
    ):
        np.testing.assert_array_equal(image(expression, x), x)
    np.testing.assert_allclose(image("project_simplex(q)", abs(x) / abs(x).sum()), abs(x) / abs(x).sum(), rtol=1e-15)


def test_sets_of_one_point() -> None:
    x = values((3, 4))
    for name in ("simplex", "l1_ball", "l2_ball"):
        np.testing.assert_array_equal(image(f"project_{name}(q, 0)", x), 0 * x)


def test_infinities() -> None:
    x = np.array([1.0, -np.inf, 0.5])
    np.testing.assert_allclose(image("project_simplex(q)", x), [0.75, 0, 0.25])
    np.testing.assert_allclose(interpreted("project_simplex(q)", x), [0.75, 0, 0.25])
    assert np.isnan(image("project_simplex(q)", -x)).all()


def test_many_elements_far_from_the_simplex_in_float32() -> None:
    x = (1000 + np.random.default_rng(0).random(200_000)).astype(np.float32).astype(np.float64)
    y = image("project_simplex(q)", x, torch.float32)
    np.testing.assert_allclose(y, image("project_simplex(q)", x), atol=1e-7)
    assert abs(y.sum() - 1) < 1e-5 and y.min() >= 0


def test_an_orthogonal_filter() -> None:
    x = values((3, 2, 1, 4))
    y = image("project_orthogonal(matrix(q))", x)
    proof = orthogonal(x.reshape(3, 8), y.reshape(3, 8))
    assert max(proof) < 1e-12


def test_matrices_that_are_no_parameters() -> None:
    x = values((4, 4))
    expected = image("project_simplex(q, dim=-1)", x @ x.T) @ x
    np.testing.assert_allclose(image("project_simplex(q @ q.T, dim=-1) @ q", x), expected)
    np.testing.assert_allclose(
        image("q * norm(project_simplex(q[0]))", x), x * euclidean(image("project_simplex(q)", x[0]))
    )


def test_names_of_a_rule_are_its_own() -> None:
    rule = (
        "optimizer X\nhyper radius = 3, soft_threshold = 5\n"
        "def project_simplex(x) = 7*x\ny = 4\n"
        "p = project_l1_ball(p - g, radius) + 0*(project_simplex(p) + y + soft_threshold)\n"
    )
    x = values((6,))
    p = torch.nn.Parameter(torch.tensor(x))
    p.grad = torch.zeros_like(p)
    optlang.compile(rule, backend="eager")([p]).step()
    np.testing.assert_allclose(p.detach().numpy(), image("project_l1_ball(q, radius = 3)", x))


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("project_simplex(norm(q))*q", "E310"),
        ("project_unit_norm(2)*q", "E310"),
        ("project_simplex(q, dim=ndim)", "E309"),
        ("project_l1_ball(q, 1, (0, 1))", "E309"),
        ("prox_group_lasso(q, 1, dim=(0, -1))", "E309"),
        ("project_box(q, -1, 1, dim=0)", "E309"),
        ("project_simplex(q, dim=2)", "E313"),
        ("prox_nuclear(diag(q), 1)*q", "E313"),
        ("project_l2_ball(q @ q.T, dim=2) @ q", "E313"),
        ("project_simplex(q, diag(q))", "E313"),
        ("cumsum(q, norm(q))", "E309"),
        ("flatten(q)", "E313"),
    ],
)
def test_what_cannot_be_projected_is_said(expression: str, code: str) -> None:
    found = optlang.check(text(expression, 2))
    assert [finding.code for finding in found if finding.is_error] == [code], "\n".join(map(str, found))


# The library ----------------------------------------------------------------------------------------------------------


def solved(name: str, x: Array, steps: int = 1500, backend: str = "eager", **hypers: Any) -> tuple[Array, Array]:
    """Return where a rule of the library takes the least squares of a matrix, and the gradient of the loss there."""
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.standard_normal(shape)) for shape in ((8, 4), (8, 5)))
    p = torch.nn.Parameter(torch.tensor(x))
    optimizer = library_class(name, backend)([p], **{"lr": 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2, **hypers})

    def gradient() -> torch.Tensor:
        return a.T @ (a @ p.detach() - b)

    for _ in range(steps):
        p.grad = gradient()
        optimizer.step()
    if name == "AcceleratedProximal":
        optimizer.eval()
    return p.detach().numpy(), gradient().numpy()


CONSTRAINTS: dict[str, Proof] = {
    "box": box(-0.1, 0.1),
    "nonnegative": nonnegative,
    "simplex": simplex(0.7),
    "l1_ball": l1_ball(0.7),
    "l2_ball": l2_ball(0.7),
}
PENALTIES: dict[str, Proof] = {
    "l1": of_norm(5, sum_of_sizes, largest, l2=0.5),
    "group_lasso": of_norm(5, lambda x: rows(x).sum(), lambda x: rows(x).max(), l2=0.5),
    "nuclear": of_norm(5, nuclear, spectral, l2=0.5),
}


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_projected_sgd_ends_where_nothing_is_better(constraint: str, momentum: float) -> None:
    x, gradient = solved(
        "ProjectedSGD", values((4, 5)), constraint=constraint, momentum=momentum, radius=0.7, low=-0.1, high=0.1
    )
    assert max(map(abs, CONSTRAINTS[constraint](x - gradient, x))) < 1e-9


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_accelerated_proximal_ends_where_nothing_is_better(penalty: str, restart: bool) -> None:
    x, gradient = solved("AcceleratedProximal", values((4, 5)), penalty=penalty, weight=5, l2=0.5, restart=restart)
    assert max(map(abs, PENALTIES[penalty](x - gradient, x))) < 1e-9
    assert (x == 0).any() or penalty == "nuclear"
    assert np.linalg.matrix_rank(x) < 4


def test_exponentiated_gradient_ends_where_nothing_is_better() -> None:
    x, gradient = solved("ExponentiatedGradient", 0 * values((4, 5)), lr=0.5, steps=5000)
    assert max(map(abs, simplex(1)(x - gradient, x))) < 1e-9
    x, gradient = solved("ExponentiatedGradient", 0 * values((4, 5)), lr=0.5, steps=5000, per_row=True)
    for row, slope in zip(x, gradient, strict=True):
        assert max(map(abs, simplex(1)(row - slope, row))) < 1e-9


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("name", "hypers"),
    [
        *(("ProjectedSGD", {"constraint": name, "momentum": 0.5}) for name in ("simplex", "orthogonal", "box")),
        *(("AcceleratedProximal", {"penalty": name, "restart": True}) for name in ("group_lasso", "nuclear")),
        ("ExponentiatedGradient", {"per_row": True}),
    ],
    ids=str,
)
def test_kernels_of_the_library_do_the_same(name: str, hypers: dict[str, Any]) -> None:
    result, _ = solved(name, values((4, 5)), steps=20, backend="auto", **hypers)
    expected, _ = solved(name, values((4, 5)), steps=20, **hypers)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-11)
