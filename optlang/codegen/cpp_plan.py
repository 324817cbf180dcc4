"""Plans a C++ kernel: in which order it computes the values of a step, and in which loops.

A tensor is viewed with a few dimensions (one, if dimensions do not matter). It is cut into *chunks* along one of them,
which are distributed over threads. A *sweep* is one pass over all chunks. It ends where a reduction needs all of them;
one thread then *finishes* the reduction. A chunk contains everything at one index of the chunked dimension, so a
reduction over other dimensions does not end the sweep. It ends a *nest*: a few loops over a part of the chunk that fits
into the cache.

Elementwise values are recomputed in every nest that reads them; all others are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sympy as sp

from optlang.ir.program import Program, Store, Value
from optlang.kinds import Kind, Level

#: The dimensions of the view that a value has; the others have been reduced. A per-tensor number has none.
Dims = frozenset[int]


@dataclass
class Nest:
    """Loops over some dimensions.

    Attributes:
        domain: The dimensions.
        values: The values computed and kept; they have these dimensions.
        sums: The reductions whose operands have these dimensions.
        stores: The stores.
    """

    domain: Dims
    values: list[Value] = field(default_factory=list)
    sums: list[Value] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)

    def exprs(self) -> list[sp.Expr]:
        """Return the expressions it computes."""
        return [
            *(v.expr for v in self.values),
            *(v.expr.args[0] for v in self.sums),
            *(s.expr for s in self.stores),
        ]


@dataclass
class LoopSweep:
    """One pass over the chunks.

    Attributes:
        nests: Its loops, in order.
        sums: The reductions to which every chunk contributes.
        local: The values kept only while one part of a chunk is processed.
    """

    nests: list[Nest]
    sums: list[Value]
    local: list[Value]


class Shapes:
    """The dimensions of all values of a program.

    Args:
        program: The program.
        rank: The number of dimensions of the view.
        present: How many of the leading ones may have a size other than 1.
    """

    def __init__(self, program: Program, rank: int, present: int | None = None) -> None:
        self.rank = rank
        self.all: Dims = frozenset(range(rank if present is None else present))
        self.of = {symbol: self.of_kind(kind) for symbol, kind in program.kinds().items()}

    def of_kind(self, kind: Kind) -> Dims:
        """Return the dimensions of a value of the given kind."""
        if kind.level is Level.ELEMENT:
            return self.all
        if kind.level is Level.REDUCED:
            return self.all - {d % self.rank for d in kind.dims}
        return frozenset()

    def __getitem__(self, symbol: sp.Symbol) -> Dims:
        """Return the dimensions of a value."""
        return self.of[symbol]

    def meet(self, expr: sp.Expr) -> Dims:
        """Return the broadcast dimensions of an elementwise expression."""
        return frozenset().union(*(self.of[s] for s in expr.free_symbols))

    def reduced(self, value: Value) -> Dims:
        """Return the dimensions that a reduction reduces."""
        domain = self.meet(value.expr.args[0])
        return domain - self.of[value.symbol]


class LoopPlan:
    """A plan for tensors that are cut along one dimension.

    Args:
        program: The step.
        stores: Its stores to tensors.
        shapes: The dimensions of its values.
        chunked: The dimension to cut.

    Attributes:
        sweeps: The sweeps, in order.
        after: What one thread computes before the first sweep and after each: per-tensor numbers, and nests over the
            other dimensions. It starts by finishing the reductions of the sweep.
        kept: The values kept for the whole step, except for numbers.
        last: The stores that wait until everything else is done.
    """

    def __init__(self, program: Program, stores: Sequence[Store], shapes: Shapes, chunked: int) -> None:
        self.program, self.shapes, self.chunked = program, shapes, chunked
        self.values = {v.symbol: v for v in program.tensor}
        self.order = {v.symbol: i for i, v in enumerate(program.tensor)}
        self.level: dict[sp.Symbol, int] = {}
        for value in program.tensor:
            before = max((self.level.get(s, 0) for s in value.expr.free_symbols), default=0)
            self.level[value.symbol] = before + self.is_shared(value)
        inside = [s for s in stores if chunked in shapes.of_kind(s.kind)]
        outside = [s for s in stores if s not in inside]
        shared = [v for v in program.tensor if self.is_shared(v)]
        ends = [self.level[v.symbol] - 1 for v in shared]
        ends += [max((self.level.get(x, 0) for x in s.expr.free_symbols), default=0) for s in inside]
        self.kept: list[Value] = []
        found: list[LoopSweep] = []
        for k in range(max(ends, default=-1), -1, -1):
            sums = [v for v in shared if self.level[v.symbol] == k + 1]
            found.append(self._sweep(k, sums, inside if k == max(ends) else []))
        self.sweeps = found[::-1]
        self.after = [self._outside(level) for level in range(len(self.sweeps) + 1)]
        self.kept += [v for v in program.tensor if self.is_outside(v) and shapes[v.symbol]]
        self.last = grouped_stores(outside, shapes)

    def is_shared(self, value: Value) -> bool:
        """Return whether a reduction needs every chunk."""
        return value.reduces and self.chunked in self.shapes.reduced(value)

    def is_inside(self, symbol: sp.Symbol) -> bool:
        """Return whether a value belongs to chunks but is not elementwise."""
        return symbol in self.values and self.chunked in self.shapes[symbol] and self.shapes[symbol] != self.shapes.all

    def is_outside(self, value: Value) -> bool:
        """Return whether a value is computed by one thread."""
        return self.chunked not in self.shapes[value.symbol]

    def is_element(self, symbol: sp.Symbol) -> bool:
        """Return whether a value is recomputed wherever it is read."""
        return symbol in self.values and self.shapes[symbol] == self.shapes.all

    def elements(self, exprs: Iterable[sp.Expr]) -> list[Value]:
        """Return the elementwise values that expressions depend on, in order."""
        return self._sorted(self._reached(exprs, self.is_element))

    # Sweeps -------------------------------------------------------------------------------------------------

    def _reached(self, exprs: Iterable[sp.Expr], follows: Callable[[sp.Symbol], bool]) -> set[sp.Symbol]:
        """Return the values that expressions depend on, following those that ``follows`` accepts."""
        found: set[sp.Symbol] = set()
        todo = [s for e in exprs for s in e.free_symbols]
        while todo:
            symbol = todo.pop()
            if symbol not in found and follows(symbol):
                found.add(symbol)
                todo += self.values[symbol].expr.free_symbols
        return found

    def _sorted(self, symbols: Iterable[sp.Symbol]) -> list[Value]:
        return [self.values[s] for s in sorted(symbols, key=self.order.__getitem__)]

    def _sweep(self, k: int, sums: list[Value], stores: list[Store]) -> LoopSweep:
        """Return the sweep after ``k`` others; later ones are already planned, with the values they need kept."""
        kept = [v for v in self.kept if self.level[v.symbol] == k]
        goals = [*(v.expr.args[0] for v in sums), *(s.expr for s in stores), *(v.symbol for v in kept)]

        def follows(symbol: sp.Symbol) -> bool:
            return self.is_element(symbol) or (self.is_inside(symbol) and self.level[symbol] == k)

        needed = self._sorted(self._reached(goals, follows))
        inside = [v for v in needed if self.is_inside(v.symbol)]
        read = {s for e in (*goals, *(v.expr for v in needed)) for s in e.free_symbols}
        earlier = {s for s in read if self.is_inside(s) and self.level[s] < k}
        self.kept += [v for v in self._sorted(earlier) if v not in self.kept]
        return LoopSweep(self._nests(needed, sums, stores), sums, [v for v in inside if v not in kept])

    def _nests(self, needed: list[Value], sums: list[Value], stores: list[Store]) -> list[Nest]:
        """Return the loops of a sweep: alternately over elements and over values reduced from them."""
        turn: dict[sp.Symbol, int] = {}

        def when(expr: sp.Expr) -> int:
            return max((turn.get(s, 0) for s in expr.free_symbols), default=0)

        whole = self.shapes.all
        for v in needed:
            over = v.reduces and self.shapes.meet(v.expr.args[0]) == whole
            turn[v.symbol] = when(v.expr) + over
        reductions = [v for v in needed if v.reduces] + sums
        last = max((when(v.expr) for v in reductions), default=0)
        last = max([last, *turn.values(), *(when(s.expr) for s in stores)])
        elements = [s for s in stores if self.shapes.of_kind(s.kind) == whole]
        found: list[Nest] = []
        for i in range(last + 1):
            small = [v for v in needed if self.is_inside(v.symbol) and turn[v.symbol] == i]
            small = [v for v in small if not v.reduces or self.shapes.meet(v.expr.args[0]) != whole]
            found += self._grouped(small + [v for v in sums if when(v.expr) == i and self._domain(v) != whole])
            large = [v for v in reductions if when(v.expr) == i and self._domain(v) == whole]
            nest = Nest(whole, [], large, elements if i == last else [])
            found += [nest] if nest.exprs() else []
        return found + grouped_stores([s for s in stores if s not in elements], self.shapes)

    def _domain(self, value: Value) -> Dims:
        """Return the dimensions of the loops that compute a value."""
        return self.shapes.meet(value.expr.args[0]) if value.reduces else self.shapes[value.symbol]

    def _grouped(self, values: Iterable[Value]) -> list[Nest]:
        """Return loops for values, in order; neighbours with the same dimensions share loops."""
        found: list[Nest] = []
        results: set[sp.Symbol] = set()
        for v in values:
            domain = self._domain(v)
            if not found or found[-1].domain != domain or v.expr.free_symbols & results:
                found.append(Nest(domain))
                results = set()
            (found[-1].sums if v.reduces else found[-1].values).append(v)
            results |= {v.symbol} if v.reduces else set()
        return found

    # Between sweeps -----------------------------------------------------------------------------------------

    def _outside(self, level: int) -> list[Nest]:
        """Return what one thread computes after ``level`` sweeps."""
        mine = [v for v in self.program.tensor if self.is_outside(v) and self.level[v.symbol] == level]
        return self._grouped(v for v in mine if not self.is_shared(v))


def grouped_stores(stores: Iterable[Store], shapes: Shapes) -> list[Nest]:
    """Return loops for stores, the largest first, because smaller ones may overwrite what they read."""
    found: dict[Dims, Nest] = {}
    for store in stores:
        domain = shapes.of_kind(store.kind)
        found.setdefault(domain, Nest(domain)).stores.append(store)
    return sorted(found.values(), key=lambda nest: -len(nest.domain))
