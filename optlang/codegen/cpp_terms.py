"""What the values of a step are called in C++, and where they lie."""

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
        operator: What OpenMP calls it.
        type: The type of the variable that a lane is reduced into; in memory there is float64.
        start: Where it starts.
        form: How two parts of it become one, in memory.
    """

    operator: str
    type: str
    start: str
    form: str

    def joined(self, a: str, b: str) -> str:
        """Return two parts, joined, in float64."""
        return self.form.format(a, b)

    def added(self, a: str, b: str) -> str:
        """Return two parts, joined, in the type of the variable."""
        return self.form.replace("<double>", "").format(a, b)


_SUM = ReductionLoop("+", "double", "0.0", "{} + {}")
REDUCTIONS = {
    "sum": _SUM,
    "mean": _SUM,
    "max": ReductionLoop("max_", "real", "-infinite", "max_<double>({}, {})"),
    "min": ReductionLoop("min_", "real", "infinite", "min_<double>({}, {})"),
}


class Terms:
    """What the values of a step are called.

    Args:
        program: The step.
        tensors: Names of the tensors that the kernels take, in order.
        rank: Dimensions of the view.
        present: How many of them there are at least.

    Attributes:
        targets: The places of the tensors among the arguments, by name.
        tensors: The same by symbol, of those that are read.
        sums: The reductions, numbered.
        numbers: What may be a number of a tensor, numbered.
        coefficients: The coefficients, numbered.
        names: What symbols are called.
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
        # Conditions that are kept are kept as numbers.
        flags = {v.symbol for v in self.program.values if v.boolean and shapes[v.symbol] != shapes.all}
        flags |= {i.symbol for i in self.program.inputs if i.name == "first"}
        self.writer = CppWriter(self.names.__getitem__, frozenset(flags))

    def stored(self, store: Store, place: str) -> str:
        """Return the line that writes what is stored; what has been rounded need not be once more."""
        rounded = None if store.expr in self.tensors else self.rounded.get(store.expr)  # what is read is as it was
        known = rounded is not None and self.pointers[rounded] == self.targets[store.target]
        return f"store{'_rounded' if known else ''}({place}, {self.writer.text(store.expr)});"

    def sum(self, value: Value) -> str:
        """Return what the memory of a reduction is called."""
        return f"sum_{self.sums[value.symbol]}"

    def assigned(self, values: Iterable[Value], indent: str) -> Iterator[str]:
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


class Locations:
    """Where the values of a step lie, if it is computed after a plan.

    Args:
        terms: What they are called.
        plan: The plan.
        lane: The dimension that the innermost loops run along.
    """

    def __init__(self, terms: Terms, plan: LoopPlan, lane: int) -> None:
        self.terms, self.plan, self.lane, self.shapes = terms, plan, lane, plan.shapes
        self.numbers = {s: i for s, i in terms.numbers.items() if not self.shapes[s]}

    def extent(self, dims: Dims, local: bool = False) -> str:
        """Return how many values of some dimensions there are; of the chunked one those that are worked on at once."""
        each = ("row.step" if local and d == self.plan.chunked else f"n{d}" for d in sorted(dims))
        return "*".join(each) or "1"

    def ours(self, dims: Dims, local: bool = False) -> dict[int, str]:
        """Return the steps from value to value in memory of our own, by dimension: lanes lie side by side."""
        return self._strides([*sorted(dims - {self.lane}), *({self.lane} & dims)], local)

    def theirs(self, dims: Dims) -> dict[int, str]:
        """Return the steps from element to element of a tensor."""
        return self._strides(sorted(dims), False)

    def _strides(self, order: list[int], local: bool) -> dict[int, str]:
        return {d: self.extent(frozenset(order[i + 1 :]), local) if order[i + 1 :] else "" for i, d in enumerate(order)}

    def index(self, strides: dict[int, str], dims: Iterable[int], local: bool = False) -> str:
        """Return where a value lies along some of its dimensions."""
        terms = []
        for d in sorted(set(dims) & strides.keys()):
            at = f"(i{d} - from)" if local and d == self.plan.chunked else f"i{d}"
            terms.append(f"{at}*{strides[d]}" if strides[d] else at)
        return " + ".join(terms) or "0"

    # Reductions ---------------------------------------------------------------------------------------------

    def started(self, value: Value, local: bool = False) -> str:
        """Return the line that clears the memory of a reduction."""
        size, start = self.extent(self.shapes[value.symbol], local), REDUCTIONS[algebra.name_of(value.expr)].start
        return f"{INDENT}std::fill_n({self.terms.sum(value)}, {size}, {start});"

    def divided(self, value: Value, total: str) -> str:
        """Return a reduction, by what has been summed."""
        if algebra.name_of(value.expr) != "mean":
            return total
        return f"{total}/static_cast<double>({self.extent(self.shapes.reduced(value))})"

    def number(self, value: Value, total: str) -> Iterator[str]:
        """Yield the lines that keep a reduction that is one number."""
        yield f"{INDENT}const real {self.terms.names[value.symbol]} = static_cast<real>({self.divided(value, total)});"
        yield f"{INDENT}row.number[{self.numbers[value.symbol]}] = {self.terms.names[value.symbol]};"


def cpp_names(symbols: Iterable[sp.Symbol]) -> dict[sp.Symbol, str]:
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
