"""Infers the kind and sort of every expression in one variant of a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod

from optlang.checker.arguments import dim_values
from optlang.checker.comparisons import compare
from optlang.checker.tensors import Tensors, is_known_before, named
from optlang.checker.values import MISTAKE, UNKNOWN, CheckedValue, Known, Sort, Uses, merge
from optlang.core.evaluate import ARITHMETIC, FUNCTIONS
from optlang.declarations.constants import as_float
from optlang.functions.shapes import Mismatch
from optlang.functions.table import BUILTINS, ELEMENTWISE, EMPTY, EVALUATIONS, MAKERS, RANDOMS, SIZES, TIME, Builtin
from optlang.kinds import HOST, SCALAR, STATIC, Level, join, reduce
from optlang.syntax.tree import (
    Binary,
    Bool,
    Call,
    Compare,
    Expr,
    Index,
    Infinity,
    Member,
    Name,
    Nothing,
    Number,
    Ternary,
    Text,
    Unary,
)

#: Maximum number of bits in the exact value of an expression of literals.
MAX_BITS = 20_000


class ExpressionReader(Tensors, ABC):
    """Infers expressions; calls to the rule's functions are handled by a subclass."""

    @abstractmethod
    def call_function(self, node: Call) -> tuple[CheckedValue, ...]:
        """Infer the results of a call to one of the rule's functions."""

    @abstractmethod
    def written_out(self, node: Call, builtin: Builtin) -> CheckedValue:
        """Infer the result of a builtin that is defined by a block."""

    # Expressions --------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> CheckedValue:
        """Infer an expression."""
        match expr:  # most frequent cases first
            case Name():
                return self.name(expr)
            case Binary():
                return self.binary(expr)
            case Call():
                return self.call(expr)
            case Number(value=exact):
                bits = exact.numerator.bit_length() + exact.denominator.bit_length()
                return CheckedValue(STATIC, known=as_float(expr), bits=bits, literal=True)
            case Infinity():
                return CheckedValue(STATIC, known=float("inf"), literal=True)
            case Text(value=text):
                return CheckedValue(STATIC, Sort.TEXT, known=text, literal=True)
            case Bool(value=flag):
                return CheckedValue(STATIC, Sort.CONDITION, known=flag, literal=True)
            case Nothing():
                return CheckedValue(STATIC, Sort.NONE, known=None, literal=True)
            case Member(name="t"):
                return CheckedValue(HOST, uses=Uses.TIME)
            case Member(value=Name(name="group")):
                return CheckedValue(HOST, Sort.UNKNOWN)
            case Member():
                return self.member(expr)
            case Index():
                return self.index(expr)
            case Unary(op="not", operand=operand):
                held = self.condition(operand)
                answer = self.decide(operand, held)
                known: Known = UNKNOWN if answer is None else not answer
                return CheckedValue(held.kind, Sort.CONDITION, held.uses, known)
            case Unary(op=op, operand=operand):
                inner = self.number(operand)
                negated = -float(inner.known) if isinstance(inner.known, (int, float)) else UNKNOWN
                known = negated if op == "-" else inner.known
                return inner._replace(sort=_as_number(inner.sort), known=known, optional=None, literal=False)
            case Compare():
                return compare(self, expr, [self.value(operand) for operand in expr.operands], self.number)
            case Ternary(condition=condition, then=then, other=other):
                return self.choice(condition, then, other)
            case _:
                return MISTAKE

    def number(self, expr: Expr) -> CheckedValue:
        """Infer an expression that must be a number (a condition becomes 0 or 1)."""
        value = self.value(expr)
        if value.sort is Sort.NONE and value.optional is not None:
            name = value.optional
            default = self.scope.hypers[name].default
            none = "its default is none" if default is None else "it is declared with `or none`"
            self.report(
                "E308",
                f"`{name}` may be none, which cannot be used in arithmetic",
                expr.span,
                label="may be none here",
                help=f"write `{name} ?? VALUE` to supply a value instead, or test `if {name} != none:` first",
                related=((none, self.scope.places[name]),) if name in self.scope.places else (),
            )
            return MISTAKE
        if value.sort in (Sort.TEXT, Sort.NONE):
            word = "a string" if value.sort is Sort.TEXT else "none"
            self.report(
                "E304",
                f"{word} is used where a number is expected",
                expr.span,
                label="expected a number",
                help='strings and none can only be compared: `mode == "l2"`, `x == none`, `x ?? 0`',
            )
            return MISTAKE
        return value

    def condition(self, expr: Expr) -> CheckedValue:
        """Infer an expression that must be a condition (a nonzero number holds)."""
        value = self.value(expr)
        if value.sort is Sort.TEXT or (value.sort is Sort.NONE and value.optional is None):
            word = "a string" if value.sort is Sort.TEXT else "none"
            self.report(
                "E305",
                f"{word} is not a condition",
                expr.span,
                label="expected a comparison, true, false or a number",
                help=f'compare it: `{self.text(expr)} == "..."`'
                if value.sort is Sort.TEXT
                else "to test whether a hyperparameter is none, write `x == none`",
            )
            return MISTAKE
        return value

    def binary(self, node: Binary) -> CheckedValue:
        """Infer arithmetic, ``and``, ``or`` and ``??``."""
        if node.op in ("and", "or"):
            left = self.condition(node.left)
            answer = self.decide(node.left, left)
            if answer is (node.op == "or"):
                return CheckedValue(left.kind, Sort.CONDITION, left.uses, answer)
            right = self.condition(node.right)
            decided = right._replace(uses=right.uses | (left.uses & Uses.FACT))  # decided by the left side
            both = self.combine(node, (left, right), Sort.CONDITION) if answer is None else decided
            return both._replace(sort=_condition_sort(both.sort), optional=None)
        if node.op == "??":
            left = self.value(node.left)
            if left.sort in (Sort.NUMBER, Sort.CONDITION, Sort.TEXT) and left.optional is None:
                self.report(
                    "W609",
                    f"`{self.text(node.left)}` is never none, so `??` changes nothing",
                    node.right.span,
                    label="never used",
                    help="only a hyperparameter whose default is none can be none",
                )
            return self.value(node.right) if left.sort is Sort.NONE else left._replace(optional=None)
        if node.op not in ARITHMETIC and node.op != "@":
            return MISTAKE
        left, right = self.number(node.left), self.number(node.right)
        if node.op == "@":
            return self.product(node, left, right)
        result = self.combine(node, (left, right))
        known: Known = UNKNOWN
        if isinstance(left.known, (int, float)) and isinstance(right.known, (int, float)):
            known = ARITHMETIC[node.op](float(left.known), float(right.known))
        bits = self.bits(node, left, right)
        return result if known is UNKNOWN and bits is None else result._replace(known=known, bits=bits)

    def bits(self, node: Binary, left: CheckedValue, right: CheckedValue) -> int | None:
        """Return how many bits exact arithmetic on literals may take; report it if too many."""
        if left.bits is None or right.bits is None:
            return None
        assert isinstance(left.known, float) and isinstance(right.known, float)
        if node.op != "^" or abs(left.known) == 1 or left.known == 0:
            bits = left.bits + right.bits
        elif abs(right.known) > MAX_BITS:
            bits = MAX_BITS + 1
        else:
            bits = int(left.bits * max(1.0, abs(right.known)))
        value = ARITHMETIC[node.op](left.known, right.known)
        if bits <= MAX_BITS and abs(value) != float("inf"):
            return bits
        self.report(
            "E510",
            "this power of constants is too large to compute" if node.op == "^" else "this constant is too large",
            node.span,
            label=f"beyond {MAX_BITS:,} binary digits" if bits > MAX_BITS else "beyond the largest number, 1.8e308",
            help="write the number itself, or use a smaller exponent; x^y^z means x^(y^z)",
        )
        return None

    def choice(self, condition: Expr, then: Expr, other: Expr) -> CheckedValue:
        """Infer ``then if condition else other``."""
        held = self.condition(condition)
        answer = self.decide(condition, held)
        if answer is not None:
            chosen = self.value(then if answer else other)
            # A choice by a tensor's shape differs between tensors.
            return chosen._replace(uses=chosen.uses | (held.uses & Uses.FACT))
        return self.merged(condition, (self.number(then), self.number(other)), held)

    def merged(self, expr: Expr, values: tuple[CheckedValue, ...], held: CheckedValue) -> CheckedValue:
        """Infer the join of several values, selected at runtime by the condition ``expr``."""
        try:
            return merge(values, self.sample.shape, held)
        except Mismatch as mismatch:
            return self.mismatch(expr, Mismatch(mismatch.message, "both values of a choice must have the same shape"))

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: Call) -> CheckedValue:
        """Infer the result of a call."""
        name = node.function.name if isinstance(node.function, Name) else ""
        if name in self.scope.functions:
            results = self.call_function(node)
            return results[0] if len(results) == 1 else MISTAKE
        if name in SIZES and name not in self.scope.excused and node.arguments:
            return self.size_of(node, name, self.value(node.arguments[0].value))
        if name not in BUILTINS or name in self.scope.excused:
            for argument in node.arguments:
                self.value(argument.value)
            return MISTAKE
        builtin = BUILTINS[name]
        arguments = [a.value for a in node.arguments if a.name != "dim"]
        if name == "where":
            return self.where(node)
        if name == "bernoulli":
            return self.drawn(node, self.combine(node, [self.number(argument) for argument in arguments]))
        if name in MAKERS or name in RANDOMS or name == EMPTY:
            return self.made(node, name, arguments)
        if builtin.results:
            results = self.several(node, builtin)
            return MISTAKE if builtin.bare is None else results[builtin.bare]
        if builtin.block:
            return self.written_out(node, builtin)
        if builtin.takes_dim and not (builtin.matrix or builtin.reduction):
            return self.along(node, builtin)
        values = [self.number(argument) for argument in arguments]
        if name in EVALUATIONS:
            return self.evaluated(node, arguments, values)
        if name in ("total", "gnorm"):
            return self.total(node, arguments, values)
        if builtin.matrix:
            return self.matrix_function(node, builtin, values)
        if builtin.reduction and (len(arguments) == 1 or not builtin.variadic):
            ordered = [argument for name, argument in named(node, builtin).items() if name != "dim"] or arguments
            return self.reduction(node, builtin, ordered, [self.number(argument) for argument in ordered])
        one_number = builtin.group == ELEMENTWISE and len(builtin.parameters) == 1 and not builtin.of_conditions
        if one_number and len(values) == 1 and values[0].sort is Sort.CONDITION:
            self.report(
                "E305",
                f"`{name}` of a condition",
                arguments[0].span,
                label="true or false",
                help=f"a misplaced bracket? a comparison goes outside: `{name}(x) > y`",
            )
            return MISTAKE
        result = self.combine(node, values, Sort.CONDITION if builtin.boolean else Sort.NUMBER)
        if builtin.group == TIME:
            result = result._replace(kind=join((result.kind, HOST)), uses=result.uses | Uses.TIME)
        elif name == "eps_of":
            result = result._replace(kind=HOST, uses=Uses.FACT)
        return result._replace(known=self.known_result(name, values), uses=self.result_uses(name, result))

    def known_result(self, name: str, values: list[CheckedValue]) -> Known:
        """Evaluate a function on known numbers."""
        numbers = [v.known for v in values if isinstance(v.known, (int, float))]
        if name in FUNCTIONS and values and len(numbers) == len(values):
            return FUNCTIONS[name](*map(float, numbers))
        return UNKNOWN

    def result_uses(self, name: str, result: CheckedValue) -> int:
        """Return the dependencies of a result; only some functions may select a variant."""
        return result.uses if name in FUNCTIONS else result.uses | Uses.LOCAL

    def where(self, node: Call) -> CheckedValue:
        """Infer ``where(c, a, b)``, which equals ``a if c else b``."""
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        given = [a.value for a in node.arguments if a.name is None]
        sides = [*given, *(named[n] for n in ("c", "a", "b")[len(given) :] if n in named)]
        if len(sides) != 3:
            return MISTAKE
        return self.choice(*sides)

    def reduction(
        self, node: Call, builtin: Builtin, arguments: list[Expr], values: list[CheckedValue]
    ) -> CheckedValue:
        """Infer a reduction."""
        required = len(arguments) if builtin.variadic else builtin.required
        for option, value in zip(arguments[required:], values[required:], strict=True):
            if value.sort is Sort.UNKNOWN:
                return MISTAKE
            if not is_known_before(value):
                self.unknown_before(option, value, f"the `{builtin.parameters[required][0]}` of `{builtin.name}`")
                return MISTAKE
        arguments, values = arguments[:required], values[:required]
        joined = self.combine(node, values)
        if joined.kind.level <= Level.SCALAR and joined.sort is not Sort.UNKNOWN and arguments:
            self.report(
                "E310",
                f"`{builtin.name}` has nothing to reduce: `{self.text(arguments[0])}` is one number",
                node.span,
                label="already one number",
                help=f"remove `{builtin.name}`"
                + (": the norm of one number is its `abs`" if builtin.name in ("norm", "rms") else ""),
            )
            return MISTAKE
        try:
            kind = reduce(joined.kind, self.dims(named(node, builtin).get("dim"), joined))
        except Mismatch as mismatch:
            return self.mismatch(node, mismatch)
        if joined.sort is Sort.UNKNOWN:
            return CheckedValue(kind, Sort.UNKNOWN, joined.uses)
        return CheckedValue(kind if kind.on_device else SCALAR, uses=joined.uses | Uses.TENSOR)

    def along(self, node: Call, builtin: Builtin) -> CheckedValue:
        """Infer a function of a tensor, or of its slices along dimensions, that preserves the shape."""
        arguments = named(node, builtin)
        dim = arguments.pop("dim", None)
        values = [self.number(argument) for argument in arguments.values()]
        result = self.combine(node, values)
        if result.sort is Sort.UNKNOWN or not values:
            return result
        if values[0].kind.level <= Level.SCALAR:
            return self.no_tensor(node)
        try:
            reduce(values[0].kind, self.dims(dim, values[0]))
        except Mismatch as mismatch:
            return self.mismatch(node, mismatch)
        return result._replace(uses=result.uses | Uses.TENSOR)

    def no_tensor(self, node: Call) -> CheckedValue:
        """Report a whole-tensor function applied to a number."""
        x = self.text(node.arguments[0].value)
        self.report(
            "E310",
            f"`{self.text(node.function)}` takes a tensor: `{x}` is one number",
            node.span,
            label="already one number",
            help="pass a value shaped like p, or a matrix",
        )
        return MISTAKE

    def dims(self, expr: Expr | None, value: CheckedValue) -> frozenset[int] | None:
        """Return the dimensions given by ``dim=``; None for the whole tensor."""
        if expr is None:
            return None
        if self.site is not None and isinstance(expr, Name):  # as passed to the enclosing builtin
            known = self.value(expr).known
            return frozenset((int(known),)) if isinstance(known, float) else None
        values = dim_values(expr, len(self.shape(value)))
        return None if values is None else frozenset(values)


def _as_number(sort: Sort) -> Sort:
    return Sort.UNKNOWN if sort is Sort.UNKNOWN else Sort.NUMBER


def _condition_sort(sort: Sort) -> Sort:
    return Sort.UNKNOWN if sort is Sort.UNKNOWN else Sort.CONDITION
