"""Generates the loops of a nest in C++ (see :mod:`optlang.codegen.cpp_plan`)."""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from optlang.codegen.cpp_plan import Dims, LoopSweep, Nest
from optlang.codegen.cpp_terms import REDUCTIONS, Locations
from optlang.codegen.memory import INDENT
from optlang.codegen.spelling import PRODUCT
from optlang.ir import algebra
from optlang.ir.program import Value


class NestWriter:
    """Writes the loops of a nest.

    Args:
        places: The memory locations of values.
        nest: The nest.
        indent: The indentation.
        bounds: The bounds of the index of the chunked dimension.
        sweep: The enclosing sweep; None for a nest between sweeps.
    """

    def __init__(
        self, places: Locations, nest: Nest, indent: str, bounds: tuple[str, str], sweep: LoopSweep | None
    ) -> None:
        self.places, self.nest, self.indent, self.bounds, self.sweep = places, nest, indent, bounds, sweep
        self.terms, self.shapes, self.names = places.terms, places.shapes, places.terms.names
        self.lane = places.lane if places.lane in nest.domain else None
        self.outer = sorted(nest.domain - {places.lane})
        self.before: list[str] = []  # in the innermost loop but the lane's: pointers, and lane invariants
        self.inside: list[str] = []  # in the lane's loop
        self.clauses: list[str] = []
        self.behind: list[str] = []

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        if not self.nest.domain:
            yield from self._numbers()
            return
        for v in self.nest.sums:
            if self.shapes[v.symbol] and not self._is_shared(v):
                yield self.indent[len(INDENT) :] + self.places.started(v, self.sweep is not None)
            elif not self.shapes[v.symbol]:
                how = REDUCTIONS[algebra.name_of(v.expr)]
                yield f"{self.indent}{how.type} all_{self.terms.sum(v)} = {how.start};"
        self._body()
        lines = list(self._looped(self.nest.domain, self._lane()))
        if self.before and not self.outer and not (self.sweep is not None and len(self.sweep.nests) == 1):
            # Without loops around the lane, pointers of several nests would share a scope.
            lines = [f"{self.indent}{{", *(INDENT + line for line in lines), f"{self.indent}}}"]
        yield from lines
        for v in self.nest.sums:
            if self.shapes[v.symbol]:
                yield from () if self._is_shared(v) else self._converted(v)
            elif self._is_shared(v):
                total, part = self.terms.sum(v), f"all_{self.terms.sum(v)}"
                joined = REDUCTIONS[algebra.name_of(v.expr)].joined(f"{total}[0]", part)
                yield f"{self.indent}{total}[0] = {joined};"
            else:
                yield from self.places.number(v, f"all_{self.terms.sum(v)}")

    def _numbers(self) -> Iterator[str]:
        """Yield the lines for per-tensor numbers."""
        yield from self.terms.assigned(self.nest.values, self.indent)
        for v in self.nest.values:
            yield f"{self.indent}row.number[{self.places.numbers[v.symbol]}] = {self.names[v.symbol]};"
        for store in self.nest.stores:
            i = self.terms.targets[store.target]
            yield self.indent + self.terms.stored(store, f"at_{i}[0]")

    # Loops --------------------------------------------------------------------------------------------------

    def _looped(self, domain: Dims, body: list[str], lane: bool = False) -> Iterator[str]:
        """Yield loops over a domain around a body; the lane's loop is included only on request."""
        indent = self.indent
        dims = sorted(domain - {self.places.lane}) + ([self.places.lane] if lane and self.places.lane in domain else [])
        for d in dims:
            yield f"{indent}{self._loop(d)} {{"
            indent += INDENT
        yield from (indent + line for line in body)
        for i in range(len(dims), 0, -1):
            yield f"{self.indent}{INDENT * (i - 1)}}}"

    def _loop(self, d: int) -> str:
        begin, end = self.bounds if d == self.places.plan.chunked and self.sweep is not None else ("0", f"n{d}")
        return f"for (int64_t i{d} = {begin}; i{d} < {end}; ++i{d})"

    def _lane(self) -> list[str]:
        """Return the body of the innermost loop outside the lane."""
        if self.lane is None:
            return [*self.before, *self.inside, *self.behind]
        return [
            *self.before,
            f"#pragma omp simd{''.join(self.clauses)}",
            f"{self._loop(self.lane)} {{",
            *(INDENT + line for line in self.inside),
            "}",
            *self.behind,
        ]

    # Loop bodies --------------------------------------------------------------------------------------------

    def _body(self) -> None:
        """Write the body of the loops."""
        nest, plan = self.nest, self.places.plan
        values = plan.elements(nest.exprs()) if nest.domain == self.shapes.all else nest.values
        read = {s for e in (*nest.exprs(), *(v.expr for v in values)) for s in e.free_symbols}
        read -= {v.symbol for v in values}
        stored = {self.terms.targets[s.target] for s in nest.stores}
        pointed: set[int] = set()
        for symbol in sorted((s for s in read if self.shapes[s]), key=lambda s: self.names[s]):
            self._read(symbol, stored, pointed)
        self.inside += self.terms.assigned(values, "")
        for v in nest.values:
            self._keep(v)
        for store in nest.stores:
            i, dims = self.terms.targets[store.target], self.shapes.of_kind(store.kind)
            if i not in pointed:
                self._point(f"x_{i}", f"type_{i}", f"at_{i}", self.places.theirs(dims))
            place = self._place(f"x_{i}", f"at_{i}", self.places.theirs(dims))
            self.inside.append(self.terms.stored(store, place))
        for v in nest.sums:
            self._add(v)

    def _point(self, name: str, kind: str, base: str, strides: dict[int, str], local: bool = False) -> None:
        """Define a pointer to the values of a lane."""
        if self.lane is not None and self.lane in strides:
            at = self.places.index(strides, strides.keys() - {self.lane}, local)
            self.before.append(f"{kind}* __restrict const {name} = {base}{'' if at == '0' else f' + {at}'};")

    def _place(self, name: str, base: str, strides: dict[int, str], local: bool = False) -> str:
        """Return an access to a value: through the lane's pointer, or directly if it is lane-invariant."""
        if self.lane is not None and self.lane in strides:
            return f"{name}[{self.places.index(strides, {self.lane}, local)}]"
        return f"{base}[{self.places.index(strides, strides.keys(), local)}]"

    def _read(self, symbol: sp.Symbol, stored: set[int], pointed: set[int]) -> None:
        """Read a tensor or a kept value."""
        dims = self.shapes[symbol]
        if symbol in self.terms.tensors:
            i = self.terms.tensors[symbol]
            where = f"x_{i}", f"at_{i}", self.places.theirs(dims)
            self._point(where[0], f"type_{i}" if i in stored else f"const type_{i}", *where[1:])
            pointed.add(i)
            text = f"static_cast<real>({self._place(*where)})"
        else:
            local, name = self._is_local(symbol), self.names[symbol]
            strides = self.places.ours(dims, local)
            self._point(f"x_{name}", "const real", f"at_{name}", strides, local)
            text = self._place(f"x_{name}", f"at_{name}", strides, local)
        same = self.lane is not None and self.lane not in dims
        (self.before if same else self.inside).append(f"const real {self.names[symbol]} = {text};")

    def _keep(self, value: Value) -> None:
        """Store a value that is kept."""
        local, name = self._is_local(value.symbol), self.names[value.symbol]
        strides = self.places.ours(self.shapes[value.symbol], local)
        self._point(f"x_{name}", "real", f"at_{name}", strides, local)
        self.inside.append(f"{self._place(f'x_{name}', f'at_{name}', strides, local)} = {name};")

    def _add(self, value: Value) -> None:
        """Accumulate into a reduction."""
        dims, total, how = self.shapes[value.symbol], self.terms.sum(value), REDUCTIONS[algebra.name_of(value.expr)]
        text = self.terms.writer.text(value.expr.args[0], PRODUCT)
        if dims and (self.lane is None or self.lane in dims):
            local = self._is_local_sum(value)
            strides = self.places.ours(dims, local)
            self._point(f"x_{total}", "double", total, strides, local)
            place = self._place(f"x_{total}", total, strides, local)
            self.inside.append(f"{place} = {how.joined(place, f'static_cast<double>({text})')};")
            return
        self.inside.append(f"all_{total} = {how.added(f'all_{total}', text)};")
        if self.lane is not None:
            self.clauses.append(f" reduction({how.operator} : all_{total})")
        if dims:
            self.before.append(f"{how.type} all_{total} = {how.start};")
            local = self._is_local_sum(value)
            place = f"{total}[{self.places.index(self.places.ours(dims, local), dims, local)}]"
            self.behind.append(f"{place} = {how.joined(place, f'all_{total}')};")

    def _converted(self, value: Value) -> Iterator[str]:
        """Yield the lines that keep a reduction whose sum is complete."""
        dims, name, total = self.shapes[value.symbol], self.names[value.symbol], self.terms.sum(value)
        ours, local, of_sum = self.places.ours, self._is_local(value.symbol), self._is_local_sum(value)
        place = f"at_{name}[{self.places.index(ours(dims, local), dims, local)}]"
        text = self.places.divided(value, f"{total}[{self.places.index(ours(dims, of_sum), dims, of_sum)}]")
        yield from self._looped(dims, [f"{place} = static_cast<real>({text});"], lane=True)

    # Predicates ---------------------------------------------------------------------------------------------

    def _is_shared(self, value: Value) -> bool:
        """Return whether a reduction combines partial results of the chunks."""
        return self.sweep is not None and value in self.sweep.sums

    def _is_local(self, symbol: sp.Symbol) -> bool:
        """Return whether a value is kept only while part of a chunk is processed."""
        return self.sweep is not None and any(v.symbol == symbol for v in self.sweep.local)

    def _is_local_sum(self, value: Value) -> bool:
        return self.sweep is not None and value not in self.sweep.sums
