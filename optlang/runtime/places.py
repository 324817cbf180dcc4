"""Points at which the closure has been called, and the line of a line search.

A point stores the closure's results. Parameter values are not copied: a point on a line is defined by the start of the
line, its direction and the distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from optlang.backends.loading import vectors
from optlang.runtime.tensors import address

#: How many elements of a parameter are compared before all others.
SOME = 1024
#: How many elements are compared at once, so that intermediate results stay in a cache.
BLOCK = 2**16


class EvaluatedPoint(NamedTuple):
    """A point at which the closure has been called, and its results.

    Attributes:
        begin: The parameters at the start of the step, by id; those that have not moved are missing.
        loss: The loss.
        gradients: The gradient of each parameter.
        directions: The directions in which parameters have been moved from there, by id.
        distance: The distance along these directions.
    """

    begin: Mapping[int, torch.Tensor]
    loss: Any
    gradients: list[torch.Tensor | None]
    directions: Mapping[int, torch.Tensor] = MappingProxyType({})
    distance: float = 0.0

    def with_gradients_apart(self) -> EvaluatedPoint:
        """Return the same point with gradients that no call of the closure can overwrite."""
        return self._replace(gradients=[None if g is None else g.detach().clone() for g in self.gradients])

    def holds(self, moved: Sequence[tuple[torch.Tensor, torch.Tensor]], quick: bool = False) -> bool:
        """Return whether new values of parameters are those at this point, up to the rounding of one addition.

        Args:
            moved: Parameters, with their new values.
            quick: Whether C++ may be used.
        """
        if quick and moved:
            found = self._told(moved)
            if found is not None:
                return found
        # The first elements of the first parameter usually decide; the others are not even viewed then.
        some = (next(_blocks(*self._vectors(*each), SOME)) for each in moved)
        return all(self._near(*block) for block in some) and all(
            self._near(*block) for each in moved for block in _blocks(*self._vectors(*each), BLOCK)
        )

    def _told(self, moved: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool | None:
        """Return whether C++ finds the new values at this point; None if C++ cannot compare them."""
        begins = [self.begin.get(id(p), p) for p, _ in moved]
        directions = [self.directions.get(id(p)) for p, _ in moved]
        values = [value for _, value in moved]
        if not all(address(x) for x in (*values, *begins, *directions) if x is not None):
            return None
        return vectors.are_near(values, begins, directions, self.distance)

    def _vectors(self, p: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return a parameter's new value, its start, and the direction from there, as vectors."""
        direction = self.directions.get(id(p))
        begin = _vector(self.begin.get(id(p), p))
        return _vector(value), begin, None if direction is None else _vector(direction)

    def _near(self, value: torch.Tensor, begin: torch.Tensor, direction: torch.Tensor | None) -> bool:
        # Computed as rules do, so that the values are mostly equal: products are rounded before they are added.
        there = begin if direction is None else direction.mul(self.distance).add_(begin).to(value.dtype)
        apart = (value - there).abs()
        if not len(apart) or float(apart.max()) == 0:  # faster than asking whether they are equal
            return True
        return bool((apart <= 4 * torch.finfo(value.dtype).eps * (begin.abs() + there.abs())).all())


def _vector(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1)


def _blocks(
    value: torch.Tensor, begin: torch.Tensor, direction: torch.Tensor | None, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield corresponding blocks of vectors; an empty vector has one block."""
    along = repeat(None) if direction is None else direction.split(size)
    yield from zip(value.split(size), begin.split(size), along, strict=False)


class SearchLine:
    """The line of a line search; the parameters are restored when the context is left.

    Args:
        pairs: Parameters, with their directions.
        parameters: Every parameter of the optimizer.
        begin: Copies of the parameters at the start of the step, by id; empty if none were made.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        parameters: Sequence[torch.Tensor],
        begin: Mapping[int, torch.Tensor],
    ) -> None:
        self.pairs, self.parameters, self.begin = pairs, parameters, begin
        self._kept = begin or {id(p): p.detach().clone() for p, _ in pairs}
        self._directions = {id(p): d for p, d in pairs}

    def __enter__(self) -> None:
        """Start from the current parameters."""

    def __exit__(self, *error: object) -> None:
        """Restore the parameters."""
        if self.pairs:
            torch._foreach_copy_(
                [p.data for p, _ in self.pairs], [self._kept[id(p)] for p, _ in self.pairs]
            )  # hidden from autograd, which may still need the restored values

    def go(self, distance: float) -> None:
        """Set the parameters to a distance from the start."""
        for p, d in self.pairs:
            if d.dtype == p.dtype and p.data.is_contiguous():
                torch.add(self._kept[id(p)], d, alpha=distance, out=p.data)
            else:
                p.data.copy_(self._kept[id(p)].add(d, alpha=distance))

    def place(self, distance: float, loss: Any) -> EvaluatedPoint:
        """Return the point at a distance at which the closure has been called."""
        gradients = [None if p.grad is None else p.grad.detach().clone() for p in self.parameters]
        return EvaluatedPoint(self.begin, loss, gradients, self._directions, distance)

    def slope(self) -> float:
        """Return the slope of the loss along the line at the current parameters."""
        return float(sum(_dot(p.grad, d) for p, d in self.pairs if p.grad is not None))

    def largest(self) -> float:
        """Return the largest absolute value in the direction."""
        ends = (d.aminmax() if not d.is_complex() else d.abs().aminmax() for _, d in self.pairs if d.numel())
        return max((max(-float(low), float(high)) for low, high in ends), default=0.0)


def _dot(a: torch.Tensor, b: torch.Tensor) -> Any:
    """Return the dot product of two tensors, without storing the products where possible."""
    if a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64) and a.is_contiguous() and b.is_contiguous():
        return float(torch.dot(a.detach().view(-1), b.view(-1)))
    return (a * b).sum(dtype=torch.float64)
