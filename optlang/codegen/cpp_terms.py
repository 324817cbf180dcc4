"""Names and memory locations of a step's values in C++."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import sympy as sp

from optlang.codegen.cpp_plan import Dims, LoopPlan, Shapes
from optlang.codegen.cpp_writer import CppWriter
from optlang.codegen.memory import INDENT, Memory
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Store, Value
from optlang.syntax.quoting import remark


@dataclass(frozen=True)
class ReductionLoop:
    """How a reduction is computed.

    Attributes:
        operator: Its name in OpenMP.
        type: The type of the accumulator in a lane; in memory it is float64.
        start: Its initial value.
        form: How to combine two partial results in memory.
    """

    operator: str
    type: str
    start: str
    form: str

    def joined(self, a: str, b: str) -> str:
        """Return two partial results combined, in float64."""
        return self.form.format(a, b)

    def added(self, a: str, b: str) -> str:
        """Return two partial results combined, in the accumulator type."""
        return self.form.replace("<double>", "").format(a, b)


_SUM = ReductionLoop("+", "double", "0.0", "{} + {}")
REDUCTIONS = {
    "sum": _SUM,
    "mean": _SUM,
    "max": ReductionLoop("max_", "real", "-infinite", "max_<double>({}, {})"),
    "min": ReductionLoop("min_", "real", "infinite", "min_<double>({}, {})"),
}


class Terms:
    """The names of the values of a step.

    Args:
        program: The step.
        tensors: The names of the kernel's tensors, in order.
        rank: The number of dimensions of the view.
        present: The minimum number of dimensions present.

    Attributes:
        targets: The argument positions of the tensors, by name.
        tensors: The argument positions of the tensors that are read, by symbol.
        sums: The reductions, numbered.
        numbers: The possible per-tensor numbers, numbered.
        coefficients: The coefficients, numbered.
        names: The C++ names of symbols.
    """

    def __init__(self, program: Program, tensors: Sequence[ValueName], rank: int, present: int) -> None:
        memory = Memory(program, tensors, narrow=True)
        self.program, self.rounded = memory.program, memory.rounded()
        shapes = Shapes(self.program, rank)
        self.targets = {name: i for i, name in enumerate(tensors)}
        self.pointers = {memory.stored[name]: i for name, i in self.targets.items()}
        self.tensors = {i.symbol: self.targets[i.name] for i in self.program.inputs if i.name in self.targets}
        self.sums = {v.symbol: k for k, v in enumerate(v for v in self.program.tensor if v.reduces)}
        self.stores = sorted(memory.stores, key=lambda s: s.target == "p")
        symbols = [*self.tensors, *(v.symbol for v in self.program.tensor)]
        smallest = Shapes(self.program, rank, present)
        self.numbers = {s: i for i, s in enumerate(s for s in symbols if not smallest[s])}
        self.coefficients = {symbol: i for i, symbol in enumerate(self.program.coefficients())}
        self.names = cpp_names([*self.coefficients, *self.program.kinds()])
        # Kept conditions are stored as numbers.
        flags = {v.symbol for v in self.program.values if v.boolean and shapes[v.symbol] != shapes.all}
        flags |= {i.symbol for i in self.program.inputs if i.name == "first"}
        self.writer = CppWriter(self.names.__getitem__, frozenset(flags))

    def stored(self, store: Store, place: str) -> str:
        """Return the line of a store; an already rounded value is not rounded again."""
        rounded = None if store.expr in self.tensors else self.rounded.get(store.expr)  # an input is unchanged
        known = rounded is not None and self.pointers[rounded] == self.targets[store.target]
        return f"store{'_rounded' if known else ''}({place}, {self.writer.text(store.expr)});"

    def sum(self, value: Value) -> str:
        """Return the name of a reduction's memory."""
        return f"sum_{self.sums[value.symbol]}"

    def assigned(self, values: Iterable[Value], indent: str) -> Iterator[str]:
        """Yield definitions of values, with the lines of the rule they come from."""
        line = 0
        for value in values:
            if value.line not in (0, line):
                line = value.line
                yield indent + remark(self.program.notes[line], "//")
            text = self.writer.text(value.expr)
            if value.symbol in self.rounded:  # later expressions see the stored value
                text = f"rounded<type_{self.pointers[self.rounded[value.symbol]]}>({text})"
            kind = "bool" if value.boolean and value.symbol not in self.writer.flags else "real"
            yield f"{indent}const {kind} {self.names[value.symbol]} = {text};"


class Locations:
    """The memory locations of a step's values under a plan.

    Args:
        terms: The names of the values.
        plan: The plan.
        lane: The dimension of the innermost loops.
    """

    def __init__(self, terms: Terms, plan: LoopPlan, lane: int) -> None:
        self.terms, self.plan, self.lane, self.shapes = terms, plan, lane, plan.shapes
        self.numbers = {s: i for s, i in terms.numbers.items() if not self.shapes[s]}

    def extent(self, dims: Dims, local: bool = False) -> str:
        """Return the number of values over some dimensions; if ``local``, only the current part of the chunked one."""
        each = ("row.step" if local and d == self.plan.chunked else f"n{d}" for d in sorted(dims))
        return "*".join(each) or "1"

    def ours(self, dims: Dims, local: bool = False) -> dict[int, str]:
        """Return the strides in scratch memory by dimension; lanes are contiguous."""
        return self._strides([*sorted(dims - {self.lane}), *({self.lane} & dims)], local)

    def theirs(self, dims: Dims) -> dict[int, str]:
        """Return the strides of a tensor by dimension."""
        return self._strides(sorted(dims), False)

    def _strides(self, order: list[int], local: bool) -> dict[int, str]:
        return {d: self.extent(frozenset(order[i + 1 :]), local) if order[i + 1 :] else "" for i, d in enumerate(order)}

    def index(self, strides: dict[int, str], dims: Iterable[int], local: bool = False) -> str:
        """Return the offset of a value along some of its dimensions."""
        terms = []
        for d in sorted(set(dims) & strides.keys()):
            at = f"(i{d} - from)" if local and d == self.plan.chunked else f"i{d}"
            terms.append(f"{at}*{strides[d]}" if strides[d] else at)
        return " + ".join(terms) or "0"

    # Reductions ---------------------------------------------------------------------------------------------

    def started(self, value: Value, local: bool = False) -> str:
        """Return the line that initialises the memory of a reduction."""
        size, start = self.extent(self.shapes[value.symbol], local), REDUCTIONS[algebra.name_of(value.expr)].start
        return f"{INDENT}std::fill_n({self.terms.sum(value)}, {size}, {start});"

    def divided(self, value: Value, total: str) -> str:
        """Return the result of a reduction, given its sum."""
        if algebra.name_of(value.expr) != "mean":
            return total
        return f"{total}/static_cast<double>({self.extent(self.shapes.reduced(value))})"

    def number(self, value: Value, total: str) -> Iterator[str]:
        """Yield the lines that store a reduction to a number."""
        yield f"{INDENT}const real {self.terms.names[value.symbol]} = static_cast<real>({self.divided(value, total)});"
        yield f"{INDENT}row.number[{self.numbers[value.symbol]}] = {self.terms.names[value.symbol]};"


def cpp_names(symbols: Iterable[sp.Symbol]) -> dict[sp.Symbol, str]:
    """Return C++ names for symbols; only ASCII letters are portable."""
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
