"""The program: a variant's step (or its start) in single assignment, over SymPy expressions.

``host`` is computed once per step and group in float64. ``phases`` are blocks of tensor values, each one pass over
memory; a phase ends where a reduction must be complete. Stores say which values the states and the parameter get. They
run at the end of the phase that computes their value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import sympy as sp

from optlang.inputs import ValueName, text
from optlang.ir import algebra
from optlang.kinds import ELEMENT, HOST, Kind, Level, join


class InvalidProgram(Exception):
    """A pass, or the lowering, produced a program that violates :func:`Program.verify`."""


@dataclass(frozen=True)
class Input:
    """A value that exists before the step.

    ``name`` is its runtime name (see :mod:`optlang.inputs`), ``symbol`` its name in expressions.
    """

    symbol: sp.Symbol
    name: ValueName
    kind: Kind


@dataclass(frozen=True)
class Value:
    """One assignment.

    Attributes:
        symbol: The symbol it defines.
        expr: Its expression, over earlier symbols.
        kind: Its kind.
        boolean: Whether it is a condition.
        rounds: Whether it is the value of a state or the parameter, a rounding point that simplification does not
            cross.
        line: The line of the rule it comes from, 0 if there is none.
    """

    symbol: sp.Symbol
    expr: sp.Expr
    kind: Kind
    boolean: bool = False
    rounds: bool = False
    line: int = 0

    @property
    def matrices(self) -> bool:
        """Whether it is a matrix operation."""
        return isinstance(self.expr, algebra.MatrixOperation)

    @property
    def reduces(self) -> bool:
        """Whether it is a reduction, whose result other values may use only in a later phase."""
        return isinstance(self.expr, algebra.Reduction)


@dataclass(frozen=True)
class Store:
    """A store of ``expr`` (a symbol, or a number in a start program) to ``target``: ``p``, a state, a contribution."""

    target: ValueName
    expr: sp.Expr
    kind: Kind


@dataclass(frozen=True)
class Program:
    """A step in single assignment.

    Attributes:
        name: The rule's name.
        inputs: All values read: hyperparameters, time, facts, ``p``, ``g``, states.
        host: Host values, in order.
        phases: Tensor values, one tuple per pass over memory, in order.
        stores: All values written, including host states.
        notes: Source lines of the rule by number, for comments in the generated code.
    """

    name: str
    inputs: tuple[Input, ...]
    host: tuple[Value, ...]
    phases: tuple[tuple[Value, ...], ...]
    stores: tuple[Store, ...]
    notes: dict[int, str] = field(default_factory=dict, compare=False)

    @property
    def tensor(self) -> tuple[Value, ...]:
        """All tensor values, in order."""
        return tuple(value for phase in self.phases for value in phase)

    @property
    def values(self) -> tuple[Value, ...]:
        """All values, host first."""
        return (*self.host, *self.tensor)

    def names(self) -> set[ValueName]:
        """Return the names of all inputs and store targets."""
        return {i.name for i in self.inputs} | {s.target for s in self.stores}

    def storing(self, targets: Collection[ValueName]) -> Program:
        """Return the program with only its stores to the given targets."""
        return replace(self, stores=tuple(s for s in self.stores if s.target in targets))

    def kinds(self) -> dict[sp.Symbol, Kind]:
        """Return the kind of every symbol."""
        table = {i.symbol: i.kind for i in self.inputs}
        table.update({v.symbol: v.kind for v in self.values})
        return table

    def renamed(self, names: Mapping[sp.Symbol, sp.Symbol]) -> Program:
        """Return the program with some of its symbols renamed."""

        def rename(v: Value) -> Value:
            return replace(v, symbol=names.get(v.symbol, v.symbol))

        return replace(
            self,
            inputs=tuple(replace(i, symbol=names.get(i.symbol, i.symbol)) for i in self.inputs),
            host=tuple(map(rename, self.host)),
            phases=tuple(tuple(map(rename, phase)) for phase in self.phases),
        ).substituted(names)

    def substituted(self, names: Mapping[sp.Symbol, sp.Symbol]) -> Program:
        """Return the program with symbols replaced in every expression."""
        if not names:
            return self

        def value(v: Value) -> Value:
            return replace(v, expr=v.expr.xreplace(names))

        return replace(
            self,
            host=tuple(map(value, self.host)),
            phases=tuple(tuple(map(value, phase)) for phase in self.phases),
            stores=tuple(replace(s, expr=s.expr.xreplace(names)) for s in self.stores),
        )

    def coefficients(self) -> tuple[sp.Symbol, ...]:
        """Return the host symbols read by tensor values and tensor stores, which are packed for the kernel."""
        kinds = self.kinds()
        seen: dict[sp.Symbol, None] = {}
        exprs = [v.expr for v in self.tensor] + [s.expr for s in self.stores if s.kind.on_device]
        for expr in exprs:
            for symbol in sorted(expr.free_symbols, key=str):
                if kinds[symbol].level <= Level.HOST:
                    seen.setdefault(symbol)
        order = [v.symbol for v in self.host] + [i.symbol for i in self.inputs]
        return tuple(sorted(seen, key=order.index))

    def cost(self) -> int:
        """Return the operations per element (host and per-tensor work is negligible beside them)."""
        return sum(algebra.cost(v.expr) for v in self.tensor if v.kind == ELEMENT or v.reduces)

    def traffic(self) -> tuple[int, int]:
        """Return (reads, writes) of tensor elements per element of the parameter, over all phases."""
        elements = {i.symbol for i in self.inputs if i.kind == ELEMENT}
        born: dict[sp.Symbol, int] = {}
        reads = 0
        for number, phase in enumerate(self.phases):
            used = set().union(*(v.expr.free_symbols for v in phase)) if phase else set()
            mine = {v.symbol for v in phase}
            carried = {s for s in used - mine if s in born}
            reads += len(used & elements) + len(carried)
            born.update({v.symbol: number for v in phase if v.kind == ELEMENT})
        writes = sum(1 for s in self.stores if s.kind == ELEMENT)
        return reads, writes

    def verify(self) -> None:
        """Check the invariants of every program.

        Raises:
            InvalidProgram: If a symbol is read before it is defined or defined twice, a host value reads a tensor, a
                reduction is nested in another expression, a phase reads one of its own reductions, or a recorded kind
                differs from the kind of the expression.
        """
        kinds: dict[sp.Symbol, Kind] = {}
        for known in self.inputs:
            _require(known.symbol not in kinds, f"{known.symbol} is an input twice")
            kinds[known.symbol] = known.kind
        for value in self.host:
            _define(value, kinds)
            _require(value.kind.level <= Level.HOST, f"{value.symbol} is on the host but is {value.kind}")
        for phase in self.phases:
            pending: set[sp.Symbol] = set()
            for value in phase:
                _require(not (value.expr.free_symbols & pending), f"{value.symbol} reads a reduction of its own phase")
                _define(value, kinds)
                if value.reduces and len(self.phases) > 1:
                    pending.add(value.symbol)
        for store in self.stores:
            missing = store.expr.free_symbols - set(kinds)
            _require(not missing, f"{store.target} is stored from {missing}, which nothing defines")
        targets = [s.target for s in self.stores]
        _require(len(targets) == len(set(targets)), "a target is stored twice")

    def text(self) -> str:
        """Return the program as readable text."""
        return "\n".join(_lines(self))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidProgram(message)


def _define(value: Value, kinds: dict[sp.Symbol, Kind]) -> None:
    missing = value.expr.free_symbols - set(kinds)
    _require(not missing, f"{value.symbol} reads {missing} before it is defined")
    _require(value.symbol not in kinds, f"{value.symbol} is defined twice")
    inner = value.expr.args if value.reduces else (value.expr,)
    _require(
        not any(e.atoms(algebra.Reduction) for e in inner if isinstance(e, sp.Basic)),
        f"{value.symbol} has a reduction inside",
    )
    if value.reduces or value.matrices:
        _require(value.kind.on_device, f"{value.symbol} is of tensors but is {value.kind}")
    else:
        meets = join(kinds[s] for s in value.expr.free_symbols)
        # A matrix may have the parameter's shape under another formula: min(rows, cols) x cols of a wide one.
        fits = meets.level <= value.kind.level or value.kind.level is Level.MATRIX
        _require(fits, f"{value.symbol} is {value.kind} but reads {meets}")
    kinds[value.symbol] = value.kind


def _lines(program: Program) -> Iterator[str]:
    reads, writes = program.traffic()
    yield f"program {program.name}: {reads} reads and {writes} writes of an element, {program.cost()} operations"
    host = [text(i.name) for i in program.inputs if i.kind.level <= Level.HOST]
    tensors = [f"{i.name}: {i.kind}" for i in program.inputs if i.kind.on_device]
    yield f"  inputs  {', '.join(host + tensors)}"
    if program.host:
        yield "  host"
        yield from (f"    {v.symbol} = {algebra.show(v.expr)}" for v in program.host)
    for number, phase in enumerate(program.phases, 1):
        yield f"  phase {number}"
        for v in phase:
            kind = "" if v.kind == ELEMENT else f"    # {v.kind}"
            yield f"    {v.symbol} = {algebra.show(v.expr)}{kind}"
    for s in program.stores:
        yield f"  store   {s.target} <- {algebra.show(s.expr)}"


__all__ = ["ELEMENT", "HOST", "Input", "InvalidProgram", "Program", "Store", "Value"]
