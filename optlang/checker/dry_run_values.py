"""Evaluates expressions in a dry run, on small tables of numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from optlang.checker import grid
from optlang.checker.arguments import dim_values
from optlang.checker.grid import Abandoned, Grid, each, number
from optlang.checker.samples import Sample
from optlang.core import definitions
from optlang.core.evaluate import ARITHMETIC, COMPARISONS
from optlang.declarations.constants import as_float
from optlang.functions.shapes import size_of
from optlang.functions.table import BUILTINS, EVALUATIONS, MAKERS, RANDOM, SIZES
from optlang.rule import Rule, Value
from optlang.source import Span
from optlang.syntax.tree import (
    Binary,
    Bool,
    Call,
    Compare,
    Expr,
    Infinity,
    Member,
    Name,
    Node,
    Nothing,
    Number,
    Stmt,
    Ternary,
    Text,
    Unary,
)
from optlang.syntax.walk import body_of

#: Maximum size of a matrix in a dry run.
MAX_ELEMENTS = 64

Thing = Grid | str | None
Env = dict[str, Thing]

ZERO_BY_ZERO, BY_ZERO, NEGATIVE_ROOT, BAD_LOG = "0/0", "x/0", "root", "log"


@dataclass
class DryRunValues(ABC):
    """Evaluates expressions on one table and records where arithmetic breaks down.

    Attributes:
        rule: The rule.
        sample: The values of its hyperparameters and the shape of the table.
        p: The parameter.
        g: The gradient, the same in every step.
        trouble: The first problem at each span in the first step.
    """

    rule: Rule
    sample: Sample
    p: Grid
    g: Grid
    trouble: dict[Span, str] = field(default_factory=dict)
    env: Env = field(default_factory=dict)
    frame: Env | None = None  # parameters and locals of the current function
    masks: list[Grid] = field(default_factory=list)  # active elements, for each enclosing choice
    site: Span | None = None  # the call to a builtin being evaluated
    dim: tuple[int, ...] | None = None  # the dimensions it was called with
    step: int = 0

    @abstractmethod
    def call_function(self, node: Call) -> tuple[Thing, ...]:
        """Call one of the rule's functions and return its results."""

    @abstractmethod
    def function_block(self, body: Sequence[Stmt]) -> tuple[Thing, ...] | None:
        """Run the statements of a function."""

    def grid(self, name: str) -> Grid:
        """Return the value of a name as a table."""
        value = self.env.get(name)
        if not isinstance(value, Grid):
            raise Abandoned
        return value

    def number(self, expr: Expr) -> Grid:
        """Return the value of an expression as a table."""
        value = self.value(expr)
        if not isinstance(value, Grid):
            raise Abandoned
        return value

    def holds(self, expr: Expr) -> bool:
        """Return whether a scalar condition holds."""
        held = self.truth(expr)
        if not held.is_number:
            raise Abandoned
        return bool(held.data[0])

    def truth(self, expr: Expr) -> Grid:
        """Return where a condition holds, as a table of 0 and 1."""
        value = self.value(expr)
        if isinstance(value, Grid):
            return each(lambda x: float(x != 0), value)
        return number(bool(value))

    def value(self, expr: Expr) -> Thing:
        """Return the value of an expression."""
        match expr:
            case Number():
                return number(as_float(expr))
            case Infinity():
                return number(math.inf)
            case Bool(value=flag):
                return number(flag)
            case Text(value=text):
                return text
            case Nothing():
                return None
            case Name(name=name):
                return self.name(name)
            case Member(value=Name(name="group"), name="t"):
                return number(self.step)
            case Member(value=operand, name="T"):
                return grid.transposed(self.table(operand))
            case Unary(op="not", operand=operand):
                return each(negation, self.truth(operand))
            case Unary(op=op, operand=operand):
                inner = self.number(operand)
                return each(lambda x: -x, inner) if op == "-" else inner
            case Binary(op="and" | "or" as op, left=left, right=right):
                return self.junction(op, left, right)
            case Binary(op="??", left=left, right=right):
                first = self.value(left)
                return self.value(right) if first is None else first
            case Binary():
                return self.arithmetic(expr, self.value(expr.right))
            case Compare():
                return self.compare(expr)
            case Ternary(condition=condition, then=then, other=other):
                return self.choice(condition, then, other)
            case Call():
                return self.call(expr)
            case _:
                raise Abandoned

    def name(self, name: str) -> Thing:
        """Return the value of a name."""
        if self.frame is not None and name in self.frame:
            return self.frame[name]
        if name in ("t", "first"):
            return number(self.step if name == "t" else self.step == 1)
        if name in self.sample.values:
            return _thing(self.sample.values[name])
        if name in self.env:
            return self.env[name]
        raise Abandoned

    def junction(self, op: str, left: Expr, right: Expr) -> Grid:
        """Return where ``and`` / ``or`` holds, as a table of 0 and 1."""
        held = self.truth(left)
        if held.is_number and bool(held.data[0]) is (op == "or"):
            return held
        if op == "and":
            other = with_mask(self.masks, held, lambda: self.truth(right))
            return each(lambda a, b: float(a and b), held, other)
        other = with_mask(self.masks, each(negation, held), lambda: self.truth(right))
        return each(lambda a, b: float(a or b), held, other)

    def choice(self, condition: Expr, then: Expr, other: Expr) -> Thing:
        """Return ``then if condition else other``; each side is active only where it is chosen."""
        held = self.truth(condition)
        if held.is_number:
            return self.value(then if held.data[0] else other)
        a = with_mask(self.masks, held, lambda: self.number(then))
        b = with_mask(self.masks, each(negation, held), lambda: self.number(other))
        return each(select, held, a, b)

    def compare(self, node: Compare) -> Grid:
        """Return where a comparison holds, as a table of 0 and 1."""
        values = [self.value(operand) for operand in node.operands]
        result = number(1)
        for op, a, b in zip(node.ops, values, values[1:], strict=False):
            if isinstance(a, Grid) and isinstance(b, Grid):
                test = COMPARISONS.get(op) or (_equal if op == "==" else _unequal)
                part = each(lambda x, y, test=test: float(test(x, y)), a, b)
            else:
                part = number((a == b) is (op == "=="))
            result = each(lambda x, y: x * y, result, part)
        return result

    def arithmetic(self, node: Binary, right: Thing) -> Grid:
        """Return the result of an operator, recording where it breaks down."""
        left = self.number(node.left)
        if not isinstance(right, Grid) or node.op not in (*ARITHMETIC, "@"):
            raise Abandoned
        if node.op == "@":
            self.as_table(left)
            if left.cols != self.as_table(right).rows:
                raise Abandoned
            return grid.product(left, right)
        if node.op == "/":
            self.note(node.right, BY_ZERO, each(lambda a, b: float(b == 0 and a != 0 and a == a), left, right))
            self.note(node.right, ZERO_BY_ZERO, each(lambda a, b: float(b == 0 and a == 0), left, right))
        elif node.op == "^":
            self.note(node, NEGATIVE_ROOT, each(lambda a, b: float(a < 0 and b % 1 != 0), left, right))
            self.note(node.left, BY_ZERO, each(lambda a, b: float(a == 0 and b < 0), left, right))
        return each(ARITHMETIC[node.op], left, right)

    def note(self, node: Node, what: str, where: Grid) -> None:
        """Record a problem where ``where`` is nonzero, if those elements are active."""
        if self.step > 1 or not any(where.data):
            return
        if any(each(lambda *x: float(all(x)), where, *self.masks).data):
            self.trouble.setdefault(self.site or node.span, what)

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: Call) -> Thing:
        """Return the result of a call."""
        if not isinstance(node.function, Name):
            raise Abandoned
        name = node.function.name
        if name in self.rule.functions:
            return self.call_function(node)[0]
        if name in SIZES:
            table = self.table(node.arguments[0].value)
            dims = (int(self.number(a.value).data[0]) for a in node.arguments[1:])
            return number(size_of(name, (table.rows, table.cols), *dims))
        builtin = BUILTINS[name]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        given: list[Expr] = [a.value for a in node.arguments if a.name is None]
        if builtin.group == RANDOM or name in MAKERS:
            return self.made(name, given)
        if not builtin.variadic:
            given = self.in_order(name, given, named)
        if builtin.block:
            return self.block_function(node, given)
        if name in EVALUATIONS:
            raise Abandoned
        if name == "total":
            return grid.reduce(grid.total, self.number(given[0]), True, True)
        if name == "where":
            return self.choice(given[0], given[1], given[2])
        dim = None
        if "dim" in named:
            values = dim_values(named["dim"], len(self.sample.shape))
            dim = self.dim if values is None else values
        body = definitions.definition(name)
        if body is not None:
            own = [parameter for parameter, _ in builtin.parameters if parameter != "dim"]
            if dim is None and len(own) < len(builtin.parameters):
                dim = dim_values(given[-1], len(self.sample.shape))
            return self.derived(name, body, [self.value(e) for e in given[: len(own)]], dim, node)
        numbers = [self.number(e) for e in given]
        if builtin.matrix:
            if name != "matrix":
                raise Abandoned
            return self.as_table(numbers[0])
        if builtin.reduction and len(numbers) == 1:
            return self.reduction(name, numbers[0], dim)
        return self.elementwise(name, numbers, node)

    def in_order(self, name: str, given: list[Expr], named: Mapping[str, Expr]) -> list[Expr]:
        """Return the arguments of a builtin in parameter order, with defaults filled in."""
        ordered = list(given)
        for parameter, _ in BUILTINS[name].parameters[len(given) :]:
            value = named.get(parameter) or definitions.default(BUILTINS[name], parameter)
            if value is None:
                raise Abandoned
            ordered.append(value)
        return ordered

    def derived(self, name: str, body: Expr, values: list[Thing], dim: tuple[int, ...] | None, node: Call) -> Thing:
        """Evaluate a builtin that is defined by a formula."""
        names = [parameter for parameter, _ in BUILTINS[name].parameters if parameter != "dim"]
        caller, site = self.frame, self.site
        self.frame = dict(zip(names, values, strict=True))
        self.site = site or node.span
        outer, self.dim = self.dim, dim
        try:
            return self.value(body)
        finally:
            self.frame, self.site, self.dim = caller, site, outer

    def block_function(self, node: Call, given: list[Expr]) -> Thing:
        """Evaluate a builtin that is defined by a block."""
        function = definitions.function(node.function.name) if isinstance(node.function, Name) else None
        assert function is not None
        inner: Env = {p.name.name: self.value(e) for p, e in zip(function.parameters, given, strict=True)}
        caller, site, self.frame = self.frame, self.site, inner
        self.site = site or node.span
        try:
            results = self.function_block(body_of(function))
        finally:
            self.frame, self.site = caller, site
        if results is None:
            raise Abandoned
        return results[0]

    # Matrices -----------------------------------------------------------------------------------------------

    def table(self, expr: Expr) -> Grid:
        """Return the value of a matrix expression as a table."""
        return self.as_table(self.number(expr))

    def as_table(self, value: Grid) -> Grid:
        """Return a value as a matrix table. Vectors and scalars are not distinguished from matrices."""
        if len(self.sample.shape) != 2 or 1 in (value.rows, value.cols):
            raise Abandoned
        return value

    def made(self, name: str, sizes: list[Expr]) -> Grid:
        """Create a matrix of given sizes."""
        numbers = [self.number(size).data[0] for size in sizes]
        if name not in MAKERS or not all(n >= 1 and n % 1 == 0 for n in numbers):
            raise Abandoned
        rows, cols = (int(numbers[0]), int(numbers[0])) if name == "eye" else (*map(int, numbers), 0)[:2]
        if rows * cols < 1 or len(numbers) > 2 or rows * cols > MAX_ELEMENTS:
            raise Abandoned
        return Grid(rows, cols, tuple(_made(name, i, j) for i in range(rows) for j in range(cols)))

    def elementwise(self, name: str, values: list[Grid], node: Call) -> Grid:
        """Evaluate a primitive elementwise function."""
        if name == "sqrt":
            self.note(node, NEGATIVE_ROOT, each(lambda x: float(x < 0), values[0]))
        elif name == "log":
            self.note(node, BAD_LOG, each(lambda x: float(x <= 0), values[0]))
        if name == "eps_of":
            return number(1.1920928955078125e-07)
        function = BUILTINS[name].value
        if function is None:
            raise Abandoned
        return each(lambda *x: float(function(*x)), *values)

    def reduction(self, name: str, value: Grid, dim: tuple[int, ...] | None) -> Grid:
        """Evaluate a primitive reduction."""
        shape, function = self.sample.shape, BUILTINS[name].value
        assert function is not None
        rows, cols = grid.size((value, self.p))
        if not (value.rows in (1, rows) and value.cols in (1, cols)):
            rows, cols = value.rows, value.cols
        value = Grid(rows, cols, tuple(value.spread(rows, cols))) if dim is None else value
        axes = {d % len(shape) if shape else 0 for d in dim} if dim is not None else {0, 1}
        if dim is not None and any(not -len(shape) <= d < len(shape) for d in dim):
            raise Abandoned
        over_cols = dim is None or len(shape) - 1 in axes
        over_rows = dim is None or (len(shape) == 2 and 0 in axes)
        return grid.reduce(lambda numbers: float(function(*numbers)), value, over_rows, over_cols)


def _made(name: str, row: int, col: int) -> float:
    """Return one element of ``zeros``, ``ones`` or ``eye``."""
    return float(name == "ones" or (name == "eye" and row == col))


T = TypeVar("T")


def with_mask(masks: list[Grid], mask: Grid, action: Callable[[], T]) -> T:
    """Run ``action`` with only the elements of ``mask`` active."""
    masks.append(mask)
    try:
        return action()
    finally:
        masks.pop()


def _thing(value: Value) -> Thing:
    return number(value) if isinstance(value, (bool, int, float)) else value


def negation(x: float) -> float:
    """Return 1 if a condition does not hold, else 0."""
    return float(x == 0)


def select(c: float, a: float, b: float) -> float:
    """Return ``a`` if ``c`` holds, else ``b``."""
    return a if c else b


def _equal(a: float, b: float) -> bool:
    return a == b


def _unequal(a: float, b: float) -> bool:
    return a != b
