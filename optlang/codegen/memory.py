"""Tensor storage in generated Python: how a function reads and writes tensors.

In the narrow form of a module (see :mod:`optlang.codegen.python_source`) a tensor stored in 16 bits has its own name
(``m_mem``), separate from its float32 value (``m``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import sympy as sp

from optlang.codegen.naming import all_names, python_name, spelled
from optlang.codegen.spelling import Writer
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Level, join

INDENT = "    "


class Memory:
    """The tensors of a function, and its program with names that are valid in Python.

    Args:
        program: The program.
        tensors: The runtime names of the tensors, in order.
        narrow: Whether they may be stored in 16 bits.
        wide: The text of the compute dtype in that case; by default the dtype of the packed coefficients.

    Attributes:
        program: The program with valid Python names.
        arguments: The names of the program's inputs, by runtime name.
        stored: The names of the tensors, by runtime name.
        numbers: The name of the packed coefficients.
    """

    def __init__(
        self, program: Program, tensors: Sequence[ValueName], narrow: bool, wide: str | None = "torch.float32"
    ) -> None:
        self.program, self.arguments = spelled(program if narrow else renamed(program), tensors)
        self.narrow = narrow
        self.taken = all_names(self.program, self.arguments.values())
        self.stored = {n: self.name(f"{n}_mem") if narrow else self.arguments[n] for n in tensors}
        self.numbers = self.name("c")
        self.wide = wide or f"{self.numbers}.dtype"
        self.kinds = self.program.kinds()
        self.stores = [s for s in self.program.stores if s.kind.on_device and s.target in self.stored]
        self.targets = {s.expr: self.stored[s.target] for s in self.stores}

    def name(self, wanted: str) -> str:
        """Return an unused name."""
        chosen = python_name(wanted, self.taken)
        self.taken.add(chosen)
        return chosen

    def widened(self) -> Iterator[str]:
        """Yield the lines that convert the tensors read to the compute dtype."""
        read = {i.name for i in self.program.inputs} if self.narrow else set()
        for name, stored in self.stored.items():
            if name in read:
                yield f"{INDENT}{self.arguments[name]} = {stored}.to({self.wide})"

    def spread(self, value: Value, text: str) -> str:
        """Return the text of a value, expanded to the tensor's shape if its operands are smaller."""
        if value.reduces or value.kind.level <= Level.SCALAR:
            return text
        if join(self.kinds[s] for s in value.expr.free_symbols) == value.kind:
            return text
        like = next(self.stored[s.target] for s in self.stores if s.kind == value.kind)
        if not value.expr.free_symbols:
            return f"torch.full_like({like}, {text}, dtype={self.numbers}.dtype)"
        return f"{text if value.expr.is_Symbol else f'({text})'}.expand_as({like})"

    def rounded(self) -> dict[sp.Symbol, str]:
        """Return the stored values that later formulas read, with the tensors they are stored in (narrow only)."""
        if not self.narrow:
            return {}
        read = set().union(*(v.expr.free_symbols for v in self.program.tensor))
        return {s: stored for s, stored in self.targets.items() if s in read}

    def results(self, writer: Writer) -> Iterator[str]:
        """Yield the stored values as text, in the order of the stores."""
        for store in self.stores:
            text, stored = writer.text(store.expr), self.stored[store.target]
            yield f"torch.full_like({stored}, {text})" if algebra.is_literal(store.expr) else text

    def written(self, writer: Writer) -> Iterator[str]:
        """Yield the stores; a state that takes another's old value takes a copy, as that one is overwritten too."""
        origins = {i.symbol: i.name for i in self.program.inputs}
        for value in self.program.tensor:
            if value.expr in origins:  # a copy of an input
                origins[value.symbol] = origins[value.expr]
        targets = {s.target for s in self.stores}
        copies: dict[sp.Expr, str] = {}
        for store in self.stores:
            origin = origins.get(store.expr)
            if origin in targets and origin != store.target and store.expr not in copies:
                copies[store.expr] = self.name(f"{store.expr}_old")
                x = store.expr  # Inductor drops a plain copy of something overwritten later
                yield f"{INDENT}{copies[x]} = torch.where({x} == {x}, {x}, {x})"
        for store in sorted(self.stores, key=lambda s: s.target == "p"):
            text = copies.get(store.expr) or writer.text(store.expr)
            method = "fill_" if algebra.is_literal(store.expr) else "copy_"
            yield f"{INDENT}{self.stored[store.target]}.{method}({text})"


def renamed(program: Program) -> Program:
    """Return a program without copies of values of the same kind; nothing rounds between them."""
    kinds = program.kinds()
    names: dict[sp.Symbol, sp.Symbol] = {}
    for value in program.tensor:
        source = names.get(value.expr, value.expr)
        if source.is_Symbol and kinds[source] == value.kind:
            names[value.symbol] = source
    phases = tuple(tuple(v for v in phase if v.symbol not in names) for phase in program.phases)
    return replace(program, phases=phases).substituted(names)
