"""Builder of programs: collects inputs and values during lowering and gives them unique names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy as sp

from optlang.artifact import FACTS
from optlang.inputs import ValueName, text
from optlang.ir.program import Input, Value
from optlang.kinds import HOST, Kind


@dataclass(frozen=True)
class Ref:
    """The value of a name or expression at one point of the program."""

    expr: sp.Expr
    kind: Kind
    boolean: bool = False


class ProgramBuilder:
    """Collects the inputs and values of a program under unique names.

    Args:
        taken: Names of the rule, which no generated value may use.
        sizes: The size inputs that symbols in shapes of states denote.

    Attributes:
        inputs: The inputs, by their runtime names.
        host: Values computed on the host, in order.
        tensor: Values computed on the device, in order.
        line: The line of the rule being lowered.
    """

    def __init__(self, taken: Iterable[str], sizes: Mapping[sp.Symbol, ValueName] = MappingProxyType({})) -> None:
        self.taken = {*taken, "p", "g", "t", "first", *map(text, FACTS)}
        self.sizes = sizes
        self.used: set[str] = set()
        self.inputs: dict[ValueName, Input] = {}
        self.host: list[Value] = []
        self.tensor: list[Value] = []
        self.line = 0

    def symbol(self, stem: str) -> sp.Symbol:
        """Return an unused symbol: the stem itself, or the stem with a version number."""
        stem = stem.replace(".", "_").replace("'", "_new")
        if stem.rpartition("_")[2].isdigit() and "_" in stem:
            stem = stem.rpartition("_")[0]
        name, version = stem, 0
        while name in self.used or name in self.taken:
            version += 1
            name = f"{stem}_{version}"
        self.used.add(name)
        return sp.Symbol(name)

    def input(self, name: ValueName, kind: Kind) -> Ref:
        """Return an input, adding it to the program on first use."""
        if name not in self.inputs:
            written = text(name)
            spelled = written.replace("'", "_new").replace(" ", "_").replace(".", "_")
            while spelled != written and (spelled in self.used or spelled in self.taken):
                spelled += "_"
            self.used.add(spelled)
            self.inputs[name] = Input(sp.Symbol(spelled), name, kind)
        known = self.inputs[name]
        return Ref(known.symbol, known.kind, boolean=name == "first")

    def read_sizes(self, sizes: Iterable[Any]) -> None:
        """Add the inputs that the given sizes depend on; otherwise only the start of a state might read them."""
        there = {i.symbol for i in self.inputs.values()}
        symbols = {symbol for size in sizes for symbol in sp.sympify(size).free_symbols}
        for symbol in sorted(symbols - there, key=str):
            self.input(self.sizes[symbol], HOST)

    def kinds(self) -> dict[sp.Symbol, Kind]:
        """Return the kinds of all symbols collected so far."""
        values = (*self.host, *self.tensor)
        return {i.symbol: i.kind for i in self.inputs.values()} | {v.symbol: v.kind for v in values}

    def bind(self, stem: str, ref: Ref, rounds: bool = False) -> Ref:
        """Bind a value to a new name and return a reference to it."""
        symbol = self.symbol(stem)
        value = Value(symbol, ref.expr, ref.kind, ref.boolean, rounds, self.line)
        (self.tensor if ref.kind.on_device else self.host).append(value)
        return Ref(symbol, ref.kind, ref.boolean)
