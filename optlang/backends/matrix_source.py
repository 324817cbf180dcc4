"""Passes over whole matrices as Python: torch's own operations on stacks of matrices that are treated alike.

Every tensor has one dimension more in front than the rule says. One number per tensor is then a vector, and is given as
many dimensions as what it meets. Coefficients are Python numbers. Results are returned, and written by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import sympy as sp

from optlang.backends.helpers import called
from optlang.backends.memory import INDENT, renamed
from optlang.backends.naming import python_name, spelled
from optlang.backends.reuse import may_be_view, multiplied_next, written_over
from optlang.backends.spelling import ATOM, OR, Piece, TorchWriter
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.language.builtins import BUILTINS, LINEAR
from optlang.language.kinds import Kind, Level
from optlang.language.quoting import remark

#: The mark of values that are orders (see :meth:`MatrixWriter.is_order`).
ORDER = "order"


class MatrixWriter(TorchWriter):
    """Writes stacks of tensors.

    Args:
        program: What is written.
        ndim: Dimensions of the parameter.
        like: Name of a tensor of the number type that arithmetic is done in.
        whole: Name of a tensor of the parameter's shape, if there is one.
    """

    def __init__(self, program: Program, ndim: int, like: str, whole: str | None) -> None:
        self.kinds = program.kinds()
        plain = frozenset(s for s, kind in self.kinds.items() if kind.level <= Level.HOST)
        flags = {v.symbol for v in program.host if v.boolean} | {i.symbol for i in program.inputs if i.name == "first"}
        super().__init__(f"{like}.dtype", frozenset(flags), plain)
        self.ndim, self.like, self.whole = ndim, like, whole
        self.conditions = {v.symbol for v in program.values if v.boolean}
        self.loops: dict[type[algebra.Loop], str] = {}  # names of the functions that are loops
        self.histories: dict[tuple[sp.Expr, ...], str] = {}  # names of their entries
        self.following: dict[sp.Symbol, str] = {}  # names of what they are then multiplied with, in the next turn
        self.over: dict[sp.Symbol, str] = {}  # names of memory that values may be written to
        self.found: list[str] = []  # lines that give these names, to be written before they are read
        self.given: dict[type[algebra.Loop], list[int]] = {}  # which of what loops hand on begins in memory of theirs
        self.rank: int | None = None
        self.there = [i.symbol for i in program.inputs if i.kind.on_device]  # tensors that have been computed
        self.types: dict[sp.Symbol, str] = {}
        #: Names of the functions with several results, by what these are called.
        self.several = {v.symbol: algebra.name_of(v.expr) for v in program.tensor if v.matrices}
        for value in program.tensor:
            self.types[value.symbol] = self.type_of(value.expr)

    def type_of(self, expr: sp.Expr) -> str:
        """Return a mark that differs where number types may: what was rounded to one goes on in it."""
        if expr.is_Function and algebra.name_of(expr) in ("bf16", "f32"):
            return algebra.name_of(expr)
        if self.is_order(expr):
            return ORDER
        found = {self.types.get(s, "") for s in expr.free_symbols if self.kinds[s].on_device}
        found = {"" if t == ORDER else t for t in found}
        if expr.is_Function and self.is_linear(algebra.name_of(expr)) and "bf16" in found:
            return "f32"
        return found.pop() if len(found) == 1 else ""

    def is_order(self, expr: sp.Expr) -> bool:
        """Whether a value is an order: whole numbers to torch, which arithmetic takes as numbers like any others."""
        if not isinstance(expr, algebra.MatrixOperation):
            return False
        name, args = algebra.name_of(expr), expr.args
        if name in ("index", "flip"):
            return self.types.get(args[0]) == ORDER
        if name == "item":
            row = BUILTINS.get(self.several.get(args[0], ""))
            return row is not None and row.results[int(args[1])] in row.orders
        return name in BUILTINS and name in BUILTINS[name].orders

    @staticmethod
    def is_linear(name: str) -> bool:
        """Whether a function is of those that torch does not have in 16 bits."""
        return name in BUILTINS and BUILTINS[name].group == LINEAR

    def rank_of(self, kind: Kind) -> int:
        """Return the number of dimensions of a value of a kind, without the one in front."""
        if kind.level is Level.MATRIX:
            return len(kind.shape)
        return self.ndim if kind.level in (Level.REDUCED, Level.ELEMENT) else 0

    def value(self, value: Value) -> str:
        """Return the text of a value."""
        self.rank = self.rank_of(value.kind)
        if value.matrices:
            return self.operation(value.expr)
        if value.kind.on_device and (text := self.multiply_add(value)):
            return text
        if value.kind.on_device and self.is_plain(value.expr):  # a number that stands for a tensor
            alike = next((s for s in self.there if self.kinds[s] == value.kind), None)
            if alike is not None:
                return f"torch.full_like({alike}, {self.text(value.expr)}, dtype={self.dtype})"
            return f"{self.like}.new_full(({', '.join('1' * (self.rank + 1))},), {self.text(value.expr)})"
        return self.text(value.expr)

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; one number per tensor with as many dimensions as what it meets."""
        kind = self.kinds[expr]
        if expr in self.flags:
            return super().symbol(expr)
        name = f"{expr.name}.to({self.dtype})" if self.types.get(expr) == ORDER else expr.name
        if self.rank and kind.on_device and self.rank_of(kind) == 0:
            return f"{name}[:{', None' * self.rank}]", ATOM
        return name, ATOM

    def reduction(self, expr: algebra.Reduction) -> Piece:
        """Return a reduction; sums and means are accumulated in float64 and keep their number type."""
        name = algebra.name_of(expr)
        inner, *dims = expr.args
        outer, ranks = self.rank, [self.rank_of(self.kinds[s]) for s in inner.free_symbols]
        self.rank = max(ranks, default=0)
        if name == "sum" and self.is_dot(inner):
            self.rank = outer
            self.helpers |= {"stack_dots", "stack_sum"}
            result = f"stack_dots({', '.join(str(x) for x in inner.args)})"
            return result + (f"[:{', None' * outer}]" if outer else ""), ATOM
        squares = name == "sum" and inner.is_Pow and inner.exp == 2
        text = self.text(inner.base if squares else inner, OR)
        places = [int(d) + 1 if d >= 0 else int(d) for d in dims] or list(range(1, self.rank + 1))
        if not places:  # of tensors without dimensions
            self.rank = outer
            return f"torch.square({text})" if squares else f"({text})", ATOM
        keep = ", keepdim=True" if dims else ""
        dim = f"({', '.join(map(str, places))}{',' if len(places) == 1 else ''})"
        self.rank = outer
        if name in ("max", "min"):
            result = f"torch.a{name}({text}, {dim}{keep})"
        else:
            helper = "stack_squares" if squares else f"stack_{name}"
            self.helpers.add(helper)
            result = f"{helper}({text}, {dim}{keep})"
        if self.rank and not dims:  # in the middle of a formula over matrices
            result += f"[:{', None' * self.rank}]"
        return result, ATOM

    def is_dot(self, expr: sp.Expr) -> bool:
        """Whether an expression is the product of two vectors, element by element."""
        return (
            expr.is_Mul
            and len(expr.args) == 2
            and all(x.is_Symbol and self.rank_of(self.kinds[x]) == 1 for x in expr.args)
            and {self.types.get(x, "") for x in expr.args} == {""}
        )

    def multiply_add(self, value: Value) -> str | None:
        """Return x + c*y of vectors as one call of torch; None if a value is not that."""
        parts = self.summands(value)
        if parts is None:
            return None
        x, factor, y = parts
        if value.symbol in self.following:
            self.helpers |= {"multiply_add_dot", "stack_dots", "stack_sum"}
            self.rank = 0  # one number: in a loop, each tensor is alone
            others = f"{y}, {self.over[value.symbol]}, {self.following[value.symbol]}"
            return f"multiply_add_dot({x}, {self.text(factor)}, {others})"
        into = f", out={self.over[value.symbol]}" if value.symbol in self.over else ""
        if self.is_plain(factor):
            return f"torch.add({x}, {y}, alpha={self.text(factor)}{into})"
        negative = factor.could_extract_minus_sign() and factor.is_Mul
        self.rank = 1
        text = self.text(-factor if negative else factor)
        return f"torch.addcmul({x}, {text}, {y}{', value=-1' if negative else ''}{into})"

    def summands(self, value: Value) -> tuple[sp.Symbol, sp.Expr, sp.Symbol] | None:
        """Return the x, c and y of a value that is x + c*y of vectors; None if it is not that."""
        if value.matrices or not value.expr.is_Add or len(value.expr.args) != 2:
            return None
        first, second = value.expr.args
        for x, term in ((first, second), (second, first)):
            vectors = [f for f in sp.Mul.make_args(term) if f.is_Symbol and self.rank_of(self.kinds[f]) == 1]
            if not (x.is_Symbol and self.rank_of(self.kinds[x]) == 1 and len(vectors) == 1):
                continue
            (y,) = vectors
            factor = sp.Mul(*(f for f in sp.Mul.make_args(term) if f is not y))
            used = factor.free_symbols
            if factor in (1, -1) or {self.types.get(s, "") for s in (x, y, *used)} != {""}:
                continue
            if any(self.kinds[s].on_device and self.rank_of(self.kinds[s]) for s in used):
                continue
            return x, factor, y
        return None

    def added_to(self, value: Value) -> sp.Symbol | None:
        """Return the x of a value that is x + c*y of vectors."""
        parts = self.summands(value)
        return parts[0] if parts else None

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on stacks; rounding to a number type means to go on in it."""
        if name in ("f32", "bf16"):
            return self.fill(BUILTINS[name].torch or "", args)
        if name == "not" and self.is_plain(args[0]):
            return f"(not {self.text(args[0])})", ATOM
        return super().named(name, args)

    def select(self, condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> Piece:
        """Return a choice; a number that is chosen instead of a tensor becomes one."""
        sides = [self.text(side) for side in (then, other)]
        if self.is_plain(condition):
            if self.is_plain(then) != self.is_plain(other):
                number = 0 if self.is_plain(then) else 1
                sides[number] = f"torch.full_like({sides[1 - number]}, {sides[number]})"
            return f"({sides[0]} if {self.text(condition)} else {sides[1]})", ATOM
        numbers = self.is_plain(then) and self.is_plain(other)
        if numbers and then not in self.conditions and not algebra.is_condition(then):
            # Of two numbers torch would make one of its default type.
            one = f"torch.full((), {sides[0]}, dtype={self.dtype}, device={self.like}.device)"
            return f"torch.where({self.text(condition)}, {one}, {sides[1]})", ATOM
        return super().select(condition, then, other)

    # Operations ---------------------------------------------------------------------------------------------

    def operation(self, expr: sp.Expr) -> str:
        """Return an operation on matrices."""
        self.rank = None
        name, args = algebra.name_of(expr), expr.args
        if isinstance(expr, algebra.Loop):
            function = self.loops.setdefault(expr.func, f"for_each_{len(self.loops) + 1}")
            return f"{function}({', '.join(map(self.text, args))})"
        texts = [self.text(a) for a in args if not _is_slice(a)]
        match name:
            case "matmul":
                return self.matrix_product(*args)
            case "transpose":
                return f"{texts[0]}.mT"
            case "item":
                return f"{args[0]}[{int(args[1])}]"
            case "index":
                return self.index(args[0], args[1:])
            case "shaped":
                x = texts[0]
                return f"{x}.reshape({x}.shape[0], *{self.whole}.shape[1:])" if self.whole else x
            case "matrix":
                return (
                    f"{texts[0]}.flatten(2)" if self.rank_of(self.kinds[args[0]]) > 1 else f"{texts[0]}.unsqueeze(-1)"
                )
            case "zeros" | "ones":
                sizes = ", ".join(["1", *(self.size(a) for a in args)])
                return f"{self.like}.new_{name}(({sizes}))"
            case "eye":
                like = f"dtype={self.like}.dtype, device={self.like}.device"
                return f"torch.eye({self.size(args[0])}, {like}).unsqueeze(0)"
            case "entry":
                return f"{self.rows(args[:2] + args[3:])}[{self.size(args[2])}]"
            case "in_order":
                return f"torch.stack({self.rows(args)}, 1)"
            case "pushed" | "collected":
                self.helpers.add(name)
                return f"{name}({', '.join(texts)})"
        row = BUILTINS[name]
        assert row.torch is not None, f"{name} has no spelling on matrices"
        self.helpers |= called(row.torch)
        if self.is_order(expr) and name == "flip":
            texts[0] = str(args[0])
        if row.sized:
            texts[1] = self.size(args[1])
        if row.numbered:
            number = int(args[1])
            texts[1] = str(number + 1 if row.takes_dim and number >= 0 else number)
        if self.is_linear(name) and any(self.types.get(a) == "bf16" for a in args):
            texts = [f"{text}.to(torch.float32)" for text in texts]
        return row.torch.format(*texts)

    def rows(self, history: tuple[sp.Expr, ...]) -> str:
        """Return the name of the entries of a history, which are found once in a function."""
        if history not in self.histories:
            self.helpers.add("rows")
            name = python_name(f"{history[0]}_rows", {*map(str, self.kinds), *self.histories.values()})
            self.histories[history] = name
            self.found.append(f"{name} = rows({', '.join(map(self.text, history))})")
        return self.histories[history]

    def size(self, expr: sp.Expr) -> str:
        """Return a size, which arrives as a number like any other."""
        return str(int(expr)) if expr.is_Integer else f"int({self.text(expr)})"

    def matrix_product(self, a: sp.Symbol, b: sp.Symbol) -> str:
        """Return a product of matrices and vectors."""
        left, right = self.rank_of(self.kinds[a]), self.rank_of(self.kinds[b])
        types = [self.types.get(x, "") for x in (a, b)]
        a, b = (sp.Symbol(self.text(x)) for x in (a, b))
        if len({"" if t == ORDER else t for t in types}) > 1:
            self.helpers.add("in_one_type")
            a, b = (sp.Symbol(f"in_one_type({x}, {y})") for x, y in ((a, b), (b, a)))
        match (left, right):
            case (2, 2):
                self.helpers.add("product")
                return f"product({a}, {b})"
            case (2, 1):
                return f"({a} @ {b}.unsqueeze(-1)).squeeze(-1)"
            case (1, 2):
                return f"({a}.unsqueeze(-2) @ {b}).squeeze(-2)"
            case _:
                return f"({a} * {b}).sum(-1)"

    def index(self, whole: sp.Symbol, items: Sequence[sp.Expr]) -> str:
        """Return a part of a tensor: slices and numbers at once, then what orders a dimension."""
        parts, orders, dim = [":"], list[tuple[str, int]](), 1
        for item in items:
            if _is_slice(item):
                first, last = item.args
                start = "" if first == 0 else self.size(first)
                stop = "" if algebra.is_literal(last) and not last.is_Rational else self.size(last)
                parts.append(f"{start}:{stop}")
            elif item.is_Symbol and self.kinds[item].on_device:
                parts.append(":")
                orders.append((str(item), dim))
            else:
                parts.append(self.size(item))
                continue
            dim += 1
        text = str(whole)
        if any(part != ":" for part in parts):
            text = f"{text}[{', '.join(parts)}]"
        for order, place in orders:
            self.helpers.add("ordered")
            text = f"ordered({text}, {order}, {place})"
        return text


def _is_slice(expr: sp.Expr) -> bool:
    return bool(expr.is_Function) and algebra.name_of(expr) == "slice"


class MatrixPass:
    """Writes ``update`` of a pass over matrices.

    Args:
        program: The pass, optimised.
        tensors: Runtime's names of the tensors it takes, in order.
        ndim: Dimensions of the parameter.
    """

    def __init__(self, program: Program, tensors: Sequence[ValueName], ndim: int) -> None:
        self.program, self.arguments = spelled(renamed(program), tensors)
        self.tensors = [self.arguments[name] for name in tensors]
        kinds = {self.arguments[i.name]: i.kind for i in self.program.inputs if i.kind.on_device}
        whole = next((name for name, kind in kinds.items() if kind.level is Level.ELEMENT), None)
        if whole is None and "p" in tensors:
            whole = self.arguments["p"]
        first = (*kinds, *self.tensors)[0]
        self.writer = MatrixWriter(self.program, ndim, first, whole)
        self.known: dict[sp.Symbol, str] = {}  # names under which the turn of a loop before may have left a value
        self.ahead: dict[sp.Symbol, str] = {}  # names under which what is computed with a value is left for the next

    def update(self) -> list[str]:
        """Return the lines of the function."""
        numbers = [str(s) for s in self.program.coefficients()]
        lines = [f"def update({', '.join([*self.tensors, *numbers])}):"]
        lines.append(f'{INDENT}"""What one step makes of some tensors; each has a dimension more, in front."""')
        values = list(self.values())
        lines += [*loop_functions(self.writer), *values]
        results = [self.result(s.expr) for s in self.program.stores]
        return [*lines, f"{INDENT}return ({', '.join(results)}{',' if len(results) == 1 else ''})"]

    def result(self, expr: sp.Expr) -> str:
        """Return what is written: a value, or what is pushed to a history."""
        is_pushed = isinstance(expr, algebra.MatrixOperation)
        return self.writer.operation(expr) if is_pushed else self.writer.text(expr)

    def do_ahead(
        self, place: sp.Symbol, over: Mapping[sp.Symbol, sp.Symbol], backwards: bool, taken: set[str]
    ) -> tuple[str, str]:
        """Let a turn of a loop multiply what it hands on with the entry that the next one reads.

        Args:
            place: The place in the history.
            over: What is handed on, with what it is written over.
            backwards: Whether the newest entry comes first.
            taken: Names that are in use.

        Returns:
            Names of the places where the loop begins and ends.
        """
        first, last = (python_name(wanted, taken) for wanted in ("first", "last"))
        taken |= {first, last}
        following, is_there = (
            (f"{place} - 1", f"{place} > {first}") if backwards else (f"{place} + 1", f"{place} + 1 < {last}")
        )
        for value, (product, history) in multiplied_next(self.program, place, over, self.writer.is_dot).items():
            self.known[product] = self.ahead[value] = python_name(f"{product}_ahead", taken)
            self.writer.following[value] = f"{self.writer.rows(history)}[{following}] if {is_there} else None"
        return first, last

    def give(self, last: Mapping[sp.Symbol, Sequence[sp.Symbol]]) -> None:
        """Let loops write to what has been computed for them alone, given what is read last in the making of what."""
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
        """Yield the lines that find the entries of histories which are about to be read for the first time."""
        while self.writer.found:
            yield INDENT + self.writer.found.pop(0)

    def values(self, turns: bool = False) -> Iterator[str]:
        """Yield the assignments, with the lines of the rule they come from as comments.

        Args:
            turns: Whether they are made again and again, in a loop, before which the entries of histories are found.
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
            if value.symbol in self.known:  # the turn before may have computed it
                text = f"{self.known[value.symbol]} if {self.known[value.symbol]} is not None else {text}"
            also = f", {self.ahead[value.symbol]}" if value.symbol in self.ahead else ""
            yield f"{INDENT}{value.symbol}{also} = {text}"
            self.writer.there.append(value.symbol)
            if gone := [s for s in last.get(value.symbol, ()) if s in self.writer.there]:
                self.writer.there = [s for s in self.writer.there if s not in gone]
                yield f"{INDENT}del {', '.join(map(str, gone))}"

    def last_reads(self, added: Mapping[sp.Symbol, tuple[sp.Symbol, str]]) -> dict[sp.Symbol, list[sp.Symbol]]:
        """Return the values that are read last in the making of another: they are as large as a stack."""
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
        """Return the values that are a*X + b*(A @ B), as one call of torch each, with the products they take in."""
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
                if {left, right} & alike:  # torch spreads what is added, but no factor
                    continue
                kinds = [self.writer.rank_of(self.writer.kinds[s]) for s in (x, left, right)]
                same = {types.get(s, "") for s in (x, left, right)}
                if kinds == [2, 2, 2] and len(same) == 1 and same != {ORDER} and x in self.writer.kinds:
                    self.writer.rank = None
                    options = [f"beta={self.writer.text(a)}", f"alpha={self.writer.text(b)}"]
                    kept = [o for o in options if not o.endswith("=1")]
                    found[value.symbol] = (y, f"torch.baddbmm({', '.join([str(x), str(left), str(right), *kept])})")
                    break
        return found

    def scaled(self, term: sp.Expr) -> tuple[sp.Expr, sp.Symbol | None]:
        """Return a term as a number times a tensor; None if it is not."""
        tensors = [s for s in sp.Mul.make_args(term) if s.is_Symbol and self.writer.kinds[s].on_device]
        if len(tensors) != 1:
            return term, None
        rest = sp.Mul(*(a for a in sp.Mul.make_args(term) if a is not tensors[0]))
        return (rest, tensors[0]) if self.writer.is_plain(rest) else (term, None)

    def alike(self) -> set[sp.Symbol]:
        """Return the values that are made of sizes alone, and so are one for the whole stack."""
        found: set[sp.Symbol] = set()
        for value in self.program.tensor:
            if all(s in found for s in value.expr.free_symbols if self.writer.kinds[s].on_device):
                found.add(value.symbol)
        return found


def loop_functions(writer: MatrixWriter) -> list[str]:
    """Return the functions of the loops that a writer has met, and of those within them, as the lines of a block.

    A function takes how many entries are filled and how many there is room for, what the first turn gets from before
    it, and what else is read.
    """
    functions: list[list[str]] = []
    while len(functions) < len(writer.loops):
        loop, name = list(writer.loops.items())[len(functions)]
        body = loop.body
        written = MatrixPass(body.program, (), writer.ndim)
        written.writer.loops, written.writer.helpers, written.writer.given = writer.loops, writer.helpers, writer.given
        names = dict(zip((i.symbol for i in body.program.inputs), written.arguments.values(), strict=True))
        taken = {*names.values(), *(str(v.symbol) for v in written.program.values)}
        count, size = (python_name(wanted, taken) for wanted in ("count", "size"))
        carried = [names[s] for s in body.carried]
        over = written_over(written.program, list(map(sp.Symbol, carried)), written.writer.added_to)
        given = {sp.Symbol(carried[i]) for i in writer.given.get(loop, ())}
        # Memory of the loop's own, once it has some: what comes from outside is written to if nobody else reads it.
        own = {value: python_name(f"{before}_own", taken) for value, before in over.items()}
        written.writer.over = own
        ends = written.do_ahead(sp.Symbol(names[body.place]), over, body.backwards, taken)
        operations = [v.expr for v in body.program.tensor if v.matrices]
        filled = {e.args[0] for e in operations if algebra.name_of(e) == "collected"}
        values = list(written.values(turns=True))
        turns = f"range({ends[0]}, {ends[1]})"
        order = "newest" if body.backwards else "oldest"
        lines = [
            f"def {name}({', '.join([count, size, *carried, *(names[s] for s in body.read)])}):",
            f'{INDENT}"""A loop over the entries of a history, the {order} first."""',
            *(f"{INDENT}{names[s]} = {names[s]}.clone()  # to be filled in" for s in body.carried if s in filled),
            *written.new_rows(),
            f"{INDENT}{', '.join(ends)} = int({size}) - int({count}), int({size})",
            *(
                f"{INDENT}{own[value]} = {before if before in given else None}  # memory that a turn may write to"
                for value, before in over.items()
            ),
            *(f"{INDENT}{name} = None  # what a turn computes for the next" for name in written.ahead.values()),
            f"{INDENT}for {names[body.place]} in {f'reversed({turns})' if body.backwards else turns}:",
            *(f"{INDENT}{line}" for line in values),
        ]
        results = [written.writer.text(s.expr) for s in written.program.stores]
        comma = "," if len(results) == 1 else ""
        lines += [f"{INDENT * 2}{', '.join([*carried, *own.values()])} = {', '.join([*results, *map(str, own)])}"]
        functions.append([*lines, f"{INDENT}return ({', '.join(carried)}{comma})"])
    return [f"{INDENT}{line}" if line else "" for lines in functions for line in ("", *lines, "")]


def _is_product(value: Value | None) -> bool:
    return value is not None and value.matrices and algebra.name_of(value.expr) == "matmul"


def start_lines(
    program: Program, ndim: int, wide: str | None
) -> tuple[list[str], dict[ValueName, str], MatrixWriter, Program]:
    """Return the lines that compute initial values of a rule with matrices, and what is needed to name them.

    Args:
        program: The start of the states.
        ndim: Dimensions of the parameter.
        wide: Text of the type that values are computed in, over ``p``, where tensors may be stored in 16 bits.

    Returns:
        The lines; the arguments by the runtime's names; the writer; the program with names as they are written.
    """
    written, arguments = spelled(program, ("p", "g"))
    writer = MatrixWriter(written, ndim, arguments["p"], arguments["p"])
    names = ("g", "p") if wide else ("p", "g")  # the type may be read off p
    casts = {name: f".to({wide.replace('p.', arguments['p'] + '.', 1)})" if wide else "" for name in names}
    lines = [f"{INDENT}{arguments[name]} = {arguments[name]}.unsqueeze(0){casts[name]}" for name in names]
    lines += [f"{INDENT}{v.symbol} = {writer.value(v)}" for v in written.tensor]
    return lines, arguments, writer, written
