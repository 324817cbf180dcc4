"""In which order a C++ kernel computes the values of a step, and over which loops.

A tensor is viewed with a few dimensions (one, where nothing is about dimensions). It is cut into *chunks* along one of
them, which threads take. A *sweep* is one pass over all chunks. It ends where a reduction needs all of them: then one
thread *finishes* what has been summed. Within a chunk everything that concerns one index of the chunked dimension is
there, so a reduction over other dimensions ends no sweep: it ends a *nest*, a few loops over a part of the chunk that
is small enough for the cache.

Values of elements are computed again in every nest that reads them, all others are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sympy as sp

from optlang.ir.program import Program, Store, Value
from optlang.kinds import Kind, Level

#: Which dimensions of the view a value has; the others have been reduced. A number of a tensor has none.
Dims = frozenset[int]


@dataclass
class Nest:
    """Loops over some dimensions.

    Attributes:
        domain: The dimensions.
        values: The values of that shape that are kept.
        sums: The reductions of values of that shape.
        stores: What is stored.
    """

    domain: Dims
    values: list[Value] = field(default_factory=list)
    sums: list[Value] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)

    def exprs(self) -> list[sp.Expr]:
        """Return the formulas it computes."""
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
        sums: The reductions of which every chunk gives a part.
        local: The values that are kept while one part of a chunk is worked on.
    """

    nests: list[Nest]
    sums: list[Value]
    local: list[Value]


class Shapes:
    """The dimensions of everything that a program knows.

    Args:
        program: The program.
        rank: Dimensions of the view.
        present: How many of them, the first, may have a size other than 1.
    """

    def __init__(self, program: Program, rank: int, present: int | None = None) -> None:
        self.rank = rank
        self.all: Dims = frozenset(range(rank if present is None else present))
        self.of = {symbol: self.of_kind(kind) for symbol, kind in program.kinds().items()}

    def of_kind(self, kind: Kind) -> Dims:
        """Return the dimensions that a value of a kind has."""
        if kind.level is Level.ELEMENT:
            return self.all
        if kind.level is Level.REDUCED:
            return self.all - {d % self.rank for d in kind.dims}
        return frozenset()

    def __getitem__(self, symbol: sp.Symbol) -> Dims:
        """Return the dimensions of a value."""
        return self.of[symbol]

    def meet(self, expr: sp.Expr) -> Dims:
        """Return the dimensions of a formula of elements."""
        return frozenset().union(*(self.of[s] for s in expr.free_symbols))

    def reduced(self, value: Value) -> Dims:
        """Return the dimensions that a reduction is over."""
        domain = self.meet(value.expr.args[0])
        return domain - self.of[value.symbol]


class LoopPlan:
    """What is computed when, if tensors are cut along one dimension.

    Args:
        program: The step.
        stores: Its stores to tensors.
        shapes: Shapes of its values.
        chunked: The dimension.

    Attributes:
        sweeps: The sweeps, in order.
        after: What one thread computes before the first sweep and after each: numbers of the tensor, and nests over the
            other dimensions. Reductions whose parts the sweep has left come first.
        kept: The values that are kept for the whole step, those of numbers apart.
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
        """Whether a reduction needs every chunk."""
        return value.reduces and self.chunked in self.shapes.reduced(value)

    def is_inside(self, symbol: sp.Symbol) -> bool:
        """Whether a value belongs to chunks without being of elements."""
        return symbol in self.values and self.chunked in self.shapes[symbol] and self.shapes[symbol] != self.shapes.all

    def is_outside(self, value: Value) -> bool:
        """Whether one thread computes a value."""
        return self.chunked not in self.shapes[value.symbol]

    def is_element(self, symbol: sp.Symbol) -> bool:
        """Whether a value is recomputed wherever it is read."""
        return symbol in self.values and self.shapes[symbol] == self.shapes.all

    def elements(self, exprs: Iterable[sp.Expr]) -> list[Value]:
        """Return the values of elements that formulas need, in order."""
        return self._sorted(self._reached(exprs, self.is_element))

    # Sweeps -------------------------------------------------------------------------------------------------

    def _reached(self, exprs: Iterable[sp.Expr], follows: Callable[[sp.Symbol], bool]) -> set[sp.Symbol]:
        """Return the values behind formulas, as far as they are followed."""
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
        """Return the sweep after ``k`` others; those after it are known, and what they want to be kept."""
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
        """Return the loops of a sweep: by turns over elements and over what has been reduced of them."""
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
        """Return the dimensions of the loops that a value is computed in."""
        return self.shapes.meet(value.expr.args[0]) if value.reduces else self.shapes[value.symbol]

    def _grouped(self, values: Iterable[Value]) -> list[Nest]:
        """Return loops for some values, in order; neighbours over the same dimensions share them."""
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
        """Return what one thread computes after some sweeps."""
        mine = [v for v in self.program.tensor if self.is_outside(v) and self.level[v.symbol] == level]
        return self._grouped(v for v in mine if not self.is_shared(v))


def grouped_stores(stores: Iterable[Store], shapes: Shapes) -> list[Nest]:
    """Return the loops that store some values, the largest first, as others may be stored from what they read."""
    found: dict[Dims, Nest] = {}
    for store in stores:
        domain = shapes.of_kind(store.kind)
        found.setdefault(domain, Nest(domain)).stores.append(store)
    return sorted(found.values(), key=lambda nest: -len(nest.domain))
