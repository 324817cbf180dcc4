"""Small tables of floats with the operations a dry run needs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Abandoned(Exception):
    """The rule uses something that a dry run does not support; nothing is reported."""


class Grid(NamedTuple):
    """A table of ``rows`` x ``cols`` numbers in row-major order; sizes of 1 are broadcast."""

    rows: int
    cols: int
    data: tuple[float, ...]

    @property
    def is_number(self) -> bool:
        """Whether it is a single number."""
        return len(self.data) == 1

    def spread(self, rows: int, cols: int) -> Sequence[float]:
        """Return the numbers broadcast to a larger table."""
        if self.rows == rows and self.cols == cols:
            return self.data
        if len(self.data) == 1:
            return self.data * (rows * cols)
        if self.rows not in (1, rows) or self.cols not in (1, cols):
            raise Abandoned
        row, col = (0 if self.rows == 1 else 1), (0 if self.cols == 1 else 1)
        return [self.data[row * i * self.cols + col * j] for i in range(rows) for j in range(cols)]


def number(value: float) -> Grid:
    """Return a number as a table."""
    return Grid(1, 1, (float(value),))


def size(grids: Iterable[Grid]) -> tuple[int, int]:
    """Return the broadcast size of several tables."""
    rows = cols = 0
    for grid in grids:
        rows, cols = max(rows, grid.rows), max(cols, grid.cols)
    return rows, cols


def each(function: Callable[..., float], *grids: Grid) -> Grid:
    """Apply ``function`` to tables elementwise."""
    rows, cols = size(grids)
    return Grid(rows, cols, tuple(map(function, *[grid.spread(rows, cols) for grid in grids])))


def transposed(grid: Grid) -> Grid:
    """Return the transpose of a table."""
    return Grid(grid.cols, grid.rows, tuple(x for j in range(grid.cols) for x in grid.data[j :: grid.cols]))


def product(a: Grid, b: Grid) -> Grid:
    """Return the matrix product of two tables."""
    rows = [a.data[i * a.cols : (i + 1) * a.cols] for i in range(a.rows)]
    columns = [b.data[j :: b.cols] for j in range(b.cols)]
    return Grid(a.rows, b.cols, tuple(sum(map(operator.mul, row, column)) for row in rows for column in columns))


def reduce(function: Callable[[Sequence[float]], float], grid: Grid, rows: bool, cols: bool) -> Grid:
    """Apply ``function`` to the rows, the columns or the whole of a table."""
    if rows and cols:
        return number(function(grid.data))
    table = [grid.data[i * grid.cols : (i + 1) * grid.cols] for i in range(grid.rows)]
    if cols:
        return Grid(grid.rows, 1, tuple(map(function, table)))
    if rows:
        return Grid(1, grid.cols, tuple(function(column) for column in zip(*table, strict=True)))
    return grid


def total(values: Sequence[float]) -> float:
    """Return the sum of the values."""
    return sum(values)
