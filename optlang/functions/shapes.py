"""Shape rules of the matrix functions.

A size is a number if a tensor is given, or symbolic if a program serves tensors of every size. Only numbers are
compared: a mismatch is then an error of the rule for this tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optlang.functions.row import EMPTY

Size = Any  # an int, or a symbolic size
Shape = tuple[Size, ...]


class Mismatch(Exception):
    """Shapes that a function does not accept; the message says what was expected, the help what to do."""

    def __init__(self, message: str, help: str) -> None:
        super().__init__(message)
        self.message, self.help = message, help


def shown(shape: Shape) -> str:
    """Return a shape in readable form: ``3 x 4``."""
    return " x ".join(map(str, shape)) if shape else "one number"


def described(shape: Shape) -> str:
    """Return a shape as a phrase: ``a 3 x 4 matrix``."""
    names = {0: "one number", 1: f"a vector of {shown(shape)}", 2: f"a {shown(shape)} matrix"}
    return names.get(len(shape), f"a {shown(shape)} tensor")


def differ(a: Size, b: Size) -> bool:
    """Return whether two sizes are known to be different."""
    return isinstance(a, int) and isinstance(b, int) and a != b


def meet(shapes: Sequence[Shape]) -> Shape:
    """Return the broadcast shape of an elementwise combination; numbers and sizes of 1 are expanded."""
    result: Shape = ()
    for shape in shapes:
        if not shape:
            continue
        if not result:
            result = shape
            continue
        if len(shape) != len(result):
            raise Mismatch(
                f"{described(result)} and {described(shape)} do not match element by element",
                "convert one of them first: `diag(v)`, `outer(u, v)`, `mean(x, dim=-1)`, `matrix(x)`",
            )
        if any(differ(a, b) and 1 not in (a, b) for a, b in zip(result, shape, strict=True)):
            raise Mismatch(
                f"{described(result)} and {described(shape)} do not match element by element",
                "shapes must be equal, or have size 1 where they differ; `@` is the matrix product",
            )
        result = tuple(b if isinstance(a, int) and a == 1 else a for a, b in zip(result, shape, strict=True))
    return result


def reduced(shape: Shape, dims: Sequence[int] | None) -> Shape:
    """Return the shape after a reduction over ``dims``, which are kept with size 1; None is the whole tensor."""
    if dims is None:
        return ()
    for dim in dims:
        if not -len(shape) <= dim < len(shape):
            raise Mismatch(
                f"{described(shape)} has no dimension {dim}",
                f"it has {len(shape)}, counted from 0, or from -1 at the end",
            )
    places = {dim % len(shape) for dim in dims}
    return tuple(1 if i in places else size for i, size in enumerate(shape))


def product(a: Shape, b: Shape) -> Shape:
    """Return the shape of ``a @ b``: of two matrices, or of a matrix and a vector."""
    if not (1 <= len(a) <= 2 and 1 <= len(b) <= 2):
        bad = a if not 1 <= len(a) <= 2 else b
        raise Mismatch(
            f"`@` takes matrices and vectors, not {described(bad)}",
            "`*` multiplies element by element; `matrix(x)` reshapes a tensor with more dimensions to a matrix",
        )
    inner, other = a[-1], b[0]
    if differ(inner, other):
        raise Mismatch(
            f"{described(a)} cannot be multiplied by {described(b)}: {_meet(inner, other)}",
            "the sizes in the middle must be equal; `x.T` is the transpose",
        )
    return (*a[:-1], *b[1:])


def _meet(columns: Size, rows: Size) -> str:
    """Return a phrase for the sizes of a product that differ."""
    meet = "1 column against" if columns == 1 else f"{columns} columns against"
    return f"{meet} {rows} row{'' if rows == 1 else 's'}"


def prod(sizes: Sequence[Size]) -> Size:
    """Return the product of sizes."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def transposed(x: Shape) -> Shape:
    """Return the shape of ``x.T``."""
    if len(x) != 2:
        raise Mismatch(
            f"only a matrix has a transpose, not {described(x)}", "`matrix(x)` reshapes a tensor to a matrix"
        )
    return (x[1], x[0])


def matrix(x: Shape) -> Shape:
    """Return the shape of ``matrix(x)``: the first dimension by the rest."""
    if not x:
        raise Mismatch("one number is not a matrix", "exclude such tensors: `require ndim >= 1`, or `if ndim >= 2:`")
    return (x[0], prod(x[1:]))


def size_of(name: str, x: Shape, dim: int | None = None) -> Size:
    """Return ``rows(x)`` or ``cols(x)``, 1 if there are fewer dimensions, or ``size(x, dim)``."""
    if name == "size":
        assert dim is not None
        reduced(x, (dim,))
        return x[dim]
    return (1, 1, *x)[-2 if name == "rows" else -1]


def smaller(a: Size, b: Size) -> Size:
    """Return the smaller of two sizes, if that is known."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else a


def made(name: str, sizes: Sequence[Size]) -> Shape:
    """Return the shape of ``zeros``, ``ones``, ``eye``, ``randn`` and ``rand`` with the given sizes."""
    for size in sizes:
        if isinstance(size, int) and size < 0:
            what = "a history" if name == EMPTY else f"`{name}`"
            raise Mismatch(f"{what} of size {size}", "a size is an integer of at least 0")
    return (sizes[0], sizes[0]) if name == "eye" else tuple(sizes)


def indexed(x: Shape, items: Sequence[tuple[Size | None, Size | None] | Shape]) -> Shape:
    """Return the shape of ``x[...]``.

    Args:
        x: The shape of the value.
        items: One entry per subscript: the shape of an order (a vector) or of a number; for a slice, a list of its two
            ends, each None if omitted.
    """
    if len(items) > len(x):
        raise Mismatch(f"{described(x)} has no dimension {len(items) - 1}", "an index has one part for each dimension")
    result: list[Size] = []
    for size, item in zip(x, items, strict=False):
        if isinstance(item, list):
            result.append(_sliced(size, *item))
        elif len(item) == 1:
            result.append(item[0])
        elif item:
            raise Mismatch(
                f"{described(item)} is not an index", "an index is a number, a slice, or an order: `argsort(v)`"
            )
    return (*result, *x[len(items) :])


def _sliced(size: Size, start: Size | None, stop: Size | None) -> Size:
    if isinstance(size, int) and all(isinstance(end, int) or end is None for end in (start, stop)):
        return len(range(*slice(start, stop).indices(size)))
    if start is None and stop is None:
        return size
    return stop if start is None else (size if stop is None else stop) - start


def of_matrix(what: str, x: Shape, *_: Any) -> Shape:
    """Return the shape of an argument that must be a matrix."""
    if len(x) != 2:
        raise Mismatch(
            f"`{what}` takes a matrix, not {described(x)}", "`matrix(x)` reshapes to a matrix: dim 0 by the rest"
        )
    return x


def of_square(what: str, x: Shape, *_: Any) -> Shape:
    """Return the shape of an argument that must be a square matrix."""
    if len(x) != 2 or differ(*x):
        raise Mismatch(f"`{what}` takes a square matrix, not {described(x)}", "`x @ x.T` and `x.T @ x` are square")
    return x


def along(what: str, x: Shape, dim: int) -> Shape:
    """Return the shape of a tensor that must have the dimension ``dim``."""
    if not x:
        raise Mismatch(f"`{what}` of one number", "give it a vector, a matrix, or a tensor with more dimensions")
    reduced(x, (dim,))
    return x


def as_matrix(what: str, x: Shape) -> Shape:
    """Return the shape of a tensor as a matrix."""
    return matrix(x)


def flat(what: str, x: Shape) -> Shape:
    """Return the shape of the flattened tensor."""
    return (prod(x),)


def diagonal(what: str, x: Shape) -> Shape:
    """Return the shape of the diagonal of a matrix, or of the diagonal matrix of a vector."""
    if len(x) == 1:
        return (x[0], x[0])
    rows, cols = of_matrix(what, x)
    return (smaller(rows, cols),)


def trace(what: str, x: Shape) -> Shape:
    """Return the shape of the trace, a number."""
    return of_square(what, x)[:0]


def outer(what: str, a: Shape, b: Shape) -> Shape:
    """Return the shape of the outer product of two vectors."""
    for x in (a, b):
        if len(x) != 1:
            raise Mismatch(f"`{what}` takes vectors, not {described(x)}", "`diag(x)` is the diagonal of a matrix")
    return (*a, *b)


def solve(what: str, a: Shape, b: Shape) -> Shape:
    """Return the shape of the solution of a @ x = b."""
    product(of_square(what, a), b)
    return b


def svd(what: str, x: Shape) -> tuple[Shape, ...]:
    """Return the shapes of U, S and Vh."""
    rows, cols = of_matrix(what, x)
    rank = smaller(rows, cols)
    return ((rows, rank), (rank,), (rank, cols))


def qr(what: str, x: Shape) -> tuple[Shape, ...]:
    """Return the shapes of Q and R."""
    rows, cols = of_matrix(what, x)
    rank = smaller(rows, cols)
    return ((rows, rank), (rank, cols))


def eigh(what: str, x: Shape) -> tuple[Shape, ...]:
    """Return the shapes of eigenvalues and eigenvectors."""
    rows, _ = of_square(what, x)
    return ((rows,), (rows, rows))


def sort(what: str, x: Shape, dim: int) -> tuple[Shape, ...]:
    """Return the shapes of the sorted tensor and its order."""
    return (along(what, x, dim), x)


def topk(what: str, x: Shape, k: Size) -> tuple[Shape, ...]:
    """Return the shapes of the ``k`` largest elements in the last dimension and their indices."""
    shape = along(what, x, -1)
    if isinstance(k, int) and isinstance(shape[-1], int) and not 1 <= k <= shape[-1]:
        raise Mismatch(f"the {k} largest of {shape[-1]}", "take at most as many as there are: `min(k, cols)`")
    return ((*shape[:-1], k), (*shape[:-1], k))


def pushed(what: str, s: Shape, x: Shape) -> Shape:
    """Return the shape of a history after a push."""
    if not s:
        raise Mismatch("`push` needs a history", "declare it: `history s: size 10`")
    entry = s[1:]
    try:
        fits = meet((entry, x)) == entry
    except Mismatch:
        fits = False
    if not fits:
        numbers = f"{shown(entry)} numbers" if entry else "one number"
        raise Mismatch(
            f"the history has entries of {numbers}, but {described(x)} is pushed",
            "`history s: size k` keeps values shaped like p, `history s: scalar size k` numbers",
        )
    return s
