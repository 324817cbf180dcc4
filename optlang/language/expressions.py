"""The kind and sort of every expression, in one variant of a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from optlang.language.arguments import dim_values
from optlang.language.builtins import BUILTINS, TIME, Builtin
from optlang.language.constants import as_float
from optlang.language.evaluate import ARITHMETIC, COMPARISONS, FUNCTIONS
from optlang.language.findings import Findings
from optlang.language.kinds import ELEMENT, HOST, SCALAR, STATIC, Kind, Level, join, reduce
from optlang.language.rule import HyperType, OneOf
from optlang.language.scope import Scope
from optlang.language.suggest import listing, nearest
from optlang.language.tree import (
    Binary,
    Bool,
    Call,
    Compare,
    Expr,
    Infinity,
    Member,
    Name,
    Nothing,
    Number,
    Stmt,
    Ternary,
    Text,
    Unary,
)
from optlang.language.values import MISTAKE, UNKNOWN, Known, Sort, Uses, Value, combine, merge, uses_of
from optlang.language.walk import condition_above
from optlang.language.worlds import World
from optlang.source import Span

#: How many binary digits the exact value of an expression of literals may take.
MAX_BITS = 20_000

#: Functions of one number that mean nothing of a condition.
OF_NUMBERS = frozenset(
    ("sqrt", "rsqrt", "exp", "log", "expm1", "log1p", "sin", "cos", "tanh", "atan", "erf", "sigmoid", "sign")
) | {"sgn", "floor", "round", "isfinite", "nan_to_num"}

#: Mistakes that only count where a variant can really come to the place.
REACHED = frozenset({"E203", "E211", "E308"})


class Reader(ABC):
    """Reads expressions in one world; statements are read by its subclass in :mod:`statements`."""

    body: Sequence[Stmt] = ()  # the statements of the rule

    def __init__(
        self,
        scope: Scope,
        world: World,
        findings: Findings,
        forced: dict[Span, bool],
        seen: dict[Span, set[bool]],
    ) -> None:
        self.scope = scope
        self.world = world
        self.findings = findings
        self.forced = forced
        self.seen = seen
        self.env: dict[str, Value] = {"g": Value(ELEMENT, uses=Uses.TENSOR)}
        self.frame: dict[str, Value] | None = None  # parameters and locals of the function being read
        self.declaring = False  # whether a declaration is being read, which sees no locals
        self.exists: dict[str, bool] = {}
        self.kinds: dict[str, Kind] = {}

    def report(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        label: str | None = None,
        help: str | None = None,
        related: tuple[tuple[str, Span], ...] = (),
    ) -> None:
        """Report a mistake, unless this reading was forced to come where no variant comes."""
        if not (self.forced and code in REACHED):
            self.findings.add(code, message, span, label=label, help=help, related=related)

    def text(self, expr: Expr) -> str:
        """Return an expression as written."""
        return self.findings.source.excerpt(expr.span)

    def decide(self, expr: Expr, value: Value) -> bool | None:
        """Return which way a condition goes in this world, None if only a step can tell."""
        if not value.is_static:
            return None
        truth = value.truth
        answer = self.forced.get(expr.span, True if truth is None else truth)
        self.seen.setdefault(expr.span, set()).add(answer)
        return answer

    @abstractmethod
    def call_function(self, node: Call) -> tuple[Value, ...]:
        """Return the results of a call of one of the rule's functions."""

    # Expressions --------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> Value:
        """Return what is known of the value of an expression."""
        match expr:
            case Number(value=exact):
                bits = exact.numerator.bit_length() + exact.denominator.bit_length()
                return Value(STATIC, known=as_float(expr), bits=bits, literal=True)
            case Infinity():
                return Value(STATIC, known=float("inf"), literal=True)
            case Text(value=text):
                return Value(STATIC, Sort.TEXT, known=text, literal=True)
            case Bool(value=flag):
                return Value(STATIC, Sort.CONDITION, known=flag, literal=True)
            case Nothing():
                return Value(STATIC, Sort.NONE, known=None, literal=True)
            case Name():
                return self.name(expr)
            case Member(name="t"):
                return Value(HOST, uses=Uses.TIME)
            case Member():
                return Value(HOST, Sort.UNKNOWN)
            case Unary(op="not", operand=operand):
                held = self.condition(operand)
                answer = self.decide(operand, held)
                known: Known = UNKNOWN if answer is None else not answer
                return Value(held.kind, Sort.CONDITION, held.uses, known)
            case Unary(op=op, operand=operand):
                inner = self.number(operand)
                negated = -float(inner.known) if isinstance(inner.known, (int, float)) else UNKNOWN
                known = negated if op == "-" else inner.known
                return replace(inner, sort=_as_number(inner.sort), known=known, optional=None, literal=False)
            case Binary():
                return self.binary(expr)
            case Compare():
                return self.compare(expr)
            case Ternary(condition=condition, then=then, other=other):
                return self.choice(condition, then, other)
            case Call():
                return self.call(expr)
            case _:
                return MISTAKE

    def name(self, node: Name) -> Value:
        """Return what is known of a name."""
        name, scope = node.name, self.scope
        if self.frame is not None and name in self.frame:
            return self.present(node, self.frame[name])
        if name in scope.hypers:
            return self.hyper(name)
        if name in scope.states:
            return self.state(node)
        if name == "p":
            return Value(ELEMENT, uses=Uses.TENSOR)
        if name == "t":
            return Value(HOST, uses=Uses.TIME)
        if name == "first":
            return Value(HOST, Sort.CONDITION, Uses.TIME)
        if name in self.world.values:
            return Value(HOST, uses=Uses.FACT, known=self.world.values[name])
        if name in scope.locals and (self.declaring or self.frame is not None):
            return MISTAKE  # reported where names are resolved
        if name in self.env:
            return self.present(node, self.env[name])
        if name not in scope.locals or name in scope.excused:
            return MISTAKE
        return self.absent(node)

    def hyper(self, name: str) -> Value:
        """Return what is known of a hyperparameter."""
        hyper = self.scope.hypers[name]
        known = self.world.values[name]
        match hyper.type:
            case HyperType.FLAG:
                return Value(STATIC, Sort.CONDITION, known=known, literal=True)
            case HyperType.TEXT:
                return Value(STATIC, Sort.TEXT, known=known, literal=True)
            case HyperType.OPTIONAL if known is None:
                return Value(STATIC, Sort.NONE, known=None, optional=name, literal=True)
            case HyperType.OPTIONAL:
                return Value(HOST, known=known, optional=name)
            case _:
                return Value(HOST, known=known)

    def state(self, node: Name) -> Value:
        """Return what is known of a state."""
        state = self.scope.states[node.name]
        if not self.exists.get(node.name, True):
            assert state.when is not None
            condition = self.text(state.when)
            if not self.forced and not self.findings.once("E211", node.name):
                return MISTAKE
            self.report(
                "E211",
                f"`{node.text}` exists only when `{condition}`, and is used here without that",
                node.span,
                label="may not exist here",
                help=f"use it under `if {condition}:`, or declare it without `when`",
                related=(("declared here", state.item.span),),
            )
            return MISTAKE
        uses = Uses.GROUP if state.scope == "group" else Uses.TENSOR
        return Value(self.kinds.get(node.name, ELEMENT), uses=uses)

    def present(self, node: Name, value: Value) -> Value:
        """Return the value of a local, reporting it if some path to here does not assign it."""
        if value.missing:
            self.absent(node)
            return replace(value, missing=False)
        return value

    def absent(self, node: Name) -> Value:
        """Report a local that is read where it may have no value."""
        place = self.scope.locals.get(node.name)
        if self.frame is not None and node.name in self.frame:
            place = None
        if self.forced or not self.findings.once("E203", node.name):
            return MISTAKE
        if place is not None and place >= node.span:
            message, label = f"`{node.text}` is read before it is assigned", "no value yet"
            help = f"declare `state {node.text}` to keep a value from step to step, or assign it first"
        else:
            message, label = f"`{node.text}` may have no value here", "not assigned on every path to here"
            help = "assign it on every path, for example before the `if`"
        self.report(
            "E203",
            message,
            node.span,
            label=label,
            help=help,
            related=((self.assigned_where(place), place),) if place is not None else (),
        )
        return MISTAKE

    def assigned_where(self, place: Span) -> str:
        """Return how to refer to an assignment: with the condition it stands under, if it stands under one."""
        condition = condition_above(self.body, place)
        return f"assigned here, if `{self.text(condition)}`" if condition is not None else "assigned here"

    def number(self, expr: Expr) -> Value:
        """Return what is known of an expression that must be a number (a condition counts as 0 or 1)."""
        value = self.value(expr)
        if value.sort is Sort.NONE and value.optional is not None:
            name = value.optional
            self.report(
                "E308",
                f"`{name}` may be none, and there is no arithmetic on none",
                expr.span,
                label="may be none here",
                help=f"write `{name} ?? VALUE` for a value to use instead, or ask `if {name} != none:` first",
                related=(("none is its default", self.scope.places[name]),) if name in self.scope.places else (),
            )
            return MISTAKE
        if value.sort in (Sort.TEXT, Sort.NONE):
            word = "a string" if value.sort is Sort.TEXT else "none"
            self.report(
                "E304",
                f"{word} stands where a number is expected",
                expr.span,
                label="expected a number",
                help='strings and none are only compared: `mode == "l2"`, `x == none`, `x ?? 0`',
            )
            return MISTAKE
        return value

    def condition(self, expr: Expr) -> Value:
        """Return what is known of an expression that must be a condition (a number holds unless it is 0)."""
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
                else "to ask whether a hyperparameter is none, write `x == none`",
            )
            return MISTAKE
        return value

    def binary(self, node: Binary) -> Value:
        """Return what is known of arithmetic, ``and``, ``or`` and ``??``."""
        if node.op in ("and", "or"):
            left = self.condition(node.left)
            answer = self.decide(node.left, left)
            if answer is (node.op == "or"):
                return Value(left.kind, Sort.CONDITION, left.uses, answer)
            right = self.condition(node.right)
            both = combine((left, right), Sort.CONDITION) if answer is None else right
            return replace(both, sort=_condition_sort(both.sort), optional=None)
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
            return self.value(node.right) if left.sort is Sort.NONE else replace(left, optional=None)
        if node.op not in ARITHMETIC:
            return MISTAKE
        left, right = self.number(node.left), self.number(node.right)
        result = combine((left, right))
        if isinstance(left.known, (int, float)) and isinstance(right.known, (int, float)):
            result = replace(result, known=ARITHMETIC[node.op](float(left.known), float(right.known)))
        return replace(result, bits=self.bits(node, left, right))

    def bits(self, node: Binary, left: Value, right: Value) -> int | None:
        """Return how many digits exact arithmetic on literals may take; report if they are too many."""
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

    def choice(self, condition: Expr, then: Expr, other: Expr) -> Value:
        """Return what is known of ``then if condition else other``."""
        held = self.condition(condition)
        answer = self.decide(condition, held)
        if answer is not None:
            return self.value(then if answer else other)
        return merge((self.number(then), self.number(other)), held)

    # Comparisons --------------------------------------------------------------------------------------------

    def compare(self, node: Compare) -> Value:
        """Return what is known of a comparison."""
        values = [self.value(operand) for operand in node.operands]
        pairs = zip(node.ops, node.operands, node.operands[1:], values, values[1:], strict=False)
        known: Known = True
        sound = True
        for op, left, right, a, b in pairs:
            sound &= self.comparable(op, left, right, a, b)
            if Sort.NONE in (a.sort, b.sort):  # nothing but none equals none
                both = a.sort is b.sort
                answer: Known = both is (op == "==")
            elif UNKNOWN in (a.known, b.known):
                answer = UNKNOWN
            elif op in ("==", "!="):
                answer = (a.known == b.known) is (op == "==")
            elif isinstance(a.known, (int, float)) and isinstance(b.known, (int, float)):
                answer = COMPARISONS[op](a.known, b.known)
            else:
                answer = UNKNOWN
            known = answer if answer is not True and known is not False else known
        if any(v.sort is Sort.NONE for v in values):
            return Value(STATIC, Sort.CONDITION, known=known)
        kind = join(v.kind for v in values)
        return Value(kind, Sort.CONDITION if sound else Sort.UNKNOWN, uses_of(values), known)

    def comparable(self, op: str, left: Expr, right: Expr, a: Value, b: Value) -> bool:
        """Check that two values can be compared."""
        ordered = op not in ("==", "!=")
        for expr, other, value, against in ((left, right, a, b), (right, left, b, a)):
            written = isinstance(expr, Nothing)
            if value.sort is Sort.NONE and (ordered or (value.optional is None and not written)):
                self.number(expr)
                return False
            if written and against.optional is None and against.sort is not Sort.UNKNOWN:
                self.report(
                    "E306",
                    f"`{self.text(other)}` is never none",
                    expr.span,
                    label="always different",
                    help="only a hyperparameter whose default is none can be compared with none",
                )
                return False
            if value.sort is Sort.TEXT and against.sort in (Sort.NUMBER, Sort.CONDITION):
                self.report(
                    "E306",
                    f"the string `{self.text(expr)}` is compared with {_a_number(against.sort)}",
                    expr.span,
                    label="a string",
                    help='strings are compared with strings: `mode == "l2"`',
                )
                return False
            if value.sort is Sort.TEXT and ordered:
                self.report(
                    "E306",
                    "strings have no order",
                    expr.span,
                    label=f"cannot be compared by `{op}`",
                    help="use `==` or `!=`",
                )
                return False
            if isinstance(expr, Compare):
                self.report(
                    "E305",
                    "the result of a comparison is compared again",
                    expr.span,
                    label="true or false",
                    help="join conditions with `and`, `or`, `not`; `a < b < c` without brackets means both",
                )
                return False
            if not self.is_choice(expr, other):
                return False
        return True

    def is_choice(self, literal: Expr, name: Expr) -> bool:
        """Check a string that a hyperparameter is compared with against the hyperparameter's choices."""
        if not (isinstance(literal, Text) and isinstance(name, Name) and name.name in self.scope.hypers):
            return True
        domain = self.scope.hypers[name.name].domain
        if not isinstance(domain, OneOf) or literal.value in domain.values:
            return True
        choices = [value for value in domain.values if isinstance(value, str)]
        near = nearest(literal.value, choices)
        self.report(
            "E307",
            f'`{name.text}` is never "{literal.value}"',
            literal.span,
            label=f"not {domain.text}",
            help=f'did you mean "{near}"?' if near else f"its values are {listing(choices)}",
            related=(("declared here", self.scope.places[name.name]),),
        )
        return False

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: Call) -> Value:
        """Return what is known of the result of a call."""
        name = node.function.name if isinstance(node.function, Name) else ""
        if name in self.scope.functions:
            results = self.call_function(node)
            return results[0] if len(results) == 1 else MISTAKE
        if name not in BUILTINS or name in self.scope.excused:
            for argument in node.arguments:
                self.value(argument.value)
            return MISTAKE
        builtin = BUILTINS[name]
        arguments = [a.value for a in node.arguments if a.name != "dim"]
        if name == "where":
            return self.where(node)
        values = [self.number(argument) for argument in arguments]
        if builtin.reduction and (len(arguments) == 1 or not builtin.signature.startswith("*")):
            return self.reduction(node, builtin, arguments, values)
        if name in OF_NUMBERS and values and values[0].sort is Sort.CONDITION:
            self.report(
                "E305",
                f"`{name}` of a condition",
                arguments[0].span,
                label="true or false",
                help=f"a misplaced bracket? a comparison goes outside: `{name}(x) > y`",
            )
            return MISTAKE
        result = combine(values, Sort.CONDITION if builtin.boolean else Sort.NUMBER)
        if builtin.group == TIME:
            result = replace(result, kind=join((result.kind, HOST)), uses=result.uses | Uses.TIME)
        elif name == "eps_of":
            result = replace(result, kind=HOST, uses=Uses.FACT)
        return replace(result, known=self.known_result(name, values), uses=self.result_uses(name, result))

    def known_result(self, name: str, values: list[Value]) -> Known:
        """Return the value of a function of known numbers."""
        numbers = [v.known for v in values if isinstance(v.known, (int, float))]
        if name in FUNCTIONS and values and len(numbers) == len(values):
            return FUNCTIONS[name](*map(float, numbers))
        return UNKNOWN

    def result_uses(self, name: str, result: Value) -> Uses:
        """Return what a result depends on; only some functions can take part in choosing a variant."""
        return result.uses if name in FUNCTIONS else result.uses | Uses.LOCAL

    def where(self, node: Call) -> Value:
        """Return what is known of ``where(c, a, b)``, which is ``a if c else b``."""
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        given = [a.value for a in node.arguments if a.name is None]
        sides = [*given, *(named[n] for n in ("c", "a", "b")[len(given) :] if n in named)]
        if len(sides) != 3:
            return MISTAKE
        return self.choice(*sides)

    def reduction(self, node: Call, builtin: Builtin, arguments: list[Expr], values: list[Value]) -> Value:
        """Return what is known of a reduction."""
        joined = combine(values)
        if joined.kind.level <= Level.SCALAR and joined.sort is not Sort.UNKNOWN and arguments:
            self.report(
                "E310",
                f"`{builtin.name}` has nothing to reduce: `{self.text(arguments[0])}` is one number",
                node.span,
                label="already one number",
                help=f"leave `{builtin.name}` away"
                + (": the norm of one number is its `abs`" if builtin.name in ("norm", "rms") else ""),
            )
            return MISTAKE
        dims = next((dim_values(a.value) for a in node.arguments if a.name == "dim"), None)
        kind = reduce(joined.kind, frozenset(dims) if dims is not None else None)
        if joined.sort is Sort.UNKNOWN:
            return Value(kind, Sort.UNKNOWN, joined.uses)
        return Value(kind if kind.on_device else SCALAR, uses=joined.uses | Uses.TENSOR)


def _as_number(sort: Sort) -> Sort:
    return Sort.UNKNOWN if sort is Sort.UNKNOWN else Sort.NUMBER


def _condition_sort(sort: Sort) -> Sort:
    return Sort.UNKNOWN if sort is Sort.UNKNOWN else Sort.CONDITION


def _a_number(sort: Sort) -> str:
    return "a number" if sort is Sort.NUMBER else "a condition"
