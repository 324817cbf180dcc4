"""Projections and proximal operators."""

from __future__ import annotations

from optlang.functions import shapes
from optlang.functions.row import PROXIMAL, Builtin


def _simplex(x: str, total: str) -> str:
    """Return the statements that compute the threshold of the projection onto a simplex.

    ``theta`` solves sum(max(y - theta, 0)) = total. For the k largest elements of y, that sum is at least their sum
    minus k*theta, with equality for the right k, so theta is the largest of the quotients (Held, Wolfe & Crowder, 1974,
    https://doi.org/10.1007/BF01580223). Subtracting the largest element from y first keeps the relevant numbers small,
    and their sums accurate.
    """
    return (
        f"y = {x} - max({x}, dim=dim)\n"
        "largest = -sort(-y if dim != none else -flatten(y), dim ?? -1)\n"
        "count = cumsum(largest^0, dim ?? -1)\n"
        f"theta = max((cumsum(largest, dim ?? -1) - {total}) / count, dim=dim)\n"
    )


FUNCTIONS: tuple[Builtin, ...] = (
    Builtin(
        "project_box",
        "x, low, high",
        PROXIMAL,
        "Nearest point in the box [low, high].",
        definition="min(max(x, low), high)",
    ),
    Builtin("project_nonnegative", "x", PROXIMAL, "Nearest point with nonnegative elements.", definition="max(x, 0)"),
    Builtin(
        "project_l2_ball",
        "x, radius = 1, dim = none",
        PROXIMAL,
        "Nearest point with Euclidean norm at most `radius`.",
        definition="x * (1 if norm(x, dim=dim) <= radius else radius / norm(x, dim=dim))",
    ),
    Builtin(
        "project_unit_norm",
        "x, dim = none",
        PROXIMAL,
        "Nearest point with Euclidean norm 1; zero, which has no unique nearest point, stays zero.",
        definition="x / (1 if norm(x, dim=dim) == 0 else norm(x, dim=dim))",
    ),
    Builtin(
        "project_simplex",
        "x, total = 1, dim = none",
        PROXIMAL,
        "Nearest point with nonnegative elements that sum to `total` (at least 0): elements are reduced by the same "
        "amount, down to 0.",
        definition=f"{_simplex('x', 'total')}return max(y - theta, 0)",
        matrix=True,
    ),
    Builtin(
        "project_l1_ball",
        "x, radius = 1, dim = none",
        PROXIMAL,
        "Nearest point whose absolute values sum to at most `radius`.",
        definition=(
            f"{_simplex('abs(x)', 'radius')}return x if sum(abs(x), dim=dim) <= radius else sign(x)*max(y - theta, 0)"
        ),
        matrix=True,
    ),
    Builtin(
        "project_orthogonal",
        "x",
        PROXIMAL,
        "Nearest matrix with orthonormal rows or columns.",
        definition="U, S, Vh = svd(x)\nreturn U @ Vh",
        matrix=True,
        shape=shapes.of_matrix,
    ),
    Builtin(
        "soft_threshold",
        "x, k",
        PROXIMAL,
        "Shrinks x towards 0 by k: the proximal map of k*|x|.",
        definition="sign(x)*max(abs(x) - k, 0)",
    ),
    Builtin(
        "prox_l0",
        "x, k",
        PROXIMAL,
        "Sets elements of magnitude up to sqrt(2*k) to 0: the proximal map of k times the number of nonzero elements.",
        definition="0 if x^2 <= 2*k else x",
    ),
    Builtin(
        "prox_elastic_net",
        "x, l1, l2",
        PROXIMAL,
        "The proximal map of l1*|x| + l2/2*x^2.",
        definition="sign(x)*max(abs(x) - l1, 0)/(1 + l2)",
    ),
    Builtin(
        "prox_group_lasso",
        "x, k, dim = none",
        PROXIMAL,
        "Shrinks the Euclidean norm by k, down to 0: the proximal map of k*norm(x).",
        definition="x * (0 if norm(x, dim=dim) <= k else 1 - k/norm(x, dim=dim))",
    ),
    Builtin(
        "prox_nuclear",
        "x, k",
        PROXIMAL,
        "Shrinks singular values by k, down to 0: the proximal map of k times their sum.",
        definition="U, S, Vh = svd(x)\nreturn U @ diag(max(S - k, 0)) @ Vh",
        matrix=True,
        shape=shapes.of_matrix,
    ),
)
