"""Kinds: where a value is stored and which shape it has, from cheap to expensive.

static  known when a variant is compiled (flags, strings, ``ndim``, conditions on hyperparameters)
host    one number per step, group and tensor count: hyperparameters, ``t``, schedules, sums over the whole model
        (float64, on the host)
scalar  one number per tensor, on the device: ``norm(g)``
reduced summed over some dimensions that are kept with size 1: ``mean(g, dim=-1)``
matrix  a tensor of any other shape: ``g @ g.T``
element shaped like ``p``
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from optlang.functions.shapes import Shape, meet, shown
from optlang.functions.shapes import reduced as reduced_shape


class Level(IntEnum):
    """The levels of kinds, cheapest first."""

    STATIC = 0
    HOST = 1
    SCALAR = 2
    REDUCED = 3
    MATRIX = 4
    ELEMENT = 5


@dataclass(frozen=True)
class Kind:
    """A level; for a reduced value with the reduced dimensions (as written: ``-1``, ``0``).

    ``shape`` is the shape of a matrix: numbers in the checker, symbolic sizes in a program.
    """

    level: Level
    dims: frozenset[int] = frozenset()
    shape: Shape = ()

    def __str__(self) -> str:
        if self.level is Level.MATRIX:
            return f"matrix of {shown(self.shape)}"
        if self.level is Level.REDUCED:
            return f"reduced over dim {', '.join(map(str, sorted(self.dims)))}"
        return self.level.name.lower()

    @property
    def on_device(self) -> bool:
        """Whether the value is a tensor on the parameter's device."""
        return self.level >= Level.SCALAR


STATIC = Kind(Level.STATIC)
HOST = Kind(Level.HOST)
SCALAR = Kind(Level.SCALAR)
ELEMENT = Kind(Level.ELEMENT)


def reduced(dims: Iterable[int]) -> Kind:
    """Return the kind of a value reduced over ``dims``, which are kept with size 1."""
    return Kind(Level.REDUCED, frozenset(dims))


def matrix(shape: Shape) -> Kind:
    """Return the kind of a tensor with another shape than the parameter."""
    return Kind(Level.MATRIX, shape=shape)


def join(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of an elementwise combination of values of these kinds, whose shapes must match."""
    result = STATIC
    for kind in kinds:
        if kind.level is Level.MATRIX and result.level is Level.MATRIX:
            result = matrix(meet((result.shape, kind.shape)))
        elif kind.level is Level.REDUCED and result.level is Level.REDUCED:
            common = kind.dims & result.dims
            result = reduced(common) if common else ELEMENT
        elif kind.level > result.level:
            result = kind
    return result


def reduce(kind: Kind, dims: frozenset[int] | None) -> Kind:
    """Return the kind of a reduction of a value over ``dims`` (None: over the whole tensor)."""
    if dims is None or kind.level < Level.REDUCED:
        return SCALAR
    if not dims:  # `dim=1:` of a vector
        return kind
    if kind.level is Level.MATRIX:
        return matrix(reduced_shape(kind.shape, tuple(dims)))
    return reduced(kind.dims | dims)
