"""Generates Python for matrix stages: torch operations on stacks of matrices that are updated alike.

Every tensor has a leading batch dimension. A per-tensor number is thus a vector, and is expanded to the dimensions of
its other operands. Coefficients are Python numbers. Results are returned, and stored by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from optlang.codegen.helpers import called
from optlang.codegen.memory import INDENT
from optlang.codegen.naming import python_name, spelled
from optlang.codegen.spelling import ATOM, OR, Piece, TorchWriter
from optlang.functions.table import BUILTINS, LINEAR
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Kind, Level

#: Marks values that are orders (see :meth:`MatrixWriter.is_order`).
ORDER = "order"

#: Prefix of the names of loop functions.
LOOP = "for_each_"


class MatrixWriter(TorchWriter):
    """Writes expressions on stacks of tensors.

    Args:
        program: The program to write.
        ndim: The number of dimensions of the parameter.
        like: The name of a tensor with the compute dtype.
        whole: The name of a tensor with the parameter's shape, if there is one.
    """

    def __init__(self, program: Program, ndim: int, like: str, whole: str | None) -> None:
        self.kinds = program.kinds()
        plain = frozenset(s for s, kind in self.kinds.items() if kind.level <= Level.HOST)
        flags = {v.symbol for v in program.host if v.boolean} | {i.symbol for i in program.inputs if i.name == "first"}
        super().__init__(f"{like}.dtype", frozenset(flags), plain)
        self.ndim, self.like, self.whole = ndim, like, whole
        self.conditions = {v.symbol for v in program.values if v.boolean}
        self.loops: dict[type[algebra.Loop], str] = {}  # names of loop functions
        self.histories: dict[tuple[sp.Expr, ...], str] = {}  # names of histories' entries
        self.following: dict[sp.Symbol, str] = {}  # the vectors that the next iteration multiplies them with
        self.over: dict[sp.Symbol, str] = {}  # buffers that values may be written to
        self.found: list[str] = []  # lines that define these names, not yet written
        self.given: dict[type[algebra.Loop], list[int]] = {}  # carried values whose initial buffer is reusable
        self.rank: int | None = None
        self.there = [i.symbol for i in program.inputs if i.kind.on_device]  # tensors available so far
        self.types: dict[sp.Symbol, str] = {}
        #: Names of functions with several results, by the symbols of their values.
        self.several = {v.symbol: algebra.name_of(v.expr) for v in program.tensor if v.matrices}
        for value in program.tensor:
            self.types[value.symbol] = self.type_of(value.expr)

    def type_of(self, expr: sp.Expr) -> str:
        """Return a tag for the dtype of an expression, which ``bf16(x)`` and ``f32(x)`` set for later operations."""
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
        """Return whether a value is an order: integers in torch, which arithmetic treats as numbers."""
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
        """Return whether torch lacks a function in 16 bits."""
        return name in BUILTINS and BUILTINS[name].group == LINEAR

    def rank_of(self, kind: Kind) -> int:
        """Return the number of dimensions of a value of a kind, without the batch dimension."""
        if kind.level is Level.MATRIX:
            return len(kind.shape)
        return self.ndim if kind.level in (Level.REDUCED, Level.ELEMENT) else 0

    def value(self, value: Value) -> str:
        """Return a value as text."""
        self.rank = self.rank_of(value.kind)
        if value.matrices:
            return self.operation(value.expr)
        if value.kind.on_device and (text := self.multiply_add(value)):
            return text
        if value.kind.on_device and self.is_plain(value.expr):  # a number in place of a tensor
            alike = next((s for s in self.there if self.kinds[s] == value.kind), None)
            if alike is None and value.kind.level is Level.ELEMENT:
                alike = self.whole
            if alike is not None:
                return f"torch.full_like({alike}, {self.text(value.expr)}, dtype={self.dtype})"
            return f"{self.like}.new_full(({', '.join('1' * (self.rank + 1))},), {self.text(value.expr)})"
        return self.text(value.expr)

    def symbol(self, expr: sp.Symbol) -> Piece:
        """Return a name; per-tensor numbers are expanded to the dimensions of the other operands."""
        kind = self.kinds[expr]
        if expr in self.flags:
            return super().symbol(expr)
        name = f"{expr.name}.to({self.dtype})" if self.types.get(expr) == ORDER else expr.name
        if self.rank and kind.on_device and self.rank_of(kind) == 0:
            return f"{name}[:{', None' * self.rank}]", ATOM
        return name, ATOM

    def reduction(self, expr: algebra.Reduction) -> Piece:
        """Return a reduction; sums and means are accumulated in float64 and keep their dtype."""
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
        if not places:  # of 0-dimensional tensors
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
        if self.rank and not dims:  # inside a formula over matrices
            result += f"[:{', None' * self.rank}]"
        return result, ATOM

    def is_dot(self, expr: sp.Expr) -> bool:
        """Return whether an expression is the elementwise product of two vectors."""
        return (
            expr.is_Mul
            and len(expr.args) == 2
            and all(x.is_Symbol and self.rank_of(self.kinds[x]) == 1 for x in expr.args)
            and {self.types.get(x, "") for x in expr.args} == {""}
        )

    def multiply_add(self, value: Value) -> str | None:
        """Return x + c*y for vectors as one torch call; None for other values."""
        parts = self.summands(value)
        if parts is None:
            return None
        x, factor, y = parts
        if value.symbol in self.following:
            self.helpers |= {"multiply_add_dot", "stack_dots", "stack_sum"}
            self.rank = 0  # a scalar: in a loop, each tensor is processed alone
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
        """Return x, c and y of a value x + c*y of vectors; None for other values."""
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
        """Return the x of a value x + c*y of vectors; None for other values."""
        parts = self.summands(value)
        return parts[0] if parts else None

    def named(self, name: str, args: tuple[sp.Expr, ...]) -> Piece:
        """Return a function on stacks; rounding to a dtype means that later operations run in it."""
        if name in ("f32", "bf16"):
            return self.fill(self.spelling(name), args)
        if name == "not" and self.is_plain(args[0]):
            return f"(not {self.text(args[0])})", ATOM
        return super().named(name, args)

    def select(self, condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> Piece:
        """Return a select; a number chosen instead of a tensor is expanded to one."""
        sides = [self.text(side) for side in (then, other)]
        if self.is_plain(condition):
            if self.is_plain(then) != self.is_plain(other):
                number = 0 if self.is_plain(then) else 1
                sides[number] = f"torch.full_like({sides[1 - number]}, {sides[number]})"
            return f"({sides[0]} if {self.text(condition)} else {sides[1]})", ATOM
        numbers = self.is_plain(then) and self.is_plain(other)
        if numbers and then not in self.conditions and not algebra.is_condition(then):
            # From two numbers torch would make a tensor of the default dtype.
            one = f"torch.full((), {sides[0]}, dtype={self.dtype}, device={self.like}.device)"
            return f"torch.where({self.text(condition)}, {one}, {sides[1]})", ATOM
        return super().select(condition, then, other)

    # Operations ---------------------------------------------------------------------------------------------

    def operation(self, expr: sp.Expr) -> str:
        """Return a matrix operation."""
        self.rank = None
        name, args = algebra.name_of(expr), expr.args
        if isinstance(expr, algebra.Loop):
            function = self.loops.setdefault(expr.func, f"{LOOP}{len(self.loops) + 1}")
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
        row, spelled = BUILTINS[name], self.spelling(name)
        self.helpers |= called(spelled)
        if self.is_order(expr) and name == "flip":
            texts[0] = str(args[0])
        if row.sized:
            texts[1] = self.size(args[1])
        if row.numbered:
            number = int(args[1])
            texts[1] = str(number + 1 if row.takes_dim and number >= 0 else number)
        if self.is_linear(name) and any(self.types.get(a) == "bf16" for a in args):
            texts = [f"{text}.to(torch.float32)" for text in texts]
        return spelled.format(*texts)

    def rows(self, history: tuple[sp.Expr, ...]) -> str:
        """Return the name of a history's entries, which are computed once per function."""
        if history not in self.histories:
            self.helpers.add("entries_of")
            name = python_name(f"{history[0]}_rows", {*map(str, self.kinds), *self.histories.values()})
            self.histories[history] = name
            self.found.append(f"{name} = entries_of({', '.join(map(self.text, history))})")
        return self.histories[history]

    def size(self, expr: sp.Expr) -> str:
        """Return a size, which is passed as a number like any other."""
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
                if types == ["bf16", "bf16"]:
                    self.helpers |= {"product_in_16_bits", "multiplied_in"}
                    return f"product_in_16_bits({a}, {b})"
                return f"product({a}, {b})"
            case (2, 1):
                return f"({a} @ {b}.unsqueeze(-1)).squeeze(-1)"
            case (1, 2):
                return f"({a}.unsqueeze(-2) @ {b}).squeeze(-2)"
            case _:
                return f"({a} * {b}).sum(-1)"

    def index(self, whole: sp.Symbol, items: Sequence[sp.Expr]) -> str:
        """Return a part of a tensor: numbers and slices in one index, then orders."""
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


def start_lines(
    program: Program, ndim: int, wide: str | None, writes: type[MatrixWriter] = MatrixWriter
) -> tuple[list[str], dict[ValueName, str], MatrixWriter, Program]:
    """Return the lines that compute the initial values of a matrix rule, and what is needed to name them.

    Args:
        program: The start of the states.
        ndim: The number of dimensions of the parameter.
        wide: The text of the compute dtype, in terms of ``p``, if tensors may be stored in 16 bits.
        writes: The class of the writer.

    Returns:
        The lines; the arguments by runtime name; the writer; the program with its names as written.
    """
    written, arguments = spelled(program, ("p", "g"))
    writer = writes(written, ndim, arguments["p"], arguments["p"])
    names = ("g", "p") if wide else ("p", "g")  # the dtype may be that of p
    casts = {name: f".to({wide.replace('p.', arguments['p'] + '.', 1)})" if wide else "" for name in names}
    lines = [f"{INDENT}{arguments[name]} = {arguments[name]}.unsqueeze(0){casts[name]}" for name in names]
    lines += [f"{INDENT}{v.symbol} = {writer.value(v)}" for v in written.tensor]
    return lines, arguments, writer, written
