"""Shape inference: the shapes of the values of a rule for one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optlang.core.core import Drawn, Evaluated, ModelSum, Operation, Part, Result, SizeOf, Transposed
from optlang.functions import shapes
from optlang.functions.shapes import Mismatch, Shape
from optlang.functions.table import BUILTINS, EMPTY, HALT, MAKERS, PROGRESS, SEARCHES
from optlang.identity import GivenName
from optlang.source import Span
from optlang.syntax import tree as ast


class SymbolicSize(int):
    """The size of a dimension together with its symbolic form, a product. Products of sizes are symbolic too.

    Args:
        value: The concrete size, of an example.
        factors: The factors of the symbolic form.
    """

    factors: tuple[GivenName | int, ...]

    def __new__(cls, value: int, *factors: GivenName | int) -> SymbolicSize:
        """Return a size with its symbolic form."""
        size = super().__new__(cls, value)
        size.factors = factors
        return size

    def __mul__(self, other: int) -> SymbolicSize:
        return SymbolicSize(int(self) * int(other), *self.factors, *(factors_of(other) or (other,)))

    __rmul__ = __mul__


def factors_of(size: int) -> tuple[GivenName | int, ...] | None:
    """Return the factors of a symbolic size; None for a plain number."""
    return size.factors if isinstance(size, SymbolicSize) else None


class Unfit(Exception):
    """A tensor's shape does not suit the rule: where, what was expected, and how to fix it."""

    def __init__(self, span: Span, message: str, help: str) -> None:
        super().__init__(message)
        self.span, self.message, self.help = span, message, help


class Sizes:
    """The shapes of values for one tensor.

    Args:
        shape: The tensor's shape.
        number: Returns the value of an expression that is known before the step, None for others.

    Attributes:
        names: Shapes of states and locals; a missing name is a scalar.
    """

    def __init__(self, shape: Shape, number: Callable[[ast.Expr], float | None]) -> None:
        self.shape, self.number = shape, number
        self.names: dict[str, Shape] = {}

    def of(self, node: ast.Expr) -> Shape:
        """Return the shape of an expression; raises :class:`Unfit` if shapes do not match."""
        try:
            return self._of(node)
        except Mismatch as mismatch:
            raise Unfit(node.span, mismatch.message, mismatch.help) from None

    def size(self, node: ast.Expr) -> int | None:
        """Return the size an expression evaluates to; None if it is not known before the step."""
        value = self.number(node)
        if value is None or value != value:
            return None
        if value != int(value):
            raise Mismatch(f"{value:g} is not a size", "sizes are integers: round with `floor(x)`")
        return int(value)

    def met(self, shapes_of: Sequence[Shape]) -> Shape:
        """Return the shape of an elementwise combination. Combining p with a matrix made of p gives p's shape."""
        p = self.shape
        if len(p) != 2 and len(p) > 0 and p in shapes_of:
            made = shapes.matrix(p)
            shapes_of = [p if shape == made else shape for shape in shapes_of]
        return shapes.meet(shapes_of)

    def stored(self, name: str, value: Shape, span: Span) -> None:
        """Check that ``p`` or a state can hold a value of the given shape."""
        held = self.shape if name == "p" else self.names[name]
        try:
            fits = self.met((held, value)) == held
        except Mismatch:
            fits = False
        if not fits:
            raise Unfit(
                span,
                f"`{name}` is {shapes.described(held)}, but is assigned {shapes.described(value)}",
                "assign a value of its shape, or give the state an initial value of the other shape",
            )

    def result(self, name: str, arguments: Sequence[ast.Expr]) -> Any:
        """Return the shape, or the shapes, of the results of a matrix function."""
        row = BUILTINS[name]
        if row.numbered or row.sized:
            number = self.size(arguments[1])
            return row.shapes(self.of(arguments[0]), number if number is not None else -1 if row.sized else 0)
        return row.shapes(*map(self.of, arguments))

    def _of(self, node: ast.Expr) -> Shape:
        match node:
            case ast.Name(name="p" | "g"):
                return self.shape
            case ast.Name(name=name):
                return self.names.get(name, ())
            case ast.Unary(operand=operand):
                return self.of(operand)
            case ast.Binary(op="@", left=left, right=right):
                return shapes.product(self.of(left), self.of(right))
            case ast.Binary(left=left, right=right):
                return self.met((self.of(left), self.of(right)))
            case ast.Compare(operands=operands):
                return self.met(tuple(map(self.of, operands)))
            case ast.Ternary(condition=condition, then=then, other=other):
                return self.met((self.of(condition), self.of(then), self.of(other)))
            case Transposed(value=value):
                return shapes.transposed(self.of(value))
            case Result(operation=operation, index=index):
                found: tuple[Shape, ...] = self.result(operation.function, operation.arguments)
                return found[index]
            case Part():
                return self._part(node)
            case SizeOf(function=name, value=value, dim=dim):
                shape = self.of(value)
                if dim is not None:  # the dimension must exist
                    shapes.size_of(name, shape, self.size(dim))
                return ()
            case ModelSum(value=value):
                self.of(value)
                return ()
            case Evaluated(function=name, arguments=arguments):
                self.met((self.shape, *map(self.of, arguments[: 1 if name in SEARCHES else None])))
                return self.shape if name in ("grad", "hvp") else ()
            case Drawn(function=name, sizes=sizes):
                return self._made(name, sizes)
            case Operation():
                return self._operation(node)
            case _:
                return ()

    def _made(self, name: str, sizes: Sequence[ast.Expr]) -> Shape:
        """Return the shape of a new tensor with the given sizes; without sizes, the parameter's shape."""
        known = [self.size(size) or 0 for size in sizes]
        return shapes.made(name, known) if sizes else self.shape

    def _part(self, node: Part) -> Shape:
        value = node.value
        items: list[Any] = []
        for item in node.items:
            if isinstance(item, ast.Slice):
                items.append([None if end is None else self.size(end) for end in (item.start, item.stop)])
            else:
                items.append(self.of(item))
        whole = self.of(value)
        for size, item, shape in zip(whole, node.items, items, strict=False):
            place = self.size(item) if shape == () and not isinstance(item, ast.Slice) else None
            if place is not None and not -size <= place < size:
                raise Mismatch(
                    f"index {place} is out of range for size {size}", "indices count from 0, or from -1 at the end"
                )
        return shapes.indexed(whole, items)

    def _operation(self, node: Operation) -> Shape:
        name, arguments = node.function, node.arguments
        row = BUILTINS[name]
        if name == EMPTY:
            return (self.size(arguments[0]) or 0, *self.shape)
        if name == HALT or name in PROGRESS:
            return ()
        if name == "eps_of":
            self.of(arguments[0])
            return ()
        if name in MAKERS:
            return self._made(name, arguments)
        if row.matrix:
            found: Shape = self.result(name, arguments)
            return found
        if row.reduction and len(arguments) == 1:
            return shapes.reduced(self.of(arguments[0]), node.dims)
        return self.met(tuple(map(self.of, arguments)))
