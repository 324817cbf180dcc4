"""Infers matrices, sums over the whole model and random numbers, in one variant of a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from optlang.checker.functions import result_count
from optlang.checker.matrices import Some, kind_of, shape_of
from optlang.checker.reader import Reader
from optlang.checker.values import MISTAKE, UNKNOWN, CheckedValue, Sort, Uses, uses_of
from optlang.functions import shapes
from optlang.functions.shapes import Mismatch, Shape, Size
from optlang.functions.table import BUILTINS, EMPTY, HALT, RANDOM, SEARCHES, Builtin
from optlang.kinds import ELEMENT, HOST, Level
from optlang.syntax.tree import Binary, Call, Expr, Index, Member, Name, Number, Slice, Unary


class Tensors(Reader, ABC):
    """Infers matrix functions; other expressions are handled by a subclass."""

    @abstractmethod
    def value(self, expr: Expr) -> CheckedValue:
        """Infer an expression."""

    @abstractmethod
    def number(self, expr: Expr) -> CheckedValue:
        """Infer an expression that must be a number."""

    @abstractmethod
    def call_function(self, node: Call) -> tuple[CheckedValue, ...]:
        """Infer the results of a call to one of the rule's functions."""

    # Shapes ----------------------------------------------------------------------------------------------------------

    def shape(self, value: CheckedValue) -> Shape:
        """Return the shape of a value."""
        return shape_of(value.kind, self.sample.shape)

    def shaped(self, node: Expr, values: Sequence[CheckedValue], shape: Callable[[], Shape]) -> CheckedValue:
        """Infer a matrix function of ``values``; ``shape`` computes its shape."""
        if any(v.sort is Sort.UNKNOWN for v in values):
            return MISTAKE
        try:
            kind = kind_of(shape())
        except Mismatch as mismatch:
            return self.mismatch(node, mismatch)
        self.fine(node)
        return CheckedValue(kind, uses=uses_of(values) | Uses.TENSOR)

    def known_size(self, expr: Expr, value: CheckedValue, what: str) -> Size | None:
        """Return a size that must be known before the first step; report it and return None if it is not."""
        if value.sort is Sort.UNKNOWN and isinstance(expr, Member):
            return Some(self.text(expr))  # a user's key
        if value.sort is Sort.UNKNOWN:
            return None
        if not is_known_before(value):
            self.unknown_before(expr, value, what)
            return None
        if not isinstance(value.known, (int, float)):
            return Some(self.text(expr))
        if value.known % 1 == 0 and abs(value.known) < 1e15:
            return int(value.known)
        if self.sample.defaults:
            help = f"round it: `floor({self.text(expr)})`"
            self.mismatch(expr, Mismatch(f"{what} must be an integer, not {value.known:g}", help))
        return None

    def unknown_before(self, expr: Expr, value: CheckedValue, what: str) -> None:
        """Report a size, count or period that is not known before the first step."""
        if self.findings.error_inside(expr.span):
            return
        reason = "changes from step to step" if value.uses & Uses.TIME else "computed in the step"
        if value.kind.level > Level.SCALAR:
            reason = f"{self.phrase(value)}, not one number"
        self.report(
            "E314",
            f"{what} must be known before the first step",
            expr.span,
            label=reason,
            help="use numbers, hyperparameters, and sizes such as `rows`, `cols` and `rows(x)`",
        )

    def phrase(self, value: CheckedValue) -> str:
        """Return a phrase for the kind of a value."""
        if value.kind.level is Level.ELEMENT:
            return "shaped like p"
        if value.kind.level is Level.MATRIX:
            return shapes.described(value.kind.shape)
        return str(value.kind) if value.kind.level is Level.REDUCED else "one number"

    # Operators -------------------------------------------------------------------------------------------------------

    def product(self, node: Binary, left: CheckedValue, right: CheckedValue) -> CheckedValue:
        """Infer ``left @ right``."""
        return self.shaped(node, (left, right), lambda: shapes.product(self.shape(left), self.shape(right)))

    def member(self, node: Member) -> CheckedValue:
        """Infer ``x.T`` or a named result of a call."""
        if node.name == "T":
            value = self.number(node.value)
            return self.shaped(node, (value,), lambda: shapes.transposed(self.shape(value)))
        call = node.value
        if isinstance(call, Call) and isinstance(call.function, Name):
            builtin = BUILTINS.get(call.function.name)
            if builtin is not None and node.name in builtin.results and call.function.name not in self.scope.functions:
                return self.several(call, builtin)[builtin.results.index(node.name)]
        self.value(call)
        return MISTAKE

    def index(self, node: Index) -> CheckedValue:
        """Infer ``x[...]``."""
        if (results := self.picked_from(node)) is not None:
            place = literal_index(node)
            return results[place] if place is not None and 0 <= place < len(results) else MISTAKE
        value = self.number(node.value)
        values, items = [value], list[Any]()
        for item in node.items:
            if isinstance(item, Slice):
                ends = [self.slice_end(end) for end in (item.start, item.stop)]
                if False in ends:
                    values.append(MISTAKE)
                items.append(ends)
                continue
            inner = self.number(item)
            values.append(inner)
            if inner.sort is not Sort.UNKNOWN and not self.is_index(item, inner):
                values.append(MISTAKE)
            items.append(self.shape(inner))
        result = self.shaped(node, values, lambda: self.indexed(node, values, items))
        if result is not MISTAKE and items == [()] and self.holds_elements(node.value):
            return result._replace(kind=ELEMENT)  # also of a 0-dimensional tensor
        return result._replace(order=value.order)

    def indexed(self, node: Index, values: Sequence[CheckedValue], items: Sequence[Any]) -> Shape:
        """Return the shape of ``x[...]``; indices must be in range."""
        whole = self.shape(values[0])
        for size, item in zip(whole, node.items, strict=False):
            room = self.entries.get(item.name) if isinstance(item, Name) else None
            if room is not None and shapes.differ(room, size):
                raise Mismatch(
                    f"an index into a history of size {room} cannot be used for something of size {size}",
                    "histories read in one loop must have the same size; use a separate loop for each of the others",
                )
        return shapes.indexed(whole, items)

    def holds_elements(self, node: Expr) -> bool:
        """Return whether a value is a history with entries shaped like p."""
        state = self.scope.states.get(node.name) if isinstance(node, Name) else None
        initial = state.item.initial if state is not None else None
        return isinstance(initial, Call) and isinstance(initial.function, Name) and initial.function.name == EMPTY

    def picked_from(self, node: Index) -> tuple[CheckedValue, ...] | None:
        """Return the results from which ``f(x)[i]`` selects; None if it is an index into a tensor."""
        call = node.value
        if not (isinstance(call, Call) and isinstance(call.function, Name)):
            return None
        name = call.function.name
        if name in self.scope.functions:
            return self.call_function(call) if result_count(self.scope.functions[name]) > 1 else None
        builtin = BUILTINS.get(name)
        return self.several(call, builtin) if builtin is not None and builtin.results else None

    def slice_end(self, end: Expr | None) -> Size | bool | None:
        """Return one end of a slice; False if it is unknown."""
        if end is None:
            return None
        size = self.known_size(end, self.number(end), "an end of a slice")
        return False if size is None else size

    def is_index(self, expr: Expr, value: CheckedValue) -> bool:
        """Check that a value may be used as an index: a number or an order."""
        if value.order or value.kind.level <= Level.HOST:
            return True
        self.report(
            "E314",
            f"`{self.text(expr)}` cannot be an index",
            expr.span,
            label=self.phrase(value) if value.kind.level > Level.SCALAR else "a number computed from tensors",
            help="an index is a slice `:r`, a number, or an order such as `argsort(v)`",
        )
        return False

    # Functions -------------------------------------------------------------------------------------------------------

    def several(self, node: Call, builtin: Builtin) -> tuple[CheckedValue, ...]:
        """Infer the results of a function with several results."""
        arguments = in_order(node, builtin)
        values = [self.number(argument) for argument in arguments]
        nothing = (MISTAKE,) * len(builtin.results)
        if any(v.sort is Sort.UNKNOWN for v in values) or len(values) < builtin.required:
            return nothing
        x = self.shape(values[0])
        try:
            if builtin.sized:
                k = self.known_size(arguments[1], values[1], f"the number that `{builtin.name}` takes")
                if k is None or (isinstance(k, int) and k < 1 and not self.sample.defaults):
                    return nothing
                last = x[-1] if x else None  # the number is checked for each tensor
                found = builtin.shapes(x, min(k, last) if isinstance(k, int) and isinstance(last, int) else k)
            elif builtin.numbered:
                dim = self.axis(builtin, arguments)
                if dim is None:
                    return nothing
                found = builtin.shapes(x, dim)
            else:
                found = builtin.shapes(x)
        except Mismatch as mismatch:
            self.mismatch(node, mismatch)
            return nothing
        self.fine(node)
        uses = uses_of(values) | Uses.TENSOR
        return tuple(
            CheckedValue(kind_of(shape), uses=uses, order=name in builtin.orders)
            for shape, name in zip(found, builtin.results, strict=True)
        )

    def matrix_function(self, node: Call, builtin: Builtin, values: Sequence[CheckedValue]) -> CheckedValue:
        """Infer a matrix function with one result."""
        arguments = in_order(node, builtin)
        if builtin.numbered and arguments:
            dim = self.axis(builtin, arguments)
            x = self.number(arguments[0])
            if dim is None:
                return MISTAKE
            result = self.shaped(node, (x,), lambda: builtin.shapes(self.shape(x), dim))
            order = builtin.name in builtin.orders or (builtin.name == "flip" and x.order)
            return result._replace(order=order, kind=x.kind if result is not MISTAKE else result.kind)
        if len(arguments) != len(builtin.parameters):
            return MISTAKE
        ordered = [self.number(argument) for argument in arguments]
        return self.shaped(node, ordered, lambda: builtin.shapes(*map(self.shape, ordered)))

    def axis(self, builtin: Builtin, arguments: Sequence[Expr]) -> int | None:
        """Return the integer that is a function's second argument, usually a dimension; None if there is none."""
        parameter, default = builtin.parameters[1]
        if len(arguments) < 2:
            return int(default or 0)
        if self.site is not None:  # the definition of a builtin, called with an integer
            known = self.number(arguments[1]).known
            return int(known) if isinstance(known, (int, float)) else None
        if parameter == "dim":
            help = f"`{builtin.name}(x, 0)` works along columns of a matrix, `{builtin.name}(x, 1)` along rows"
            return self.whole(arguments[1], f"the dimension of `{builtin.name}`", help)
        help = f"`{builtin.name}(x, 1)` begins above the main diagonal, `{builtin.name}(x, -1)` below it"
        return self.whole(arguments[1], f"the diagonal of `{builtin.name}`", help)

    def whole(self, expr: Expr, what: str, help: str = "dimensions count from 0, or from -1 at the end") -> int | None:
        """Return a literal integer; report it and return None if it is something else."""
        number = literal(expr)
        if number is None:
            label = "expected for example `0` or `-1`"
            self.report("E309", f"{what} must be an integer literal", expr.span, label=label, help=help)
        return number

    def made(self, node: Call, name: str, arguments: Sequence[Expr]) -> CheckedValue:
        """Infer a tensor of given sizes, or random numbers shaped like p."""
        builtin = BUILTINS[name]
        if not arguments and builtin.group == RANDOM:
            return CheckedValue(ELEMENT, uses=Uses.TENSOR)
        sizes = list[Size]()
        for argument in arguments:
            size = self.known_size(argument, self.number(argument), "a size")
            if size is None:
                return MISTAKE
            if isinstance(size, int) and size < 0 and not self.sample.defaults:
                return MISTAKE
            sizes.append(size)
        if name == EMPTY:
            sizes += self.sample.shape
        return self.shaped(node, (), lambda: shapes.made(name, sizes)) if sizes else MISTAKE

    def drawn(self, node: Call, chance: CheckedValue) -> CheckedValue:
        """Infer ``bernoulli(chance)``, shaped like p."""
        return self.combine(node, (chance, CheckedValue(ELEMENT, uses=Uses.TENSOR)))

    def size_of(self, node: Call, name: str, value: CheckedValue) -> CheckedValue:
        """Infer ``rows(x)``, ``cols(x)`` or ``size(x, i)``."""
        dim = None
        if name == "size":
            dim = None if len(node.arguments) < 2 else self.whole(node.arguments[1].value, "the dimension of `size`")
            if dim is None:
                return MISTAKE
        if value.sort is Sort.UNKNOWN:
            return CheckedValue(HOST, Sort.UNKNOWN)
        if value.kind.level <= Level.HOST:
            self.report(
                "E310",
                f"`{self.text(node.arguments[0].value)}` is one number, which has no {name}",
                node.span,
                label="not a tensor",
                help="`size(x, i)` is a size of a tensor"
                if name == "size"
                else f"`{name}(x)` is a size of a tensor; `{name}` alone refers to p",
            )
            return MISTAKE
        try:
            size = shapes.size_of(name, self.shape(value), dim)
        except Mismatch as mismatch:
            return self.mismatch(node, mismatch)
        self.fine(node)
        known = float(size) if isinstance(size, int) else UNKNOWN
        return CheckedValue(HOST, uses=Uses.FACT, known=known)

    def total(self, node: Call, arguments: Sequence[Expr], values: Sequence[CheckedValue]) -> CheckedValue:
        """Infer a sum over the whole model."""
        assert isinstance(node.function, Name)
        if values and values[0].sort is not Sort.UNKNOWN and not values[0].uses & Uses.TENSOR:
            self.report(
                "E310",
                f"`{node.function.text}` sums over tensors: `{self.text(arguments[0])}` is the same for each",
                arguments[0].span,
                label="does not depend on a tensor",
                help="it sums over all elements of all tensors: `total(g^2)`, `total(abs(m))`",
            )
            return MISTAKE
        return CheckedValue(HOST, uses=Uses.TOTAL | (values[0].uses & Uses.CALLED if values else Uses.NOTHING))

    def evaluated(self, node: Call, arguments: Sequence[Expr], values: Sequence[CheckedValue]) -> CheckedValue:
        """Infer a closure evaluation."""
        assert isinstance(node.function, Name)
        p = CheckedValue(ELEMENT, uses=Uses.TENSOR)
        name = node.function.name
        searches, numbers = name in SEARCHES, name == HALT
        for argument, value in zip(arguments, values, strict=False):
            if value.sort is Sort.UNKNOWN:
                return MISTAKE
            if numbers or (searches and argument is not in_order(node, BUILTINS[name])[0]):
                if not self.one_number(node, argument, value) or (numbers and self.comes_late(argument, value)):
                    return MISTAKE
                continue
            if self.combine(argument, (p, value)).kind != ELEMENT or value.kind.level is Level.MATRIX:
                self.report(
                    "E301",
                    f"`{node.function.text}` takes a value for every element of p",
                    argument.span,
                    label="not shaped like p",
                    help="for example `grad(p + rho*g)`, `hvp(randn())`",
                )
                return MISTAKE
        called = Uses.CALLED if arguments and not numbers else Uses.NOTHING
        return (
            CheckedValue(p.kind, uses=p.uses | called)
            if name in ("grad", "hvp")
            else CheckedValue(HOST, uses=Uses.TOTAL | called)
        )

    def comes_late(self, argument: Expr, value: CheckedValue) -> bool:
        """Check that the arguments of ``iterate`` are known before the step evaluates the closure."""
        if not value.uses & Uses.CALLED:
            return False
        self.report(
            "E301",
            "the condition of `iterate` is tested before the step calls the closure",
            argument.span,
            label="this calls the closure",
            help="use `loss`, g and states, or keep the value in a state and test it in the next step",
        )
        return True

    def one_number(self, node: Call, argument: Expr, value: CheckedValue) -> bool:
        """Check an option of a search, which is one number for the whole model (in a ``flat`` rule, any number)."""
        if value.kind.level <= (Level.SCALAR if self.scope.flat else Level.HOST):
            return True
        halts = isinstance(node.function, Name) and node.function.name == HALT
        what = "`iterate` applies to" if halts else f"`{self.text(node.function)}` takes one step along d for"
        self.report(
            "E301",
            f"{what} the whole model",
            argument.span,
            label=self.phrase(value) if value.kind.level > Level.SCALAR else "differs from tensor to tensor",
            help="use hyperparameters, time and sums over the model: `total(x)`; in a `flat` rule, any number",
        )
        return False


def is_known_before(value: CheckedValue) -> bool:
    """Return whether a number is known before the first step."""
    return value._replace(uses=value.uses & ~Uses.LOCAL).is_static


def literal(expr: Expr) -> int | None:
    """Return the value of a literal integer; None for anything else."""
    if isinstance(expr, Unary) and expr.op == "-":
        inner = literal(expr.operand)
        return None if inner is None else -inner
    return int(expr.value) if isinstance(expr, Number) and expr.value.denominator == 1 else None


def literal_index(node: Index) -> int | None:
    """Return the number in an index that selects a result."""
    (item, *more) = node.items
    return None if more or isinstance(item, Slice) else literal(item)


def named(node: Call, builtin: Builtin) -> dict[str, Expr]:
    """Return the arguments of a call by parameter name (and ``dim``), in parameter order."""
    given = [a.value for a in node.arguments if a.name is None]
    by_name = {a.name: a.value for a in node.arguments if a.name is not None}
    names = [name for name, _ in builtin.parameters]
    rest = [name for name in (*names[len(given) :], "dim") if name in by_name]
    return {**dict(zip(names, given, strict=False)), **{name: by_name[name] for name in rest}}


def in_order(node: Call, builtin: Builtin) -> list[Expr]:
    """Return the given arguments of a call in parameter order."""
    return list(named(node, builtin).values())
