"""The step of a variant -> C++ that updates the tensors of many parameters in one call.

What can go this way, and in which sweeps, is in :mod:`optlang.backends.sweeps`. A *sweep* is a loop over the elements
of one parameter, or of a piece of it, which the compiler makes vectors of; the functions that it calls are those of
``cpp_kernels.h``. A sweep leaves its part of each reduction, in float64; then one thread *finishes* it: it adds up the
parts in order and computes the numbers of the parameter that follow. ``cpp_step.h`` cuts parameters into pieces and has
threads take them.

The types of the tensors are no part of the text: it is built for any by the names ``real``, ``type_0`` and so on.
Arithmetic is done in ``real``, and what is stored is rounded where the narrow form of
:mod:`optlang.backends.python_source` rounds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import sympy as sp

from optlang.backends.cpp_writer import CppWriter, knows
from optlang.backends.memory import INDENT, Memory
from optlang.backends.spelling import PRODUCT
from optlang.backends.sweeps import Sweep, needed, sweeps
from optlang.compiled import Slot
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.language.kinds import ELEMENT
from optlang.language.quoting import remark

#: What OpenMP calls a reduction, its type, where it starts, and how two parts of it become one.
REDUCTIONS = {
    "sum": ("+", "double", "0.0", "{} + {}"),
    "mean": ("+", "double", "0.0", "{} + {}"),
    "max": ("max_", "real", "-infinite", "max_({}, {})"),
    "min": ("min_", "real", "infinite", "min_({}, {})"),
}


def emit(program: Program, slots: Sequence[Slot], tensors: Sequence[str]) -> str:
    """Return the kernels of a step; empty if one of its functions has no spelling in C++.

    Args:
        program: The step, after the passes.
        slots: The states and carried tensors that it knows.
        tensors: Names of the tensors that the kernels take, in order: ``p``, ``g`` and states.
    """
    exprs = [value.expr for value in program.tensor] + [store.expr for store in program.stores if store.kind.on_device]
    if not all(map(knows, exprs)):
        return ""
    scalars = [slot.name for slot in slots if slot.place == "scalar"]
    return "\n".join(_Kernels(program, tensors, scalars).lines()) + "\n"


class _Kernels:
    """Writes the kernels of a step.

    Args:
        program: The step.
        tensors: Names of the tensors that the kernels take, in order.
        scalars: Names of those that are one number.
    """

    def __init__(self, program: Program, tensors: Sequence[str], scalars: Sequence[str]) -> None:
        memory = Memory(program, tensors, narrow=True)
        self.program, self.rounded = memory.program, memory.rounded()
        self.places = {name: i for i, name in enumerate(tensors)}
        self.pointers = {memory.stored[name]: i for name, i in self.places.items()}
        self.inputs = {i.symbol: i.name for i in self.program.inputs}
        self.scalars = {symbol for symbol, name in self.inputs.items() if name in scalars}
        self.sums = [value for value in self.program.tensor if value.reduces]
        self.formulas = [v for v in self.program.tensor if v.kind != ELEMENT and not v.reduces]
        self.numbers = [*sorted(self.scalars, key=str), *(v.symbol for v in (*self.sums, *self.formulas))]
        stores = sorted(memory.stores, key=lambda s: s.target == "p")
        self.number_stores = [s for s in stores if s.kind != ELEMENT]
        self.sweeps = sweeps(self.program, [s for s in stores if s.kind == ELEMENT])
        self.coefficients = {symbol: i for i, symbol in enumerate(self.program.coefficients())}
        self.names = _names([*self.coefficients, *self.program.kinds()])
        flags = {v.symbol for v in (*self.program.host, *self.formulas) if v.boolean}
        flags |= {i.symbol for i in self.program.inputs if i.name == "first"}
        self.writer = CppWriter(self.names.__getitem__, frozenset(flags))

    def lines(self) -> Iterator[str]:
        """Yield the lines of all kernels."""
        count = len(self.sweeps)
        sliced = "true" if count == 1 and not self.sums and not self.numbers and not self.number_stores else "false"
        yield f"constexpr int tensors = {len(self.places)}, sums = {len(self.sums)}, sweeps = {count};"
        yield f"constexpr bool sliced = {sliced};"
        yield f"using Row = Parameter<tensors, {len(self.numbers)}>;"
        known: set[sp.Symbol] = set(self.scalars)
        yield ""
        yield from self._ready(known)
        for i, sweep in enumerate(self.sweeps, 1):
            yield ""
            yield from self._sweep(sweep, f"sweep_{i}")
            yield ""
            yield from self._finish(sweep, f"finish_{i}", known)
        yield ""
        yield from self._done()
        yield ""
        for what, kind in (
            ("sweep", "Row&, int64_t, int64_t, const real*, double*"),
            ("finish", "Row&, const real*, const double*, int64_t"),
        ):
            each = ", ".join(f"{what}_{i}" for i in range(1, count + 1)) or "nullptr"
            yield f"void (*const {what}[])({kind}) = {{{each}}};"

    # Sweeps -------------------------------------------------------------------------------------------------

    def _sweep(self, sweep: Sweep, name: str) -> Iterator[str]:
        """Yield the lines of a sweep over some elements of a parameter."""
        exprs = [*(v.expr for v in sweep.sums), *(s.expr for s in sweep.stores)]
        wanted = needed(self.program, exprs)
        mine = [v for v in self.program.tensor if v.symbol in wanted and v.kind == ELEMENT]
        direct = {x for e in (*(v.expr for v in mine), *exprs) for x in e.free_symbols}
        read = [s for s, n in self.inputs.items() if s in direct and n in self.places and s not in self.scalars]
        yield f"void {name}(Row& row, int64_t begin, int64_t end, const real* c, double* parts) {{"
        written = {self.places[s.target] for s in sweep.stores}
        for i in sorted({self.places[self.inputs[s]] for s in read} | written):
            kind = f"type_{i}" if i in written else f"const type_{i}"
            yield f"{INDENT}{kind}* __restrict const at_{i} = static_cast<{kind}*>(row.at[{i}]);"
        yield from self._known(direct)
        clauses = []
        for value in sweep.sums:
            operator, kind, start, _ = REDUCTIONS[algebra.name_of(value.expr)]
            all_ = f"all_{self.sums.index(value)}"
            yield f"{INDENT}{kind} {all_} = {start};"
            clauses.append(f" reduction({operator} : {all_})")
        yield f"{INDENT}#pragma omp simd{''.join(clauses)}"
        yield f"{INDENT}for (int64_t i = begin; i < end; ++i) {{"
        for symbol in read:
            i = self.places[self.inputs[symbol]]
            yield f"{INDENT * 2}const real {self.names[symbol]} = static_cast<real>(at_{i}[i]);"
        yield from self._values(mine, INDENT * 2)
        for store in sweep.stores:
            i = self.places[store.target]
            yield f"{INDENT * 2}at_{i}[i] = static_cast<type_{i}>({self.writer.text(store.expr)});"
        for value in sweep.sums:
            all_, joined = f"all_{self.sums.index(value)}", REDUCTIONS[algebra.name_of(value.expr)][3]
            yield f"{INDENT * 2}{all_} = {joined.format(all_, self.writer.text(value.expr.args[0], PRODUCT))};"
        yield f"{INDENT}}}"
        for value in sweep.sums:
            yield f"{INDENT}parts[{self.sums.index(value)}] = all_{self.sums.index(value)};"
        yield "}"

    def _values(self, values: Iterable[Value], indent: str) -> Iterator[str]:
        """Yield the definitions of some values, with the lines of the rule that they come from."""
        line = 0
        for value in values:
            if value.line not in (0, line):
                line = value.line
                yield indent + remark(self.program.notes[line], "//")
            text = self.writer.text(value.expr)
            if value.symbol in self.rounded:  # later formulas see what is stored
                text = f"rounded<type_{self.pointers[self.rounded[value.symbol]]}>({text})"
            kind = "bool" if value.boolean and value.symbol not in self.writer.flags else "real"
            yield f"{indent}const {kind} {self.names[value.symbol]} = {text};"

    # Numbers of a parameter ---------------------------------------------------------------------------------

    def _ready(self, known: set[sp.Symbol]) -> Iterator[str]:
        """Yield the lines of what is done for a parameter before its first sweep."""
        yield "void ready(Row& row, const real* c) {"
        for i, symbol in enumerate(self.numbers):
            if symbol in self.scalars:
                place = self.places[self.inputs[symbol]]
                yield f"{INDENT}row.number[{i}] = static_cast<real>(*static_cast<type_{place}*>(row.at[{place}]));"
        yield from self._follow(known)
        yield "}"

    def _finish(self, sweep: Sweep, name: str, known: set[sp.Symbol]) -> Iterator[str]:
        """Yield the lines of what is done for a parameter after a sweep."""
        yield f"void {name}(Row& row, const real* c, const double* parts, int64_t n) {{"
        for value in sweep.sums:
            k, (_, _, start, joined) = self.sums.index(value), REDUCTIONS[algebra.name_of(value.expr)]
            joined = joined.format(f"all_{k}", f"parts[sums*i + {k}]")
            yield f"{INDENT}double all_{k} = {start};"
            yield f"{INDENT}for (int64_t i = 0; i < n; ++i) all_{k} = {joined};"
            mean = "/static_cast<double>(row.size)" if algebra.name_of(value.expr) == "mean" else ""
            yield f"{INDENT}row.number[{self.numbers.index(value.symbol)}] = static_cast<real>(all_{k}{mean});"
            known.add(value.symbol)
        yield from self._follow(known)
        yield "}"

    def _follow(self, known: set[sp.Symbol]) -> Iterator[str]:
        """Yield the lines that compute the numbers which follow from those that are known now."""
        numbers = set(self.numbers)
        fresh = []
        for value in self.formulas:
            if value.symbol not in known and not (value.expr.free_symbols & numbers) - known:
                fresh.append(value)
                known.add(value.symbol)
        if fresh:
            read = {x for v in fresh for x in v.expr.free_symbols} - {v.symbol for v in fresh}
            yield from self._known(read)
            yield from self._values(fresh, INDENT)
        for value in fresh:
            yield f"{INDENT}row.number[{self.numbers.index(value.symbol)}] = {self.names[value.symbol]};"

    def _known(self, read: set[sp.Symbol]) -> Iterator[str]:
        """Yield the lines that read coefficients and numbers."""
        for symbol, i in self.coefficients.items():
            if symbol in read:
                yield f"{INDENT}const real {self.names[symbol]} = c[{i}];"
        for i, symbol in enumerate(self.numbers):
            if symbol in read:
                yield f"{INDENT}const real {self.names[symbol]} = row.number[{i}];"

    def _done(self) -> Iterator[str]:
        """Yield the lines of what is done for a parameter after its last sweep: its numbers are stored."""
        yield "void done(Row& row, const real* c) {"
        yield from self._known({x for s in self.number_stores for x in s.expr.free_symbols})
        for store in self.number_stores:
            i, text = self.places[store.target], self.writer.text(store.expr)
            yield f"{INDENT}*static_cast<type_{i}*>(row.at[{i}]) = static_cast<type_{i}>({text});"
        yield "}"


def _names(symbols: Iterable[sp.Symbol]) -> dict[sp.Symbol, str]:
    """Return what symbols are called in C++, which knows no letters but those of ASCII everywhere."""
    names: dict[sp.Symbol, str] = {}
    taken: set[str] = set()
    for symbol in symbols:
        if symbol in names:
            continue
        name = "v_" + re.sub(r"[^0-9A-Za-z_]", lambda found: f"u{ord(found.group()):04x}", symbol.name)
        while name in taken:
            name += "_"
        names[symbol] = name
        taken.add(name)
    return names
