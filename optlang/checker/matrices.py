"""Shapes of values for one sample shape of the parameter, and shape mismatches."""

from __future__ import annotations

from collections.abc import Iterable

from optlang.functions.shapes import Mismatch, Shape, reduced
from optlang.functions.shapes import matrix as as_matrix
from optlang.functions.shapes import meet as meet_shapes
from optlang.kinds import ELEMENT, SCALAR, Kind, Level, join, matrix


class Some:
    """A size that is unknown during checks, such as one read from the param group."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __mul__(self, _: object) -> Some:
        return Some("some")

    __rmul__ = __sub__ = __rsub__ = __add__ = __radd__ = __mul__


def shape_of(kind: Kind, p: Shape) -> Shape:
    """Return the shape of a value of a given kind, for a parameter of shape ``p``."""
    match kind.level:
        case Level.ELEMENT:
            return p
        case Level.MATRIX:
            return kind.shape
        case Level.REDUCED:
            return reduced(p, [dim for dim in kind.dims if -len(p) <= dim < len(p)])
        case _:
            return ()


def kind_of(shape: Shape) -> Kind:
    """Return the kind of a matrix function's result, given its shape."""
    return matrix(shape) if shape else SCALAR


def meet(kinds: Iterable[Kind], p: Shape) -> Kind:
    """Return the kind of an elementwise combination, for a parameter of shape ``p``.

    Raises:
        Mismatch: If the shapes do not match.
    """
    several = tuple(kinds)
    if Level.MATRIX not in [kind.level for kind in several]:
        return join(several)
    shapes = [shape_of(kind, p) for kind in several]
    elements = any(kind.level is Level.ELEMENT for kind in several)
    if elements and len(p) not in (0, 2):
        # A tensor's ``matrix`` reshapes back to the tensor where the two are combined.
        made = as_matrix(p)
        shapes = [p if shape == made else shape for shape in shapes]
    result = meet_shapes(shapes)
    return ELEMENT if elements and result == p else kind_of(result)


def fits(value: Kind, held: Kind, p: Shape) -> bool:
    """Return whether a state of kind ``held`` can hold a value, broadcast if smaller; p is ELEMENT."""
    if Level.MATRIX in (value.level, held.level):
        try:
            return shape_of(meet((value, held), p), p) == shape_of(held, p)
        except Mismatch:
            return False
    if value.level <= Level.SCALAR or held.level is Level.ELEMENT:
        return True
    if held.level is Level.SCALAR or value.level is Level.ELEMENT:
        return False
    return held.dims <= value.dims
