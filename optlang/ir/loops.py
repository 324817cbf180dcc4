"""Lowering of loops over the entries of a history: each is one operation that holds a program for its body.

The inputs of the body's program are the position in the history, the loop-carried values and everything else it reads.
Formulas outside the loop see the results of the operation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from optlang.expand.histories import counter
from optlang.functions.shapes import Size
from optlang.ir import algebra
from optlang.ir.builder import ProgramBuilder, Ref
from optlang.ir.histories import Histories
from optlang.ir.matrices import SEVERAL
from optlang.ir.passes import prune
from optlang.ir.program import Input, Program, Store
from optlang.kinds import HOST, SCALAR, Kind
from optlang.source import Source, Span
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned


@dataclass(frozen=True, eq=False)
class Body:
    """The body of a loop.

    Attributes:
        program: One iteration; its stores are the loop-carried values, in the order of ``carried``.
        place: The symbol of the position in the history.
        carried: The symbols of the values carried over from the previous iteration.
        read: The other values read, as symbols of the enclosing program.
        backwards: Whether the loop starts at the newest entry.
    """

    program: Program
    place: sp.Symbol
    carried: tuple[sp.Symbol, ...]
    read: tuple[sp.Symbol, ...]
    backwards: bool


class _Turn(ProgramBuilder):
    """Collects the values of a body; loop invariants on the host go to the enclosing program."""

    def __init__(self, outside: ProgramBuilder) -> None:
        super().__init__(outside.taken, outside.sizes)
        self.outside, self.inputs, self.used = outside, outside.inputs, outside.used
        self.line = outside.line
        self.own: dict[sp.Symbol, Kind] = {}  # the position and the loop-carried values

    def kinds(self) -> dict[sp.Symbol, Kind]:
        """Return the kinds of all symbols, including those outside."""
        return {**self.outside.kinds(), **self.own, **super().kinds()}

    def bind(self, stem: str, ref: Ref, rounds: bool = False) -> Ref:
        """Bind a value to a new name; host numbers are computed once, outside the loop."""
        return super().bind(stem, ref, rounds) if ref.kind.on_device else self.outside.bind(stem, ref, rounds)


class Loops(Histories):
    """Lowers loops; statements in general are lowered by a subclass."""

    env: dict[str, Ref]
    #: The tensors that ``a[i] = x`` fills in the current loop, and their kinds.
    entries: dict[str, tuple[sp.Symbol, Kind]]
    places: dict[str, Size]  # capacities of the histories looped over, by loop variable
    source: Source

    @abstractmethod
    def line_of(self, span: Span) -> int:
        """Return the line of a span in the rule."""

    @abstractmethod
    def block(self, statements: Sequence[ast.Stmt]) -> None:
        """Lower statements in order."""

    @abstractmethod
    def write(self, name: str, ref: Ref) -> None:
        """Set the current value of ``name``."""

    @abstractmethod
    def plain(self, ref: Ref) -> sp.Expr:
        """Return a value as a symbol or number, which a store can refer to."""

    @abstractmethod
    def number(self, ref: Ref) -> sp.Expr:
        """Return a value for use in arithmetic."""

    def loop(self, node: ast.For) -> None:
        """Lower a ``for`` over a history."""
        filled, size = self.name(counter(node.over_name)), self.shape_of(self.name(node.over_name).kind)[0]
        self.out.read_sizes((size,))
        before, done, outside, entries = dict(self.env), dict(self.done), self.out, self.entries
        self.places[node.name.name] = size
        names = [n for n in dict.fromkeys(t.name for t in assigned(node.body)) if self.stands(n)]
        first = {name: self.name(name) for name in names if name != node.name.name}
        kinds = {name: ref.kind if ref.kind.on_device else SCALAR for name, ref in first.items()}
        while True:  # the kind of a loop-carried value may grow beyond that of its initial value
            self.env, self.done, self.out, self.entries = dict(before), dict(done), _Turn(outside), {}
            place = self.out.symbol(node.name.name)
            carried = {name: self.out.symbol(name) for name in kinds}
            self.out.own = {place: HOST, **{symbol: kinds[name] for name, symbol in carried.items()}}
            self.env |= {name: Ref(symbol, kinds[name]) for name, symbol in carried.items()}
            self.env[node.name.name] = Ref(place, HOST)
            self.block(node.body)
            larger = {name: self.env[name].kind for name in kinds if self.env[name].kind.level > kinds[name].level}
            if not larger:
                break
            kinds |= larger
        for name, (symbol, kind) in self.entries.items():
            carried[name], kinds[name], first[name] = symbol, kind, Ref(sp.Integer(0), kind)
        results = {name: self.plain(self.env[name]) for name in carried}
        body = self.body(node, place, carried, kinds, results)
        self.env, self.done, self.out, self.entries = before, done, outside, entries
        self.out.line = self.line_of(node.span)
        begin = [self.named(self.spread(first[name], kinds[name])).expr for name in carried]
        whole = self.out.bind(
            "loop", Ref(algebra.loop(body)(self.plain(filled), sp.sympify(size), *begin, *body.read), SEVERAL)
        )
        for i, name in enumerate(carried):
            item = algebra.matrix_operation("item")(whole.expr, sp.Integer(i))
            self.write(name, self.out.bind(name, Ref(item, kinds[name])))

    def stands(self, name: str) -> bool:
        """Return whether a name has a value before the loop."""
        return name in self.env or name in ("p", "g") or name in {s.name for s in self.core.states}

    def spread(self, ref: Ref, kind: Kind) -> Ref:
        """Return a value broadcast to the shape of a kind."""
        if ref.kind == kind or not self.number(ref).free_symbols:
            return Ref(self.number(ref), kind)
        return self.filled(ref, kind)

    def entry(self, node: ast.Assign) -> None:
        """Lower ``a[i] = x``, which fills one entry of a."""
        (target,) = node.targets
        assert node.at is not None
        x = self.expr(node.value)
        if not x.kind.on_device:
            x = Ref(self.number(x), SCALAR)
        value = self.named(x)
        if target.name not in self.env:
            shape = (self.places[node.at.name], *self.shape_of(value.kind))
            assert isinstance(self.out, _Turn)
            symbol, kind = self.entries[target.name] = (self.out.symbol(target.name), self.kind_of_shape(shape))
            self.env[target.name] = Ref(symbol, kind)
            self.out.own[symbol] = kind
        entries = self.env[target.name]
        place = self.name(node.at.name).expr
        filled = self.operation("collected", entries.kind, entries.expr, place, value.expr)
        self.env[target.name] = filled
        # Reading back the entry just filled yields the value itself.
        self.done[algebra.matrix_operation("index")(filled.expr, place)] = value

    def body(
        self,
        node: ast.For,
        place: sp.Symbol,
        carried: Mapping[str, sp.Symbol],
        kinds: Mapping[str, Kind],
        results: Mapping[str, sp.Expr],
    ) -> Body:
        """Return the body of a lowered loop."""
        values = tuple(self.out.tensor)
        made = {place, *carried.values(), *(v.symbol for v in values)}
        exprs = (*(v.expr for v in values), *results.values())
        read = sorted({s for expr in exprs for s in expr.free_symbols} - made, key=str)
        assert isinstance(self.out, _Turn)
        outer = self.out.outside.kinds()
        inputs = [Input(place, str(place), HOST)]
        inputs += [Input(symbol, str(symbol), kinds[name]) for name, symbol in carried.items()]
        inputs += [Input(symbol, str(symbol), outer[symbol]) for symbol in read]
        stores = tuple(Store(name, expr, kinds[name]) for name, expr in results.items())
        notes = {v.line: self.source.line(v.line).strip() for v in values if v.line}
        program = prune.run(Program("", tuple(inputs), (), (values,), stores, notes))
        always = inputs[: 1 + len(carried)]  # these stay even if the body does not read them
        left = tuple(i for i in program.inputs if i not in always)
        program = replace(program, inputs=(*always, *left))
        return Body(program, place, tuple(carried.values()), tuple(i.symbol for i in left), node.backwards)
