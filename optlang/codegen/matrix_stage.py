"""Generates matrix stages: ``update``, and the functions of its loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import sympy as sp

from optlang.codegen.matrix_source import ORDER, MatrixWriter
from optlang.codegen.memory import INDENT, renamed
from optlang.codegen.naming import python_name, spelled
from optlang.codegen.reuse import may_be_view, multiplied_next, written_over
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Level
from optlang.syntax.quoting import remark


class MatrixStage:
    """Writes ``update`` of a matrix stage.

    Args:
        program: The optimised stage.
        tensors: The runtime names of its tensors, in order.
        ndim: The number of dimensions of the parameter.
    """

    #: What writes the values.
    writes = MatrixWriter

    def __init__(self, program: Program, tensors: Sequence[ValueName], ndim: int) -> None:
        self.program, self.arguments = spelled(renamed(program), tensors)
        self.tensors = [self.arguments[name] for name in tensors]
        kinds = {self.arguments[i.name]: i.kind for i in self.program.inputs if i.kind.on_device}
        whole = next((name for name, kind in kinds.items() if kind.level is Level.ELEMENT), None)
        if whole is None and "p" in tensors:
            whole = self.arguments["p"]
        first = (*kinds, *self.tensors)[0]
        self.writer = self.writes(self.program, ndim, first, whole)
        self.known: dict[sp.Symbol, str] = {}  # names of values that the previous iteration may have computed
        self.ahead: dict[sp.Symbol, str] = {}  # names of values computed for the next iteration

    def functions(self) -> list[list[str]]:
        """Return the lines of ``update``, preceded by the functions it calls."""
        numbers = [str(s) for s in self.program.coefficients()]
        lines = [f"def update({', '.join([*self.tensors, *numbers])}):"]
        lines.append(f'{INDENT}"""What one step makes of some tensors; each has a dimension more, in front."""')
        lines += self.values()
        results = [self.result(s.expr) for s in self.program.stores]
        lines.append(f"{INDENT}return ({', '.join(results)}{',' if len(results) == 1 else ''})")
        return [*loop_functions(self.writer), lines]

    def result(self, expr: sp.Expr) -> str:
        """Return the text of a result: a value, or the pushes to a history."""
        is_pushed = isinstance(expr, algebra.MatrixOperation)
        return self.writer.operation(expr) if is_pushed else self.writer.text(expr)

    def give(self, last: Mapping[sp.Symbol, Sequence[sp.Symbol]]) -> None:
        """Let loops overwrite initial values that were computed only for them, given the last readers of values."""
        values, kinds = {v.symbol: v for v in self.program.tensor}, self.writer.kinds
        fresh = {
            v.symbol for v in values.values() if not may_be_view(v) and v.kind in map(kinds.get, v.expr.free_symbols)
        }
        for value in values.values():
            if isinstance(value.expr, algebra.Loop):
                begin = value.expr.args[2 : 2 + len(value.expr.body.carried)]
                alone = fresh & {*last.get(value.symbol, ())}
                self.writer.given[value.expr.func] = [
                    i for i, s in enumerate(begin) if s in alone and value.expr.args.count(s) == 1
                ]

    def new_rows(self) -> Iterator[str]:
        """Yield the lines that compute entries of histories about to be read for the first time."""
        while self.writer.found:
            yield INDENT + self.writer.found.pop(0)

    def values(self, turns: bool = False) -> Iterator[str]:
        """Yield the assignments, with the lines of the rule they come from as comments.

        Args:
            turns: Whether they are the body of a loop; entries of histories are then computed before the loop.
        """
        line = 0
        added = self.sums_of_products()
        products = {product for product, _ in added.values()}
        last = self.last_reads(added)
        self.give(last)
        for value in self.program.tensor:
            if value.symbol in products:
                continue
            if value.line not in (0, line):
                line = value.line
                yield INDENT + remark(self.program.notes[line])
            text = added[value.symbol][1] if value.symbol in added else self.writer.value(value)
            if not turns:
                yield from self.new_rows()
            if value.symbol in self.known:  # the previous iteration may have computed it
                text = f"{self.known[value.symbol]} if {self.known[value.symbol]} is not None else {text}"
            also = f", {self.ahead[value.symbol]}" if value.symbol in self.ahead else ""
            yield f"{INDENT}{value.symbol}{also} = {text}"
            self.writer.there.append(value.symbol)
            if gone := [s for s in last.get(value.symbol, ()) if s in self.writer.there]:
                self.writer.there = [s for s in self.writer.there if s not in gone]
                yield f"{INDENT}del {', '.join(map(str, gone))}"

    def last_reads(self, added: Mapping[sp.Symbol, tuple[sp.Symbol, str]]) -> dict[sp.Symbol, list[sp.Symbol]]:
        """Return the values last read by each value, to be freed: they are as large as a stack."""
        made = {v.symbol: v.expr.free_symbols for v in self.program.tensor}
        kept = {s for store in self.program.stores for s in store.expr.free_symbols}
        last: dict[sp.Symbol, sp.Symbol] = {}
        products = {product for product, _ in added.values()}
        for value in self.program.tensor:
            if value.symbol in products:
                continue
            read = set(made[value.symbol])
            if value.symbol in added:
                product = added[value.symbol][0]
                read = (read - {product}) | made[product]
            last |= dict.fromkeys((s for s in read if s in made and s not in kept), value.symbol)
        found: dict[sp.Symbol, list[sp.Symbol]] = {}
        for symbol, reader in last.items():
            found.setdefault(reader, []).append(symbol)
        return {reader: sorted(symbols, key=str) for reader, symbols in found.items()}

    def sums_of_products(self) -> dict[sp.Symbol, tuple[sp.Symbol, str]]:
        """Return the values a*X + b*(A @ B) as one torch call each, with the products they absorb."""
        tensor = {v.symbol: v for v in self.program.tensor}
        uses = Counter(s for v in self.program.tensor for s in v.expr.free_symbols)
        uses.update(s for store in self.program.stores for s in store.expr.free_symbols)
        types, alike = self.writer.types, self.alike()
        found: dict[sp.Symbol, tuple[sp.Symbol, str]] = {}
        for value in self.program.tensor:
            if value.matrices or not value.expr.is_Add or len(value.expr.args) != 2:
                continue
            terms = [self.scaled(term) for term in value.expr.args]
            for (a, x), (b, y) in (terms, terms[::-1]):
                if x is None or y is None or not _is_product(tensor.get(y)) or uses[y] > 1 or y not in tensor:
                    continue
                left, right = tensor[y].expr.args
                if {left, right} & alike:  # torch broadcasts the addend, but not a factor
                    continue
                kinds = [self.writer.rank_of(self.writer.kinds[s]) for s in (x, left, right)]
                same = {types.get(s, "") for s in (x, left, right)}
                if kinds == [2, 2, 2] and len(same) == 1 and same != {ORDER} and x in self.writer.kinds:
                    self.writer.rank = None
                    options = (("beta", self.writer.text(a)), ("alpha", self.writer.text(b)))
                    kept = [f"{option}={text}" for option, text in options if text != "1"]
                    function = "torch.baddbmm"
                    if same == {"bf16"}:
                        function = "multiply_add_in_16_bits"
                        self.writer.helpers |= {function, "multiplied_in"}
                    found[value.symbol] = (y, f"{function}({', '.join([str(x), str(left), str(right), *kept])})")
                    break
        return found

    def scaled(self, term: sp.Expr) -> tuple[sp.Expr, sp.Symbol | None]:
        """Return a term as a number times a tensor; None instead of the tensor if it has another form."""
        tensors = [s for s in sp.Mul.make_args(term) if s.is_Symbol and self.writer.kinds[s].on_device]
        if len(tensors) != 1:
            return term, None
        rest = sp.Mul(*(a for a in sp.Mul.make_args(term) if a is not tensors[0]))
        return (rest, tensors[0]) if self.writer.is_plain(rest) else (term, None)

    def alike(self) -> set[sp.Symbol]:
        """Return the values that depend only on sizes, and are thus the same for the whole stack."""
        found: set[sp.Symbol] = set()
        for value in self.program.tensor:
            if all(s in found for s in value.expr.free_symbols if self.writer.kinds[s].on_device):
                found.add(value.symbol)
        return found


def loop_functions(writer: MatrixWriter) -> list[list[str]]:
    """Return the lines of the functions of all loops a writer has met, including nested ones."""
    functions: list[list[str]] = []
    while len(functions) < len(writer.loops):
        loop, name = list(writer.loops.items())[len(functions)]
        functions.append(list(LoopFunction(writer, loop).lines(name)))
    return functions


class LoopFunction:
    """Writes the function of a loop over the entries of a history.

    Its parameters are the number of filled entries, the capacity, the initial loop-carried values, and everything else
    it reads.

    Args:
        writer: The writer of the enclosing stage.
        loop: The loop.
    """

    def __init__(self, writer: MatrixWriter, loop: type[algebra.Loop]) -> None:
        body = self.body = loop.body
        self.turn = MatrixStage(body.program, (), writer.ndim)
        own = self.turn.writer
        own.loops, own.helpers, own.given = writer.loops, writer.helpers, writer.given
        inputs = (i.symbol for i in body.program.inputs)
        self.names = dict(zip(inputs, self.turn.arguments.values(), strict=True))
        self.taken = {*self.names.values(), *(str(v.symbol) for v in self.turn.program.values)}
        self.carried = [self.names[s] for s in body.carried]
        self.over = written_over(self.turn.program, list(map(sp.Symbol, self.carried)), own.added_to)
        self.given = {sp.Symbol(self.carried[i]) for i in writer.given.get(loop, ())}

    def name(self, wanted: str) -> str:
        """Return an unused name."""
        chosen = python_name(wanted, self.taken)
        self.taken.add(chosen)
        return chosen

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of the function."""
        body, turn, names = self.body, self.turn, self.names
        count, size, first, last = map(self.name, ("count", "size", "first", "last"))
        # Buffers of the loop, once it has some: initial values are overwritten only if nobody else reads them.
        own = turn.writer.over = {value: self.name(f"{before}_own") for value, before in self.over.items()}
        self.do_ahead(first, last)
        values, turns = list(turn.values(turns=True)), f"range({first}, {last})"
        order = "newest" if body.backwards else "oldest"
        yield f"def {name}({', '.join([count, size, *self.carried, *(names[s] for s in body.read)])}):"
        yield f'{INDENT}"""A loop over the entries of a history, the {order} first."""'
        yield from (f"{INDENT}{entries} = {entries}.clone()  # to be filled in" for entries in self.filled_in())
        yield from turn.new_rows()
        yield f"{INDENT}{first}, {last} = int({size}) - int({count}), int({size})"
        for value, before in self.over.items():
            memory = before if before in self.given else None
            yield f"{INDENT}{own[value]} = {memory}  # memory that a turn may write to"
        yield from (f"{INDENT}{ahead} = None  # what a turn computes for the next" for ahead in turn.ahead.values())
        yield f"{INDENT}for {names[body.place]} in {f'reversed({turns})' if body.backwards else turns}:"
        yield from (f"{INDENT}{line}" for line in values)
        results = [turn.writer.text(s.expr) for s in turn.program.stores]
        yield f"{INDENT * 2}{', '.join([*self.carried, *own.values()])} = {', '.join([*results, *map(str, own)])}"
        yield f"{INDENT}return ({', '.join(self.carried)}{',' if len(results) == 1 else ''})"

    def do_ahead(self, first: str, last: str) -> None:
        """Let an iteration multiply a loop-carried value with the entry that the next one reads."""
        turn, place = self.turn, sp.Symbol(self.names[self.body.place])
        following, is_there = (f"{place} + 1", f"{place} + 1 < {last}")
        if self.body.backwards:
            following, is_there = f"{place} - 1", f"{place} > {first}"
        for value, (product, history) in multiplied_next(turn.program, place, self.over, turn.writer.is_dot).items():
            turn.known[product] = turn.ahead[value] = self.name(f"{product}_ahead")
            turn.writer.following[value] = f"{turn.writer.rows(history)}[{following}] if {is_there} else None"

    def filled_in(self) -> list[str]:
        """Return the names of the tensors filled with one value per entry."""
        operations = [v.expr for v in self.body.program.tensor if v.matrices]
        filled = {e.args[0] for e in operations if algebra.name_of(e) == "collected"}
        return [self.names[s] for s in self.body.carried if s in filled]


def _is_product(value: Value | None) -> bool:
    return value is not None and value.matrices and algebra.name_of(value.expr) == "matmul"
