"""Generates C++ for loops over the entries of a history whose bodies add and multiply vectors and compute scalars.

The C++ functions replace Python functions with the same names in a matrix stage. Each declares its parameters by a
letter per argument after the first two (see :data:`LETTERS`).
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from optlang.artifact import Kernel
from optlang.codegen.cpp_terms import cpp_names
from optlang.codegen.cpp_writer import CppWriter, knows
from optlang.codegen.matrix_stage import LoopFunction, MatrixStage
from optlang.codegen.memory import INDENT
from optlang.codegen.reuse import multiplied_next
from optlang.ir import algebra
from optlang.ir.histories import ALWAYS, ENTRY, is_operation
from optlang.ir.program import Value
from optlang.kinds import Level
from optlang.syntax.quoting import remark

#: The kinds of arguments, by letter; capitals are loop-carried values.
LETTERS = {
    "h": "a history",
    "x": "a vector",
    "a": "numbers, one for each entry",
    "n": "a number",
    "b": "a condition",
    "f": "a number of Python",
    "V": "a vector, with memory to write to",
    "O": "a vector that may be written to",
    "A": "numbers, one for each entry, to be filled in",
    "N": "a number, to be written to",
}
#: Maximum number of pushes to a history in C++.
MOST_PUSHES = 16


class Unsuited(Exception):
    """A loop contains something that is not generated as C++."""


def emit(kernel: Kernel) -> str:
    """Return the C++ of the loops in a matrix stage, as far as they are supported; empty if there are none."""
    if not kernel.matrices:
        return ""
    stage = MatrixStage(kernel.program, kernel.tensors, kernel.ndim)
    stage.functions()
    found = []
    for loop, name in stage.writer.loops.items():
        try:
            found.append("\n".join(_Loop(LoopFunction(stage.writer, loop), name).lines()))
        except Unsuited:
            continue
    return "\n\n".join(found)


class _Loop:
    """Generates one loop.

    Args:
        function: The Python writer of the loop.
        name: Its name.
    """

    def __init__(self, function: LoopFunction, name: str) -> None:
        self.function, self.name, self.body, self.turn = function, name, function.body, function.turn
        self.program, self.matrices = self.turn.program, self.turn.writer
        self.kinds = self.matrices.kinds
        self.names = cpp_names(self.kinds)
        self.place = sp.Symbol(function.names[self.body.place])
        self.carried = list(map(sp.Symbol, function.carried))
        self.arguments = [*self.carried, *(sp.Symbol(function.names[s]) for s in self.body.read)]
        operations = [v.expr for v in self.program.tensor if v.matrices]
        self.entries = [e for e in operations if is_operation(e, ENTRY)]
        self.arrays = {e.args[0] for e in operations if is_operation(e, "index", "collected")}
        self.conditions = {c for e in self.entries for c in e.args[4::2]}
        self.histories = {parts: f"history_{i}" for i, parts in enumerate(dict.fromkeys(map(_history, self.entries)))}
        self.next = multiplied_next(self.program, self.place, function.over, self.matrices.is_dot)
        flags = frozenset(c for c in self.conditions if c.is_Symbol)
        self.writer = CppWriter(self.names.__getitem__, flags)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the function."""
        if any(self.matrices.types.values()):
            raise Unsuited  # mixed dtypes
        letters = "".join(map(self.letter, self.arguments))
        if not set(letters) & set("xVO"):
            raise Unsuited  # nothing to gain
        turn = [f"{INDENT * 2}{line}" for line in self.values()]
        loop_carried = [f"{INDENT * 2}{line}" for line in self.loop_carried()]
        order = "newest" if self.body.backwards else "oldest"
        turns = "i = last - 1; i >= first; --i" if self.body.backwards else "i = first; i < last; ++i"
        yield f"// A loop over the entries of a history, the {order} first."
        yield f'extern "C" const char* const {self.name}_takes = "{letters}";'
        yield f'extern "C" void {self.name}('
        yield f"{INDENT * 2}int64_t n, int64_t first, int64_t last, void* const* at, const int64_t* sizes,"
        yield f"{INDENT * 2}const double* numbers, int threads) {{"
        yield from (f"{INDENT}{line}" for line in self.taken(letters))
        yield f"{INDENT}for (int64_t {turns}) {{"
        yield from (*turn, *loop_carried)
        yield f"{INDENT}}}"
        yield "}"

    def letter(self, symbol: sp.Symbol) -> str:
        """Return the letter for an argument."""
        kind = self.kinds[symbol]
        carried, rank = symbol in self.carried, self.matrices.rank_of(kind)
        if symbol in {parts[0] for parts in self.histories}:
            found = "h"
        elif symbol in self.conditions:
            found = "b"
        elif kind.level <= Level.HOST:
            found = "f"
        elif symbol in self.arrays:
            found = "a"
        else:
            found = {0: "n", 1: "x"}.get(rank, "")
        if carried:
            vector = "O" if symbol in self.function.given else "V"
            found = {"x": vector, "a": "A", "n": "N"}.get(found, "")
        if not found or (found in "aA" and rank != 1):
            raise Unsuited
        return found

    def taken(self, letters: str) -> Iterator[str]:
        """Yield the lines that bind the arguments to names."""
        own = len(letters)
        for i, (symbol, letter) in enumerate(zip(self.arguments, letters, strict=True)):
            name, there = self.names[symbol], f"static_cast<real*>(at[{i}])"
            match letter:
                case "x" | "a" | "A":
                    yield f"{'' if letter == 'A' else 'const '}real* const {name} = {there};"
                case "V" | "O":
                    yield f"const real* {name} = {there};"
                    yield f"real* const {name}_own = static_cast<real*>(at[{own + self.carried.index(symbol)}]);"
                case "n":
                    yield f"const real {name} = *{there};"
                case "N":
                    yield f"real& {name} = *{there};"
                case "b":
                    yield f"const bool {name} = *static_cast<const bool*>(at[{i}]);"
                case "f":
                    yield f"const real {name} = static_cast<real>(numbers[{i}]);"
        for parts, name in self.histories.items():
            yield from self.history(parts, name)
        for i in range(len(self.next)):
            yield f"double ahead_{i} = 0;  // what a turn computes for the next"
            yield f"bool known_{i} = false;"

    def history(self, parts: tuple[sp.Expr, ...], name: str) -> Iterator[str]:
        """Yield the lines that define a history."""
        state, start, *pushes = parts
        if not (start.is_Symbol and start in self.arguments) or len(pushes) > 2 * MOST_PUSHES:
            raise Unsuited
        i, vectors = self.arguments.index(state), self.matrices.rank_of(self.kinds[state]) == 2
        width = "n" if vectors else "1"
        rows = f"static_cast<const real*>(at[{i}])"
        yield f"History<real> {name}{{{rows}, sizes[{i}], {width}, static_cast<int64_t>({self.names[start]})}};"
        for x, held in zip(pushes[::2], pushes[1::2], strict=True):
            if x not in self.arguments or not (held == ALWAYS or held in self.arguments):
                raise Unsuited
            there = self.names[x] if vectors else f"&{self.names[x]}"
            yield f"{name}.push({there}, {'true' if held == ALWAYS else self.names[held]});"

    # Loop body ----------------------------------------------------------------------------------------------

    def values(self) -> Iterator[str]:
        """Yield the lines of an iteration."""
        line, products = 0, {product: i for i, (product, _) in enumerate(self.next.values())}
        for value in self.program.tensor:
            if value.line not in (0, line):
                line = value.line
                yield remark(self.program.notes[line], "//")
            name = self.names[value.symbol]
            if value.matrices:
                yield self.operation(value, name)
            elif value.symbol in self.function.over:
                yield from self.sum(value, name)
            elif value.reduces:
                yield f"const real {name} = static_cast<real>({self.product(value, products)});"
            else:
                yield f"const {'bool' if value.boolean else 'real'} {name} = {self.number(value.expr)};"

    def operation(self, value: Value, name: str) -> str:
        """Return the line of an entry, or of a scalar."""
        expr = value.expr
        if is_operation(expr, ENTRY) and expr.args[2] == self.place:
            history = f"{self.histories[_history(expr)]}[i]"
            is_vector = self.matrices.rank_of(value.kind) == 1
            return f"const real* const {name} = {history};" if is_vector else f"const real {name} = *{history};"
        if is_operation(expr, "index") and expr.args[1:] == (self.place,):
            return f"const real {name} = {self.names[expr.args[0]]}[i];"
        if is_operation(expr, "collected") and expr.args[0] in self.carried and expr.args[1] == self.place:
            later = self.program.tensor[self.program.tensor.index(value) + 1 :]
            if not any(expr.args[0] in v.expr.free_symbols for v in later):
                return f"{self.names[expr.args[0]]}[i] = {self.number(expr.args[2])};"
        raise Unsuited

    def product(self, value: Value, products: dict[sp.Symbol, int]) -> str:
        """Return a dot product of two vectors, which the previous iteration may have computed."""
        expr = value.expr
        if algebra.name_of(expr) != "sum" or len(expr.args) > 1 or not self.matrices.is_dot(expr.args[0]):
            raise Unsuited
        if not all(self.is_vector(s) for s in expr.args[0].args):
            raise Unsuited
        text = f"dot<real>(n, {', '.join(self.names[s] for s in expr.args[0].args)}, threads)"
        i = products.get(value.symbol)
        return text if i is None else f"known_{i} ? ahead_{i} : {text}"

    def sum(self, value: Value, name: str) -> Iterator[str]:
        """Yield the lines of x + c*y, and of its dot product with the vector the next iteration multiplies it with."""
        parts = self.matrices.summands(value)
        if parts is None or not (self.is_vector(parts[0]) and self.is_vector(parts[2])):
            raise Unsuited
        x, factor, y = parts
        own, after = f"{self.names[self.function.over[value.symbol]]}_own", "nullptr"
        if value.symbol in self.next:
            i = list(self.next).index(value.symbol)
            following, there = ("i - 1", "i > first") if self.body.backwards else ("i + 1", "i + 1 < last")
            yield f"known_{i} = {there};"
            after = f"known_{i} ? {self.histories[self.next[value.symbol][1]]}[{following}] : nullptr"
        arguments = f"n, {own}, {self.names[x]}, {self.number(factor)}, {self.names[y]}, {after}, threads"
        result = f"ahead_{i} = " if value.symbol in self.next else ""
        yield f"{result}multiply_add_dot<real>({arguments});"
        yield f"const real* const {name} = {own};"

    def is_vector(self, symbol: sp.Symbol) -> bool:
        """Return whether a symbol is a vector of the common length."""
        return self.matrices.rank_of(self.kinds[symbol]) == 1 and symbol not in self.arrays

    def number(self, expr: sp.Expr) -> str:
        """Return a scalar expression in C++."""
        read = expr.free_symbols
        if self.place in read or any(self.matrices.rank_of(self.kinds[s]) for s in read):
            raise Unsuited
        if expr.atoms(algebra.MatrixOperation) or not knows(expr):
            raise Unsuited
        return self.writer.text(expr)

    def loop_carried(self) -> Iterator[str]:
        """Yield the lines that pass on the loop-carried values."""
        made = {v.symbol: v for v in self.program.tensor}
        for symbol, store in zip(self.carried, self.program.stores, strict=True):
            value = made.get(store.expr)
            if store.expr == symbol:
                continue
            if symbol in self.arrays:
                if value is None or not is_operation(value.expr, "collected") or value.expr.args[0] != symbol:
                    raise Unsuited
            elif self.matrices.rank_of(self.kinds[symbol]) == 0:
                yield f"const real {self.names[symbol]}_next = {self.number(store.expr)};"
            elif self.function.over.get(store.expr) != symbol:
                raise Unsuited
        for symbol, store in zip(self.carried, self.program.stores, strict=True):
            if store.expr == symbol or symbol in self.arrays:
                continue
            is_number = self.matrices.rank_of(self.kinds[symbol]) == 0
            yield f"{self.names[symbol]} = {f'{self.names[symbol]}_next' if is_number else self.names[store.expr]};"


def _history(entry: sp.Expr) -> tuple[sp.Expr, ...]:
    """Return the history's operands in an ``entry`` operation."""
    return (*entry.args[:2], *entry.args[3:])
