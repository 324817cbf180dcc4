"""Matrices of the interpreter: products, parts, and the functions that are more than arithmetic on elements.

All values are float64 arrays, orders too: they become whole numbers where something is looked up with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from interpreter_values import Array, flattened, whole


def matrix(x: Any) -> Array:
    """Return ``x``, which must be a matrix."""
    if np.ndim(x) != 2:
        raise ValueError(f"a matrix is expected, not a value of shape {np.shape(x)}")
    return np.asarray(x)


def vector(x: Any) -> Array:
    """Return ``x``, which must be a vector."""
    if np.ndim(x) != 1:
        raise ValueError(f"a vector is expected, not a value of shape {np.shape(x)}")
    return np.asarray(x)


def transpose(x: Any) -> Array:
    """Return ``x.T``."""
    return matrix(x).T


def product(a: Any, b: Any) -> Array:
    """Return ``a @ b``, of matrices and vectors."""
    for x in (a, b):
        if np.ndim(x) not in (1, 2):
            raise ValueError(f"`@` takes matrices and vectors, not a value of shape {np.shape(x)}")
    return np.asarray(np.matmul(a, b))


def part(x: Any, items: Sequence[slice | Array]) -> Array:
    """Return ``x[...]``: each item works along its own dimension, whatever the others are.

    Args:
        x: The value.
        items: For each dimension from the first a slice, a number (a 0-d array: the dimension goes), or a vector of
            places.
    """
    result = np.asarray(x)
    if len(items) > result.ndim:
        raise ValueError(f"a value of shape {result.shape} has no {len(items)} dimensions")
    for axis in reversed(range(len(items))):  # from the last, so that what goes does not move what is still to come
        item = items[axis]
        if isinstance(item, slice):
            result = result[(slice(None),) * axis + (item,)]
        else:
            places = item if item.ndim == 0 else vector(item)
            result = np.take(result, [whole(float(i)) for i in places.ravel()], axis=axis)
            result = result[(slice(None),) * axis + (0,)] if item.ndim == 0 else result
    return result


def sizes(x: Any) -> tuple[float, float]:
    """Return how many rows and columns a value has: its last two dimensions, 1 for those it lacks."""
    shape = (1, 1, *np.shape(x))
    return float(shape[-2]), float(shape[-1])


def _as_matrix(x: Any) -> Array:
    if np.ndim(x) == 0:
        raise ValueError("one number is no matrix")
    return np.reshape(x, flattened(np.shape(x)))


def _diag(x: Any) -> Array:
    return np.diag(x if np.ndim(x) == 1 else matrix(x))


def _axis(dim: Any) -> int:
    """Return a dimension: a number, or as a function of the language hands it on."""
    return whole(dim[0] if isinstance(dim, tuple) else dim)


def _argsort(x: Any, dim: Any) -> Array:
    return np.argsort(x, axis=_axis(dim), kind="stable").astype(np.float64)


def _topk(x: Any, k: Any) -> tuple[Array, Array]:
    count = whole(k)
    if not 1 <= count <= np.shape(x)[-1]:
        raise ValueError(f"the {count} largest of {np.shape(x)[-1]}")
    places = np.argsort(x, axis=-1, kind="stable")[..., ::-1][..., :count]
    return np.take_along_axis(np.asarray(x), places, axis=-1), places.astype(np.float64)


#: Functions of matrices by name; those with several results return a tuple.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "matrix": _as_matrix,
    "flatten": np.ravel,
    "diag": _diag,
    "trace": lambda x: np.trace(matrix(x)),
    "outer": lambda x, y: np.outer(vector(x), vector(y)),
    "triu": lambda x, diagonal: np.triu(matrix(x), whole(diagonal)),
    "tril": lambda x, diagonal: np.tril(matrix(x), whole(diagonal)),
    "flip": lambda x, dim: np.flip(x, _axis(dim)),
    "cumsum": lambda x, dim: np.cumsum(x, axis=_axis(dim)),
    "eigh": lambda x: tuple(np.linalg.eigh(matrix(x))),
    "qr": lambda x: tuple(np.linalg.qr(matrix(x))),
    "svd": lambda x: tuple(np.linalg.svd(matrix(x), full_matrices=False)),
    "inv": lambda x: np.linalg.inv(matrix(x)),
    "solve": lambda a, b: np.linalg.solve(matrix(a), b),
    "cholesky": lambda x: np.linalg.cholesky(matrix(x)),
    "sort": lambda x, dim: (np.sort(x, axis=_axis(dim)), _argsort(x, dim)),
    "argsort": _argsort,
    "topk": _topk,
}

#: Functions that make tensors of given sizes.
MAKERS: dict[str, Callable[..., Array]] = {
    "zeros": lambda *n: np.zeros(n),
    "ones": lambda *n: np.ones(n),
    "eye": lambda n: np.eye(n),
}
