"""Lowering of whole-tensor operations, with symbolic shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sympy as sp

from optlang.core.core import Core, Evaluated, ModelSum, Operation, Part, Result, SizeOf, Transposed
from optlang.functions import shapes
from optlang.functions.shapes import Shape, Size
from optlang.functions.table import BUILTINS, EMPTY, EVALUATIONS, MAKERS, MATRIX_FUNCTIONS
from optlang.identity import DimensionSize
from optlang.inputs import ValueName
from optlang.ir import algebra
from optlang.ir.builder import ProgramBuilder, Ref
from optlang.kinds import ELEMENT, HOST, SCALAR, Kind, Level, join, matrix
from optlang.syntax import tree as ast
from optlang.syntax.walk import expressions, own_expressions, statements

#: The kind of an operation with several results, from which ``item`` selects one.
SEVERAL = matrix(("several",))


class Matrices(ABC):
    """Lowers operations on matrices; expressions in general are lowered by a subclass."""

    core: Core
    out: ProgramBuilder
    done: dict[sp.Expr, Ref]  # operations lowered so far, for common subexpression elimination

    @abstractmethod
    def expr(self, node: ast.Expr) -> Ref:
        """Lower an expression."""

    @abstractmethod
    def input(self, name: ValueName, kind: Kind) -> Ref:
        """Return an input, adding it on first use."""

    def is_tensor(self, expr: sp.Expr) -> bool:
        """Return whether an expression reads a value on the device."""
        if not expr.free_symbols:
            return False
        kinds = self.out.kinds()
        return any(s in kinds and kinds[s].on_device for s in expr.free_symbols)

    # Shapes -------------------------------------------------------------------------------------------------

    @cached_property
    def whole(self) -> Shape:
        """The shape of the parameter."""
        ndim = self.core.ndim
        lead, rows, cols, numel = (self.input(n, HOST).expr for n in (DimensionSize(0), "rows", "cols", "numel"))
        if ndim < 3:
            return ((), (numel,), (rows, cols))[ndim]
        return (lead, *(self.input(DimensionSize(i), HOST).expr for i in range(1, ndim - 2)), rows, cols)

    def shape_of(self, kind: Kind) -> Shape:
        """Return the shape of values of a kind."""
        if kind.level is Level.REDUCED:
            return shapes.reduced(self.whole, tuple(kind.dims))
        return {Level.ELEMENT: self.whole, Level.MATRIX: kind.shape}.get(kind.level, ())

    def kind_of_shape(self, shape: Shape) -> Kind:
        """Return the kind of values with a given shape."""
        return SCALAR if not shape else ELEMENT if shape == self.whole else matrix(shape)

    def together(self, *refs: Ref) -> tuple[tuple[Ref, ...], Kind]:
        """Broadcast values against each other; return them with the kind of the result."""
        kinds = [ref.kind for ref in refs]
        if not any(kind.level is Level.MATRIX for kind in kinds):
            return refs, join(kinds)
        if ELEMENT in kinds:
            refs = tuple(map(self.like_parameter, refs))
        shape = shapes.meet([self.shape_of(ref.kind) for ref in refs])
        return refs, self.kind_of_shape(shape)

    def like_parameter(self, ref: Ref) -> Ref:
        """Return a value with the shape of ``matrix(p)`` reshaped to p; any other unchanged."""
        is_matrix = ref.kind.level is Level.MATRIX and self.core.ndim != 2 and bool(self.whole)
        if is_matrix and ref.kind.shape == shapes.matrix(self.whole):
            return self.operation("shaped", ELEMENT, self.named(ref).expr)
        return ref

    def unfolded(self, expr: sp.Expr) -> sp.Expr:
        """Return a host formula expanded over inputs."""
        known = {v.symbol: v.expr for v in self.out.host}
        while names := {s: known[s] for s in expr.free_symbols if s in known}:
            expr = expr.xreplace(names)
        return expr

    def size(self, node: ast.Expr) -> Size:
        """Return the size that an expression evaluates to, as a formula over inputs."""
        expr = self.unfolded(self.expr(node).expr)
        return int(expr) if expr.is_Integer else expr

    # Operations ---------------------------------------------------------------------------------------------

    def operation(self, name: str, kind: Kind, *args: sp.Expr) -> Ref:
        """Bind the result of an operation to a name."""
        expr = algebra.matrix_operation(name)(*args)
        if expr not in self.done:
            self.done[expr] = self.out.bind(name, Ref(expr, kind))
        return self.done[expr]

    def named(self, ref: Ref) -> Ref:
        """Bind a value to a name."""
        if ref.boolean:  # a condition becomes 0 or 1
            ref = Ref(algebra.call("number", ref.expr), ref.kind)
        ref = self.materialised(ref)
        return ref if ref.expr.is_Symbol else self.out.bind("x", ref)

    def materialised(self, ref: Ref) -> Ref:
        """Return a tensor that simplified to a number (``0*x``) with its shape restored."""
        if not ref.kind.on_device or self.is_tensor(ref.expr):
            return ref
        shape = self.shape_of(ref.kind)
        self.out.read_sizes(shape)
        sizes = [sp.Integer(size) if isinstance(size, int) else size for size in shape]
        if ref.expr == 0:
            return self.operation("zeros", ref.kind, *sizes)
        return Ref(ref.expr * self.operation("ones", ref.kind, *sizes).expr, ref.kind)

    def product(self, node: ast.Binary) -> Ref:
        """Lower ``a @ b``; scalar factors move to where multiplying by them is cheapest."""
        (c, a), (d, b) = self.factored(self.expr(node.left)), self.factored(self.expr(node.right))
        shape = shapes.product(self.shape_of(a.kind), self.shape_of(b.kind))
        product = self.operation("matmul", self.kind_of_shape(shape), a.expr, b.expr)
        return Ref(c * d * product.expr, product.kind)

    def factored(self, ref: Ref) -> tuple[sp.Expr, Ref]:
        """Split a value into a host factor and a name."""
        kinds = {i.symbol: i.kind for i in self.out.inputs.values()} | {v.symbol: v.kind for v in self.out.host}
        factors = sp.Mul.make_args(ref.expr)
        low = [f for f in factors if all(s in kinds and not kinds[s].on_device for s in f.free_symbols)]
        rest = sp.Mul(*(f for f in factors if f not in low))
        return sp.Mul(*low), self.named(Ref(rest, ref.kind, ref.boolean and not low))

    def rounded(self, node: Operation) -> Ref:
        """Lower ``bf16(x)`` and ``f32(x)``: operations on the result run in that dtype."""
        ref = self.expr(node.arguments[0])
        if not ref.kind.on_device:
            return Ref(algebra.call(node.function, ref.expr), ref.kind)
        return self.operation(node.function, ref.kind, self.named(ref).expr)

    def transposed(self, node: Transposed) -> Ref:
        """Lower ``x.T``."""
        x = self.named(self.expr(node.value))
        return self.operation("transpose", self.kind_of_shape(shapes.transposed(self.shape_of(x.kind))), x.expr)

    def part_of(self, node: Part) -> Ref:
        """Lower ``x[...]``."""
        return self.placed(self.named(self.expr(node.value)), node.items)

    def placed(self, x: Ref, places: Sequence[ast.Expr | ast.Slice]) -> Ref:
        """Return part of a named value, given one index per leading dimension."""
        items: list[shapes.Shape | list[Size | None]] = []
        args: list[sp.Expr] = []
        for item in places:
            if isinstance(item, ast.Slice):
                ends = [None if end is None else self.size(end) for end in (item.start, item.stop)]
                items.append(ends)
                first, last = (None if end is None else self.expr(end).expr for end in (item.start, item.stop))
                start = sp.Integer(0) if first is None else first
                args.append(algebra.call("slice", start, algebra.call("end") if last is None else last))
            else:
                ref = self.expr(item)
                ref = self.named(ref) if ref.kind.on_device else ref
                items.append(self.shape_of(ref.kind))
                args.append(ref.expr)
        shape = shapes.indexed(self.shape_of(x.kind), items)  # type: ignore[arg-type]
        return self.operation("index", self.kind_of_shape(shape), x.expr, *args)

    def result_of(self, node: Result) -> Ref:
        """Lower one result of a function with several results."""
        name, arguments = node.operation.function, node.operation.arguments
        args = [self.named(ref) if ref.kind.on_device else ref for ref in map(self.expr, arguments)]
        if BUILTINS[name].sized:
            results = BUILTINS[name].shapes(self.shape_of(args[0].kind), self.size(arguments[1]))
        else:
            results = self.result(name, args)
        whole = self.operation(name, SEVERAL, *(ref.expr for ref in args))
        return self.operation("item", self.kind_of_shape(results[node.index]), whole.expr, sp.Integer(node.index))

    def matrix_call(self, node: Operation) -> Ref:
        """Lower a call to a matrix function with one result."""
        name, nodes = node.function, node.arguments
        if name in MAKERS:
            shape = shapes.made(name, [self.size(n) for n in nodes])
            return self.operation(name, self.kind_of_shape(shape), *(self.expr(n).expr for n in nodes))
        if name == EMPTY:
            shape = (self.size(nodes[0]), *self.whole)
            return self.operation(
                "zeros", self.kind_of_shape(shape), self.expr(nodes[0]).expr, *map(sp.sympify, self.whole)
            )
        args = [self.expr(n) for n in nodes]
        args = [self.named(ref) if ref.kind.on_device else ref for ref in args]
        if name == "matrix" and len(self.shape_of(args[0].kind)) == 2:
            return args[0]
        if name == "flatten" and len(self.shape_of(args[0].kind)) == 1:
            return args[0]
        return self.operation(name, self.kind_of_shape(self.result(name, args)), *(ref.expr for ref in args))

    def filled(self, ref: Ref, kind: Kind) -> Ref:
        """Return a tensor of a kind, filled by broadcasting a smaller value."""
        expr = algebra.call("number", ref.expr) if ref.boolean else ref.expr
        sizes = [sp.sympify(size) for size in self.shape_of(kind)]
        self.out.read_sizes(sizes)
        return self.out.bind("filled", Ref(expr * self.operation("ones", kind, *sizes).expr, kind))

    def result(self, name: str, args: Sequence[Ref]) -> Any:
        """Return the shape, or the shapes, of the results of a matrix function."""
        inner = [self.shape_of(ref.kind) for ref in args]
        return BUILTINS[name].shapes(*(inner[0], int(args[1].expr)) if BUILTINS[name].numbered else inner)

    def size_of(self, node: SizeOf) -> Ref:
        """Lower ``rows(x)``, ``cols(x)`` and ``size(x, dim)``."""
        shape = self.shape_of(self.expr(node.value).kind)
        size = shapes.size_of(node.function, shape, None if node.dim is None else int(self.expr(node.dim).expr))
        self.out.read_sizes((size,))
        return Ref(sp.Integer(size) if isinstance(size, int) else size, HOST)


def is_matrix_function(name: str) -> bool:
    """Return whether a builtin operates on whole matrices."""
    return name in BUILTINS and BUILTINS[name].matrix and BUILTINS[name].definition is None


def runs_only_when_due(block: Sequence[ast.Stmt] | ast.Expr, matrices: bool = True) -> bool:
    """Return whether code is conditional work, run only when needed: it has matrices or sums over the model."""
    tops: Sequence[ast.Expr]
    tops = [e for s in statements(block) for e in own_expressions(s)] if isinstance(block, tuple) else [block]  # type: ignore[list-item]
    nodes = [node for top in tops for node in expressions(top)]
    asks = any(isinstance(n, ModelSum | Evaluated) or _is_asking(n) for n in nodes)
    return asks or (matrices and any(map(_is_about_matrices, nodes)))


def _is_asking(node: ast.Expr) -> bool:
    """Return whether a name or an operation belongs to a step that evaluates the closure."""
    return isinstance(node, Operation) and node.function in EVALUATIONS


def _is_about_matrices(node: ast.Expr) -> bool:
    """Return whether an expression is itself more than elementwise arithmetic."""
    if isinstance(node, Operation):
        return node.function in MATRIX_FUNCTIONS
    return isinstance(node, Transposed | Part | Result) or (isinstance(node, ast.Binary) and node.op == "@")
