"""Lowering of expressions to SymPy values with kinds.

A value that depends on other tensors or on the closure (a sum over the whole model, the loss at another point) is a
late input. This tensor's contribution to it is recorded and stored by the program.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import sympy as sp

from optlang.artifact import DIMENSION_SIZES, Draw
from optlang.core.core import Drawn, Evaluated, Key, ModelSum, Operation, Part, Result, SizeOf, Transposed
from optlang.core.evaluate import ARITHMETIC
from optlang.core.limits import constant_sum
from optlang.diagnostics import OptlangError
from optlang.functions import shapes
from optlang.functions.table import BUILTINS, HALT, PROGRESS, PUSH, SEARCHES
from optlang.identity import NamedPoint, Site
from optlang.inputs import (
    Asked,
    Direction,
    EvaluationPoint,
    Gradient,
    HessianProduct,
    IterationControl,
    Late,
    LineSearch,
    Loss,
    NumberContribution,
    Progress,
    Random,
    SearchDirection,
    SearchLength,
    Total,
    ValueName,
)
from optlang.ir import algebra
from optlang.ir.builder import Ref
from optlang.ir.loops import Loops
from optlang.ir.matrices import is_matrix_function
from optlang.ir.program import Store
from optlang.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level, reduce
from optlang.rule import Rule
from optlang.source import Span
from optlang.syntax import tree as ast

REDUCTIONS = frozenset(name for name, row in BUILTINS.items() if row.reduction and row.definition is None)


def asked(function: str, site: Site | NamedPoint) -> tuple[Asked, Late, Kind]:
    """Return what a function requests from the closure, the late input that results, and its kind."""
    if function in SEARCHES:
        search = LineSearch(function, site)
        return SearchDirection(search), SearchLength(search), HOST
    if function == "hvp":
        return Direction(site), HessianProduct(site), ELEMENT
    point = EvaluationPoint(site)
    return (point, Gradient(site), ELEMENT) if function == "grad" else (point, Loss(site), HOST)


class ExpressionLowering(Loops):
    """Lowers expressions; names and statements are lowered by a subclass.

    Attributes:
        stepping: Whether this is the step; only a step contributes to late inputs.
        draws: The random numbers read.
        parts_of_totals: This tensor's contributions to sums over the model and to other late inputs.
        points: Where the closure is evaluated, and the directions of Hessian products.
        at: The statement being lowered.
    """

    rule: Rule
    stepping: bool
    draws: list[Draw]
    parts_of_totals: dict[NumberContribution, Ref]
    points: dict[Asked, Store]
    at: Span | None

    @abstractmethod
    def branches(self, sides: Sequence[Sequence[ast.Stmt] | ast.Expr]) -> bool:
        """Return whether the choice between these is made before the step."""

    @abstractmethod
    def answer(self, condition: Ref) -> bool | None:
        """Return the answer to a question asked before the step; None if it becomes a runtime choice."""

    def bind(self, stem: str, ref: Ref, rounds: bool = False) -> Ref:
        """Bind a value to a new name and return a reference to it."""
        return self.out.bind(stem, ref, rounds)

    def plain(self, ref: Ref) -> sp.Expr:
        """Return a value as a symbol or number, which a store can refer to."""
        expr = self.number(ref)
        if expr.is_Symbol or not expr.free_symbols:
            return expr
        return self.bind("value", Ref(expr, ref.kind)).expr

    @staticmethod
    def number(ref: Ref) -> sp.Expr:
        """Return a value for use in arithmetic: a condition becomes 0 or 1."""
        if ref.boolean and algebra.is_literal(ref.expr):
            return sp.Integer(algebra.name_of(ref.expr) == "true")
        return algebra.call("number", ref.expr) if ref.boolean else ref.expr

    def condition(self, node: ast.Expr) -> Ref:
        """Lower a condition; a nonzero number is true."""
        ref = self.expr(node)
        return ref if ref.boolean else Ref(algebra.call("ne", ref.expr, sp.Integer(0)), ref.kind, True)

    def select(self, condition: Ref, a: Ref, b: Ref) -> Ref:
        """Return a choice between two values."""
        (condition, a, b), kind = self.together(condition, a, b)
        if a.boolean and b.boolean:
            return Ref(algebra.select(condition.expr, a.expr, b.expr), kind, True)
        return Ref(algebra.select(condition.expr, self.number(a), self.number(b)), kind)

    def expr(self, node: ast.Expr) -> Ref:
        """Lower an expression."""
        match node:
            case ast.Number(value=value):
                return Ref(algebra.number(value), STATIC)
            case ast.Infinity():
                return Ref(algebra.call("inf"), STATIC)
            case ast.Bool(value=value):
                return Ref(algebra.call("true" if value else "false"), STATIC, True)
            case ast.Name(name=name):
                return self.in_order(self.name(name))
            case Key(key=key):
                return self.input(key, HOST)
            case Transposed():
                return self.transposed(node)
            case Part():
                return self.part_of(node)
            case Result():
                return self.result_of(node)
            case SizeOf():
                return self.size_of(node)
            case ModelSum():
                return self.total(node)
            case Evaluated():
                return self.evaluated(node)
            case Drawn():
                return self.draw(node)
            case ast.Unary(op="not", operand=operand):
                ref = self.condition(operand)
                return Ref(algebra.call("not", ref.expr), ref.kind, True)
            case ast.Unary(operand=operand):
                ref = self.expr(operand)
                return Ref(-self.number(ref), ref.kind)
            case ast.Binary(op="and" | "or" as op, left=left, right=right):
                (a, b), kind = self.together(self.condition(left), self.condition(right))
                return Ref(algebra.call(op, a.expr, b.expr), kind, True)
            case ast.Binary(op="@"):
                return self.product(node)
            case ast.Binary(op=op, left=left, right=right):
                return self.binary(op, self.expr(left), self.expr(right))
            case ast.Compare(ops=(op,), operands=(left, right)):
                return self.compare(op, self.expr(left), self.expr(right))
            case ast.Ternary(condition=c, then=then, other=other):
                if self.branches((then, other)):
                    answer = self.answer(self.condition(c))
                    if answer is not None:
                        return self.expr(then if answer else other)
                return self.select(self.condition(c), self.expr(then), self.expr(other))
            case Operation():
                return self.call(node)
            case _:
                raise AssertionError(f"{type(node).__name__} is not left by specialise")

    def binary(self, op: str, left: Ref, right: Ref) -> Ref:
        """Return the result of an arithmetic operator."""
        (left, right), kind = self.together(left, right)
        a, b = self.number(left), self.number(right)
        exact = a.is_Rational and b.is_Rational and not (op == "/" and b == 0)
        if not exact and algebra.is_literal(a) and algebra.is_literal(b):  # 1/0, inf - inf
            return Ref(algebra.literal(ARITHMETIC[op](algebra.value_of(a), algebra.value_of(b))), kind)
        match op:
            case "+":
                result = a + b
            case "-":
                result = a - b
            case "*":
                result = a * b
            case "/":
                result = a * algebra.power(b, sp.Integer(-1))
            case "^":
                result = algebra.power(a, b)
            case "%":
                result = algebra.call("mod", a, b)
            case _:
                raise AssertionError(f"{op} is not left by specialise")
        return Ref(algebra.bounded(result), kind)

    def compare(self, op: str, left: Ref, right: Ref) -> Ref:
        """Return the result of a comparison; ``>`` and ``>=`` are mirrored."""
        (left, right), kind = self.together(left, right)
        a, b = self.number(left), self.number(right)
        if op in (">", ">="):
            a, b, op = b, a, "<" + op[1:]
        name = {"<": "lt", "<=": "le", "==": "eq", "!=": "ne"}[op]
        return Ref(algebra.call(name, a, b), kind, True)

    def call(self, node: Operation) -> Ref:
        """Lower an operation."""
        name = node.function
        if name == "eps_of":
            return self.input("eps_of", HOST)
        if name in PROGRESS:
            return self.input(Progress(name), HOST)
        if name == HALT:
            return self.halting(node)
        if name in ("bf16", "f32") and self.core.matrices:
            return self.rounded(node)
        if name == PUSH:
            return self.pushed(node)
        if is_matrix_function(name):
            return self.matrix_call(node)
        args = [self.expr(a) for a in node.arguments]
        if name in REDUCTIONS and len(args) == 1:
            return self.reduction(name, args[0], None if node.dims is None else frozenset(node.dims))
        refs, kind = self.together(*args)
        return Ref(algebra.call(name, *(self.number(a) for a in refs)), kind, BUILTINS[name].boolean)

    def total(self, node: ModelSum) -> Ref:
        """Lower a sum over the model: a late input. This tensor's contribution is stored."""
        name = Total(node.site)
        if self.stepping:
            part = self.expr(node.value)
            one = part.kind.level <= Level.SCALAR  # a per-tensor number counts once
            self.parts_of_totals[name] = Ref(self.number(part), part.kind) if one else self.reduction("sum", part, None)
        return self.input(name, HOST)

    def halting(self, node: Operation) -> Ref:
        """Record the numbers that control `iterate`; nothing reads the value of the call."""
        for target, argument in zip(IterationControl, node.arguments, strict=False):
            if self.stepping:
                ref = self.expr(argument)
                self.parts_of_totals[target] = Ref(self.number(ref), ref.kind)
        return Ref(sp.Integer(0), HOST)

    def evaluated(self, node: Evaluated) -> Ref:
        """Lower a closure evaluation at a point or along a direction: a late input.

        All requests at a named point share one evaluation (``specialise`` marks named points).
        """
        value, *options = node.arguments
        target, late, kind = asked(node.function, node.site)
        if self.stepping:
            wanted = target.search.options if isinstance(target, SearchDirection) else ()
            for number, option in zip(wanted, options, strict=True):
                ref = self.expr(option)
                self.parts_of_totals[number] = Ref(self.number(ref), ref.kind)
            at = Ref(self.number(self.expr(value)), ELEMENT)
            if target not in self.points:
                self.points[target] = Store(target, self.plain(at), ELEMENT)
        return self.input(late, kind)

    def draw(self, node: Drawn) -> Ref:
        """Lower a random draw: an input of the stage that reads it."""
        kind = ELEMENT
        if node.sizes:
            kind = self.kind_of_shape(shapes.made(node.function, list(map(self.size, node.sizes))))
        drawn = Draw(Random(node.site), node.function)
        if drawn not in self.draws:
            self.draws.append(drawn)
        return self.input(drawn.name, kind)

    def extent(self, kind: Kind, dims: frozenset[int] | None) -> sp.Expr:
        """Return the number of elements that a reduction combines."""
        if kind == ELEMENT and dims is None:
            return self.input("numel", HOST).expr
        if self.core.fixed_ndim:
            shape = self.shape_of(kind)
            return sp.Mul(*(shape[d] for d in (range(len(shape)) if dims is None else dims)))
        facts: dict[int, ValueName] = {-1: "cols", -2: "rows", **{size.dim: size for size in DIMENSION_SIZES}}
        known = kind.dims | (dims or frozenset())
        # With dimensions counted from both ends, two of them may coincide.
        if dims is None or not known <= {*facts} or len({d < 0 for d in known}) > 1:
            raise OptlangError([constant_sum(self.rule, self.at)])
        return sp.Mul(*(self.input(facts[d], HOST).expr for d in dims - kind.dims))

    def reduction(self, name: str, inner: Ref, dims: frozenset[int] | None) -> Ref:
        """Return a reduction bound to a new name. A number is returned unreduced (times n for a sum)."""
        expr = self.number(inner)
        if inner.kind.level > Level.SCALAR and not self.is_tensor(expr):  # simplified to a number: sum(0*x + 1)
            return Ref(expr if name != "sum" else expr * self.extent(inner.kind, dims), SCALAR)
        if inner.kind.level <= Level.SCALAR:
            if name != "sum" or inner.kind == SCALAR:
                return Ref(expr, inner.kind)
            return Ref(expr * self.input("numel", HOST).expr, HOST)
        kind = reduce(inner.kind, dims)
        if kind == inner.kind:
            return Ref(expr, inner.kind)
        reduced = algebra.reduction(name)(expr, *(sp.Integer(d) for d in sorted(dims or ())))
        return self.bind(f"{name}_{_stem(expr)}", Ref(reduced, kind))


def _stem(expr: sp.Expr) -> str:
    """Return a short name for a reduced expression: its only symbol, or ``x``."""
    names = sorted({s.name.rpartition("_")[0] or s.name for s in expr.free_symbols})
    return names[0] if len(names) == 1 else "x"
