"""Generates C++ for a kernel, which updates the tensors of many parameters in one call.

:mod:`optlang.codegen.cpp_plan` plans the loops; this module writes them. The innermost loop of a nest runs along the
*lane*, one dimension of the view, and is vectorised by the compiler; it calls functions of ``cpp_kernels.h``.
Reductions are summed in float64, in an order that does not depend on the threads. ``cpp_step.h`` cuts parameters into
chunks, distributes them over threads, and chooses the dimension and the lane by size.

The code is generic in the dtypes of the tensors, through the names ``real``, ``type_0`` and so on. Arithmetic is done
in ``real``, and stores round where the narrow form of :mod:`optlang.codegen.python_source` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import sympy as sp

from optlang.artifact import AnySlot, Kernel, Storage, View
from optlang.codegen.cpp_nest import NestWriter
from optlang.codegen.cpp_plan import LoopPlan, LoopSweep, Nest, Shapes
from optlang.codegen.cpp_terms import REDUCTIONS, Locations, Terms
from optlang.codegen.cpp_view import groups, merged
from optlang.codegen.cpp_writer import knows
from optlang.codegen.memory import INDENT
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Level


def emit(kernel: Kernel) -> str:
    """Return the C++ of a kernel; empty if it uses matrices, or a function without a C++ spelling."""
    program, layout = kernel.program, kernel.layout
    exprs = [value.expr for value in program.tensor] + [store.expr for store in program.stores if store.kind.on_device]
    rank = kernel.ndim if layout.exact else layout.front + layout.back + 1
    if kernel.matrices or not (rank and _suits(program, kernel.kept, Shapes(program, rank)) and all(map(knows, exprs))):
        return ""
    grouped = groups(program, rank)
    return "\n".join(_lines(*merged(program, layout, grouped), kernel.tensors, grouped)) + "\n"


def _suits(program: Program, slots: Sequence[AnySlot], shapes: Shapes) -> bool:
    """Return whether every value is elementwise, reduced, or a number."""
    levels = {k.level for k in program.kinds().values()} | {store.kind.level for store in program.stores}
    reductions = [v for v in program.tensor if v.reduces]
    return (
        Level.MATRIX not in levels
        and all(slot.storage is not Storage.MATRIX for slot in slots)
        and not any(value.matrices for value in program.tensor)
        and all(algebra.name_of(v.expr) in REDUCTIONS and shapes.meet(v.expr.args[0]) for v in reductions)
    )


def _ways(layout: View, rank: int) -> Iterator[tuple[int, int, int]]:
    """Yield the plans to generate: dimension to cut, lane, and number of dimensions present.

    Vectors run along the last dimension, or if that is short (3 x 3 filters) along a long one: the second, or the first
    if that merges several. Trailing dimensions of size 1 (1 x 1 filters) are dropped.
    """
    merged = not layout.exact and not layout.front  # the first dimension merges several
    leading = not layout.exact and layout.front and not layout.back  # the last one does, and usually has size 1
    second = max(0, min(1, rank - 2))
    lanes = {rank - 1, second, *([0] if merged else [])}
    yield from _laned({second} if leading and rank > 3 else lanes, rank)
    if leading:
        yield from _laned({rank - 2, min(1, rank - 2)}, rank - 1)
    if (layout.exact and rank > 2) or (leading and rank > 3):
        yield 0, 1, 2
    if merged and layout.back > 1:
        yield 0, 0, 1
        yield from ((1, lane, rank) for lane in range(rank - 1, 0, -1))  # for tensors without dimensions to merge


def _laned(lanes: set[int], present: int) -> Iterator[tuple[int, int, int]]:
    """Yield plans that cut tensors along the first dimension, one per lane, the last lane first."""
    yield from ((0, lane, present) for lane in sorted(lanes, reverse=True))


def _lines(program: Program, layout: View, tensors: Sequence[ValueName], grouped: Sequence[int]) -> Iterator[str]:
    """Yield the lines of the kernels of a step."""
    rank = grouped[-1] + 1
    ways = list(_ways(layout, rank))
    terms = Terms(program, tensors, rank, min(present for _, _, present in ways))
    yield f"constexpr int tensors = {len(tensors)}, rank = {rank}, viewed = {len(grouped)};"
    yield f"constexpr int grouped[] = {{{', '.join(map(str, grouped))}}};"
    yield f"using Row = Parameter<tensors, {len(terms.numbers)}>;"
    made = []
    for chunked, lane, present in ways:
        shapes = Shapes(terms.program, rank, present)
        plan = LoopPlan(_without_identities(terms.program, shapes), terms.stores, shapes, chunked)
        name = f"chunked_{chunked}_lane_{lane}_of_{present}"
        yield from ("", f"namespace {name} {{")
        yield from _Functions(Locations(terms, plan, lane)).lines()
        yield from ("", f"}}  // namespace {name}")
        sums, kept = any(sweep.sums for sweep in plan.sweeps), plan.kept or plan.last or terms.numbers
        sliced = len(plan.sweeps) == 1 and not sums and not kept
        functions = "ready, sweep, finish, done, kept_size, local_size, parts_size"
        fields = f"{chunked}, {lane}, {present}, {len(plan.sweeps)}, {str(sliced).lower()}"
        made.append(f"{{{fields}, {', '.join(f'{name}::{function}' for function in functions.split(', '))}}}")
    yield from ("", "constexpr Plan<Row> plans[] = {", *(f"{INDENT}{each}," for each in made), "};")


def _without_identities(program: Program, shapes: Shapes) -> Program:
    """Return a program without reductions over dimensions that were dropped because their size is 1."""

    def value(v: Value) -> Value:
        return replace(v, expr=v.expr.args[0]) if v.reduces and not shapes.reduced(v) else v

    return replace(program, phases=tuple(tuple(map(value, phase)) for phase in program.phases))


class _Functions:
    """Writes the functions of one plan with one lane.

    Args:
        places: The memory locations of values.
    """

    def __init__(self, places: Locations) -> None:
        self.places, self.plan, self.terms = places, places.plan, places.terms
        outside = [v for nests in self.plan.after for nest in nests for v in nest.sums if places.shapes[v.symbol]]
        self.kept = _Area("row.kept", self._arrays(self.plan.kept, outside, False))
        self.local, self.parts = [], []
        for sweep in self.plan.sweeps:
            inner = [v for nest in sweep.nests for v in nest.sums if v not in sweep.sums]
            self.local.append(_Area("local", self._arrays(sweep.local, inner, True)))
            self.parts.append(_Area("parts", self._arrays([], sweep.sums, False)))

    def lines(self) -> Iterator[str]:
        """Yield the lines of all functions, and of the tables that list them."""
        yield from self._outside("ready(Row& row, const real* c)", self.plan.after[0], first=True)
        for i, sweep in enumerate(self.plan.sweeps):
            yield from self._sweep(i, sweep)
            head = f"finish_{i}(Row& row, const real* c, const double* parts, int64_t chunks)"
            yield from self._outside(head, self.plan.after[i + 1], sweep.sums, self.parts[i])
        yield from self._outside("done(Row& row, const real* c)", self.plan.last)
        yield ""
        for what, kind in (("sweep", "Sweep"), ("finish", "Finish")):
            each = ", ".join(f"{what}_{i}" for i in range(len(self.plan.sweeps))) or "nullptr"
            yield f"constexpr {kind}<Row> {what}[] = {{{each}}};"
        for what, areas in (("kept", [self.kept]), ("local", self.local), ("parts", self.parts)):
            sizes = [area.size() for area in areas if area.arrays]
            text = f"std::max<int64_t>({{{', '.join(sizes)}}})" if len(sizes) > 1 else "".join(sizes) or "0"
            yield from ("", f"int64_t {what}_size(const Row& row) {{")
            yield from self._known_sizes([text])
            yield from (f"{INDENT}return {text};", "}")

    def _arrays(self, values: Iterable[Value], sums: Iterable[Value], local: bool) -> dict[str, _Array]:
        """Return the scratch arrays for values and sums, by name."""
        extent, shapes = self.places.extent, self.places.shapes
        arrays = {f"at_{self.terms.names[v.symbol]}": _Array("real", extent(shapes[v.symbol], local)) for v in values}
        return arrays | {self.terms.sum(v): _Array("double", extent(shapes[v.symbol], local)) for v in sums}

    @staticmethod
    def _known_sizes(lines: Sequence[str]) -> Iterator[str]:
        """Yield the lines that define the sizes used in ``lines``."""
        for d in sorted(set(map(int, re.findall(r"\bn(\d+)\b", "\n".join(lines))))):
            yield f"{INDENT}const int64_t n{d} = row.n[{d}];"

    # Functions ----------------------------------------------------------------------------------------------

    def _function(
        self, head: str, body: list[str], areas: Sequence[_Area], known: Iterable[sp.Symbol] = ()
    ) -> Iterator[str]:
        """Yield the lines of a function: definitions of the names that its body uses, then the body."""
        words = set(re.findall(r"\w+", "\n".join(body)))
        lines = []
        for i in range(len(self.terms.targets)):
            if f"at_{i}" in words:
                lines.append(f"{INDENT}type_{i}* const at_{i} = static_cast<type_{i}*>(row.at[{i}]);")
        for area in areas:
            lines += area.defined(words)
        for symbol, i in self.terms.coefficients.items():
            if self.terms.names[symbol] in words:
                lines.append(f"{INDENT}const real {self.terms.names[symbol]} = c[{i}];")
        for symbol, i in self.places.numbers.items():
            if self.terms.names[symbol] in words and symbol not in known:
                lines.append(f"{INDENT}const real {self.terms.names[symbol]} = row.number[{i}];")
        yield from ("", f"void {head} {{")
        yield from self._known_sizes([*lines, *body])
        yield from (*lines, *body, "}")

    def _sweep(self, index: int, sweep: LoopSweep) -> Iterator[str]:
        """Yield the lines of a sweep over a chunk."""
        local, parts = self.local[index], self.parts[index]
        body = [self.places.started(v) for v in sweep.sums]
        indent, bounds = INDENT, ("begin", "end")
        if local.arrays:
            body.append(f"{INDENT}for (int64_t from = begin; from < end; from += row.step) {{")
            body.append(f"{INDENT * 2}const int64_t to = std::min(from + row.step, end);")
            indent, bounds = INDENT * 2, ("from", "to")
        for nest in sweep.nests:
            body += NestWriter(self.places, nest, indent, bounds, sweep).lines()
        body += [f"{INDENT}}}"] if local.arrays else []
        head = f"sweep_{index}(Row& row, int64_t begin, int64_t end, const real* c, double* parts, double* local)"
        yield from self._function(head, body, [self.kept, local, parts])

    def _outside(
        self,
        head: str,
        nests: Sequence[Nest],
        sums: Sequence[Value] = (),
        parts: _Area | None = None,
        first: bool = False,
    ) -> Iterator[str]:
        """Yield the lines of a function that one thread runs between sweeps."""
        body: list[str] = []
        stored = [s for s in self.places.numbers if s in self.terms.tensors] if first else []
        for symbol in stored:
            name, i = self.terms.names[symbol], self.terms.tensors[symbol]
            body.append(f"{INDENT}const real {name} = static_cast<real>(at_{i}[0]);")
            body.append(f"{INDENT}row.number[{self.places.numbers[symbol]}] = {name};")
        for v in sums:
            body += self._gathered(v)
        for nest in nests:
            body += NestWriter(self.places, nest, INDENT, ("", ""), None).lines()
        known = {*stored, *(v.symbol for v in sums)}
        known |= {v.symbol for nest in nests for v in (*nest.values, *nest.sums)}
        yield from self._function(head, body, [self.kept, *([parts.read_only()] if parts else [])], known)

    def _gathered(self, value: Value) -> Iterator[str]:
        """Yield the lines that combine the partial results of a reduction, in order."""
        sums, how = self.terms.sum(value), REDUCTIONS[algebra.name_of(value.expr)]
        if not self.places.shapes[value.symbol]:
            yield f"{INDENT}double all_{sums} = {how.start};"
            joined = how.joined(f"all_{sums}", f"{sums}[i*row.parts]")
            yield f"{INDENT}for (int64_t i = 0; i < chunks; ++i) all_{sums} = {joined};"
            yield from self.places.number(value, f"all_{sums}")
            return
        name, count = f"at_{self.terms.names[value.symbol]}", self.places.extent(self.places.shapes[value.symbol])
        yield f"{INDENT}for (int64_t i = 0; i < {count}; ++i) {{"
        yield f"{INDENT * 2}double all_{sums} = {how.start};"
        joined = how.joined(f"all_{sums}", f"{sums}[k*row.parts + i]")
        yield f"{INDENT * 2}for (int64_t k = 0; k < chunks; ++k) all_{sums} = {joined};"
        yield f"{INDENT * 2}{name}[i] = static_cast<real>({self.places.divided(value, f'all_{sums}')});"
        yield f"{INDENT}}}"


class _Array(NamedTuple):
    """A scratch array: its element type and its size, as C++."""

    type: str
    size: str


class _Area:
    """A scratch area that holds several arrays.

    Args:
        base: Its address.
        arrays: The arrays, by name.
        constant: Whether it is read-only.
    """

    def __init__(self, base: str, arrays: dict[str, _Array], constant: bool = False) -> None:
        self.base, self.arrays, self.constant = base, arrays, constant

    def read_only(self) -> _Area:
        """Return the area as read-only."""
        return _Area(self.base, self.arrays, True)

    def size(self) -> str:
        """Return its size in float64 numbers."""
        return " + ".join(array.size for array in self.arrays.values()) or "0"

    def defined(self, words: set[str]) -> Iterator[str]:
        """Yield definitions of the names in ``words``."""
        before: list[str] = []
        for name, array in self.arrays.items():
            if name in words:
                at = " + ".join([self.base, *before])
                kind = f"{'const ' * self.constant}{array.type}"
                at = at if array.type == "double" else f"reinterpret_cast<{kind}*>({at})"
                yield f"{INDENT}{kind}* const {name} = {at};"
            before.append(array.size)
