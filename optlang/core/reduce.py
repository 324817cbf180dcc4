"""Partial evaluation of expressions: decides what is static and emits the statements that remain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from optlang.core.core import Key, KnownSize, Operation, Part, SizeOf, Transposed
from optlang.core.evaluate import NotStatic, evaluate, member_name, truth
from optlang.core.limits import MAX_NODES, too_large
from optlang.core.needs import needs
from optlang.core.ordinals import SUMS, Ordinals
from optlang.core.sizes import Sizes, factors_of
from optlang.diagnostics import OptlangError
from optlang.functions.shapes import size_of
from optlang.functions.table import BUILTINS, EVALUATIONS, MATRIX_FUNCTIONS, Builtin
from optlang.identity import GivenName
from optlang.rule import Answer, HyperType, Rule, Unasked, Value, Values, remembering
from optlang.source import Span
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned, block_expressions, body_of, expressions, is_matrix_call

Scope = dict[str, ast.Expr]
LITERALS = (ast.Number, ast.Infinity, ast.Text, ast.Bool, ast.Nothing)
ATOMS = (*LITERALS, ast.Name, Key)
_NONE = Builtin("", "", "", "")


class Reducer(ABC):
    """Partially evaluates expressions; a subclass handles calls.

    Args:
        rule: The rule.
        values: Hyperparameters, keys of the param group and facts of the tensor.
        shape: The tensor's shape; by default a matrix with the sizes given in ``values``.
    """

    def __init__(self, rule: Rule, values: Values, shape: tuple[int, ...] | None) -> None:
        self.rule = rule
        self.values = dict(values)  # and the values of static locals
        if shape is None:
            shape = tuple(int(values[name] or 0) for name in ("rows", "cols") if name in values)
        self.shape = shape
        self.sizes = Sizes(shape, self.number) if needs(rule).matrices else None
        self.once = _once(rule)
        self.due_names = _due_names(rule)
        self.hypers = {h.name: h for h in rule.hypers}
        self.fixed = {"p", "g", *(s.name for s in rule.states)}
        self.answers: list[Answer] = []
        self.questions: list[ast.Expr] = []
        self.asked: list[tuple[ast.Expr, Value]] = []
        self.told: dict[str, ast.Expr] = {}
        self.dims: set[int] = set()
        self.fixed_ndim = False
        self.known: Scope = {}  # locals that hold a literal at this point
        self.out: list[ast.Stmt] = []
        self.fresh_count = 0
        self.at = Span(0, 0)  # the statement of the rule being processed
        self.budget = MAX_NODES
        self.numbers: dict[GivenName, float] = {}  # values of generated locals, for sizes and counts
        self.entries: dict[str, Any] = {}  # sizes of the histories that loops iterate over, by loop variable
        #: The current position: the calls being inlined and the loops with their iterations.
        self.trace: list[tuple[ast.Node, int | None]] = []
        self.ordinals = _ordinals(rule)

    @abstractmethod
    def call(self, node: ast.Call, scope: Scope) -> ast.Expr:
        """Reduce a call."""

    @abstractmethod
    def result(self, node: ast.Call, index: int, scope: Scope) -> ast.Expr:
        """Return one result of a builtin with several results."""

    # Statements ---------------------------------------------------------------------------------------------

    def take(self) -> tuple[ast.Stmt, ...]:
        """Return the statements emitted so far and clear them."""
        taken, self.out = tuple(self.out), []
        return taken

    def assign(self, target: ast.Name, op: str, value: ast.Expr, span: Span) -> None:
        """Emit an assignment and record a local that holds a literal."""
        if not isinstance(value, (ast.Text, ast.Nothing)):  # only static questions can read these
            self.out.append(ast.Assign(span, (target,), op, value))
            if self.sizes is not None:
                self.follow(self.sizes, target, op, value)
        self.known.pop(target.name, None)
        if op == "=" and isinstance(value, LITERALS) and target.name not in self.fixed:
            self.known[target.name] = value

    def follow(self, sizes: Sizes, target: ast.Name, op: str, value: ast.Expr) -> None:
        """Record the shape of an assigned name; check that ``p`` or a state can hold the value."""
        shape = sizes.of(value)
        if op != "=":
            shape = sizes.of(ast.Binary(value.span, op[:-1], target, value))
        starting = target.name in self.fixed and target.name not in sizes.names and target.name not in ("p", "g")
        if target.name == "p" or (target.name in self.fixed and not starting and target.name != "g"):
            sizes.stored(target.name, shape, value.span)
        else:
            sizes.names[target.name] = shape

    def fresh(self, stem: str, value: ast.Expr) -> ast.Name:
        """Bind ``value`` to a new local and return its name (a dot in it avoids clashes with user names)."""
        self.fresh_count += 1
        name = ast.Name(value.span, f"{stem}.{self.fresh_count}", stem)
        self.assign(name, "=", value, self.at)
        number = self.number(value)
        if number is not None:
            self.numbers[name.name] = number
        return name

    def atom(self, stem: str, value: ast.Expr) -> ast.Expr:
        """Return ``value`` if it is a name or literal, else bind it to a new local."""
        if isinstance(value, ATOMS):
            return value
        return self.fresh(stem, value)

    # Expressions --------------------------------------------------------------------------------------------

    def decides(self, node: ast.Expr) -> bool:
        """Return the answer to a question the checker has found static."""
        held = self.condition(node, {})
        assert isinstance(held, ast.Bool), "the checker let a condition through that is not static"
        return held.value

    def condition(self, node: ast.Expr, scope: Scope) -> ast.Expr:
        """Reduce a condition; the result is a Bool if it is static."""
        held = self.reduce(node, scope)
        return held if isinstance(held, ast.Bool) else self.ask(held)

    def ask(self, node: ast.Expr) -> ast.Expr:
        """Return the truth value of an expression as a literal if it is static, else the expression."""
        question = self.sized(node)
        try:
            answer = truth(evaluate(question, self.values))
        except NotStatic:
            return node
        if any(isinstance(part, (ast.Name, Key)) for part in expressions(node)):  # `2 == 2` is not a question
            self.answer(question, answer, numbers=True)
        return ast.Bool(node.span, answer)

    def answer(self, question: ast.Expr, answer: Answer, numbers: bool = False) -> None:
        """Record a question and its answer, which joins the key. ``numbers`` marks a question about numbers."""
        self.questions.append(question)
        self.answers.append(answer)
        if numbers and not isinstance(answer, Unasked):
            self.asked.append((question, answer))

    def number(self, node: ast.Expr) -> float | None:
        """Return the value of a reduced expression if it is a number known before the step, else None."""
        try:
            value = evaluate(self.sized(node), {**self.values, **self.numbers})
        except NotStatic:
            return None
        return float(value) if isinstance(value, (bool, int, float)) else None

    def sized(self, node: ast.Expr) -> ast.Expr:
        """Replace the sizes ``rows(x)``, ``cols(x)`` and ``size(x, i)`` in an expression by their values."""
        if self.sizes is None:
            return node
        match node:
            case SizeOf(function=name, value=value, dim=dim):
                self.sizes.of(node)  # raises on dimensions out of range
                place = () if dim is None else (int(self.number(dim) or 0),)
                size = size_of(name, self.sizes.of(value), *place)
                return KnownSize(node.span, int(size), factors_of(size))
            case Operation(arguments=arguments):
                values = tuple(map(self.sized, arguments))
                same = all(value is argument for value, argument in zip(values, arguments, strict=True))
                return node if same else replace(node, arguments=values)
            case ast.Unary(op=op, operand=operand):
                inner = self.sized(operand)
                return node if inner is operand else ast.Unary(node.span, op, inner)
            case ast.Binary(op=op, left=left, right=right):
                ours, theirs = self.sized(left), self.sized(right)
                return node if ours is left and theirs is right else ast.Binary(node.span, op, ours, theirs)
            case ast.Compare(operands=operands):
                return replace(node, operands=tuple(map(self.sized, operands)))
            case ast.Ternary(condition=c, then=then, other=other):
                return ast.Ternary(node.span, self.sized(c), self.sized(then), self.sized(other))
            case _:
                return node

    def reduce(self, node: ast.Expr, scope: Scope) -> ast.Expr:
        """Reduce an expression; ``scope`` maps parameters and locals of a def to their values."""
        self.budget -= 1
        if self.budget < 0:
            raise OptlangError([too_large(self.rule)])
        match node:
            case ast.Name(name=name):
                return self.name(node, scope[name]) if name in scope else self.name(node, node)
            case ast.Member() if (key := member_name(node)) is not None:
                return self.literal(Key(node.span, key), self.values.get(key))
            case ast.Member(name="T", value=value):
                return Transposed(node.span, self.atom("matrix", self.reduce(value, scope)))
            case ast.Member(value=ast.Call() as call, name=name):
                return self.result(call, row_of(call).results.index(name), scope)
            case ast.Index(value=ast.Call() as call, items=(ast.Number(value=i),)) if row_of(call).results:
                return self.result(call, int(i), scope)
            case ast.Index(value=value, items=items):
                held = self.atom("whole", self.reduce(value, scope))
                return Part(node.span, held, tuple(self.subscript(item, scope) for item in items))
            case ast.Unary(op="not", operand=operand):
                held = self.condition(operand, scope)
                if isinstance(held, ast.Bool):
                    return ast.Bool(node.span, not held.value)
                return replace(node, operand=held)
            case ast.Unary(op=op, operand=operand):
                inner = self.reduce(operand, scope)
                return inner if op == "+" else replace(node, operand=inner)
            case ast.Binary(op="and" | "or"):
                return self.junction(node, scope)
            case ast.Binary(op="??", left=left, right=right):
                first = self.reduce(left, scope)
                return self.reduce(right, scope) if isinstance(first, ast.Nothing) else first
            case ast.Binary(op=op, left=left, right=right):
                ours, theirs = self.reduce(left, scope), self.reduce(right, scope)
                return node if ours is left and theirs is right else ast.Binary(node.span, op, ours, theirs)
            case ast.Compare():
                return self.compare(node, scope)
            case ast.Ternary(condition=c, then=then, other=other):
                return self.choose(node.span, c, then, other, scope)
            case ast.Call():
                return self.call(node, scope)
            case _:
                return node

    def subscript(self, item: ast.Expr | ast.Slice, scope: Scope) -> ast.Expr | ast.Slice:
        """Reduce one item of an index."""
        if not isinstance(item, ast.Slice):
            return self.reduce(item, scope)
        ends = (None if end is None else self.reduce(end, scope) for end in (item.start, item.stop))
        return ast.Slice(item.span, *ends)

    def name(self, at: ast.Name, node: ast.Expr) -> ast.Expr:
        """Return a literal for an option or a local that holds one, else the name."""
        if not isinstance(node, ast.Name):
            return node
        if node.name in self.known:
            return self.known[node.name]
        hyper = self.hypers.get(node.name)
        if hyper is None or hyper.type is HyperType.NUMBER:
            return node
        value = self.values[node.name]
        if hyper.type is HyperType.OPTIONAL:
            # This is a separate question from its truth value, which may be asked too.
            self.answer(ast.Compare(node.span, ("==",), (node, ast.Nothing(node.span))), value is None)
            return ast.Nothing(at.span) if value is None else node
        if value is None:
            self.answer(node, None)
            return ast.Nothing(at.span)
        return self.literal(node, value)

    def literal(self, node: ast.Name | Key, value: Value) -> ast.Expr:
        """Return an option's value as a literal. A number stays a name, because its value may change."""
        if isinstance(value, bool):
            self.answer(node, value)
            return ast.Bool(node.span, value)
        if isinstance(value, str):
            self.answer(node, value)
            return ast.Text(node.span, value)
        if isinstance(node, Key):  # another group may have a flag under this key
            self.answer(node, Unasked.NUMBER)
        return node

    def junction(self, node: ast.Binary, scope: Scope) -> ast.Expr:
        """Reduce ``and`` / ``or``."""
        decisive = node.op == "or"
        left = self.condition(node.left, scope)
        if isinstance(left, ast.Bool):
            return left if left.value is decisive else self.condition(node.right, scope)
        right = self.condition(node.right, scope)
        if isinstance(right, ast.Bool):
            return right if right.value is decisive else left
        return replace(node, left=left, right=right)

    def compare(self, node: ast.Compare, scope: Scope) -> ast.Expr:
        """Reduce a comparison. Chains are split; only none equals none."""
        operands = [self.reduce(operand, scope) for operand in node.operands]
        if len(node.ops) > 1:
            operands = [self.atom("operand", operand) for operand in operands]
            parts: list[ast.Expr] = [
                ast.Compare(node.span, (op,), (a, b))
                for op, a, b in zip(node.ops, operands, operands[1:], strict=False)
            ]
            chain = parts[0]
            for part in parts[1:]:
                chain = ast.Binary(node.span, "and", chain, part)
            return self.condition(chain, {})
        left = replace(node, operands=tuple(operands))
        if any(isinstance(o, ast.Nothing) for o in operands):
            both = all(isinstance(o, ast.Nothing) for o in operands)
            return ast.Bool(node.span, both is (node.ops[0] == "=="))
        return self.ask(left)

    def choose(self, span: Span, c: ast.Expr, then: ast.Expr, other: ast.Expr, scope: Scope) -> ast.Expr:
        """Return the chosen side of a static choice, or a choice between the reduced sides."""
        held = self.condition(c, scope)
        if isinstance(held, ast.Bool):
            return self.reduce(then if held.value else other, scope)
        if self.runs_only_when_due(then) or self.runs_only_when_due(other):
            (chosen,) = self.either(span, held, lambda: [self.reduce(then, scope)], lambda: [self.reduce(other, scope)])
            return chosen
        return ast.Ternary(span, held, self.reduce(then, scope), self.reduce(other, scope))

    def runs_only_when_due(self, node: ast.Expr) -> bool:
        """Return whether an expression must be computed only when needed: it has matrices or sums over the model."""
        return bool(self.due_names) and any(is_matrix_call(inner, self.due_names) for inner in expressions(node))

    def either(
        self,
        span: Span,
        held: ast.Expr,
        ours: Callable[[], Sequence[ast.Expr]],
        theirs: Callable[[], Sequence[ast.Expr]],
    ) -> list[ast.Expr]:
        """Emit an ``if`` that computes one of two alternatives and return the names of its results."""
        before, known = self.take(), dict(self.known)
        sides = []
        for work in (ours, theirs):
            self.known = dict(known)
            values = work()
            sides.append((list(self.take()), values))
        self.known = known
        (block, values), (other, others) = sides
        chosen: list[ast.Expr] = []
        for a, b in zip(values, others, strict=True):
            if a is b or isinstance(a, (ast.Text, ast.Nothing)) or isinstance(b, (ast.Text, ast.Nothing)):
                chosen.append(a if a is b or _same(a, b) else ast.Ternary(span, held, a, b))
                continue
            self.fresh_count += 1
            name = ast.Name(span, f"chosen.{self.fresh_count}", "chosen")
            block.append(ast.Assign(span, (name,), "=", a))
            other.append(ast.Assign(span, (name,), "=", b))
            if self.sizes is not None:
                self.sizes.names[name.name] = self.sizes.of(a) or self.sizes.of(b)
            chosen.append(name)
        self.out = [*before, ast.If(span, ((held, tuple(block)),), tuple(other))]
        return chosen


@remembering
def _once(rule: Rule) -> frozenset[str]:
    """Return the locals that are assigned only once, so that every read yields the same value."""
    times = Counter(name.name for name in assigned(rule.body))
    return frozenset(n for n, count in times.items() if count == 1) - {"p", "g", *(s.name for s in rule.states)}


_ordinals = remembering(Ordinals)


@remembering
def _due_names(rule: Rule) -> frozenset[str]:
    """Return the functions that use matrices or sums over the model; empty if the rule has neither."""
    matrices = needs(rule).matrices
    sums = {*SUMS, *EVALUATIONS}
    names = {*sums, *(MATRIX_FUNCTIONS if matrices else ())}
    blocks = (rule.body, *(body_of(f) for f in rule.functions.values()))
    nodes = (e.function for b in blocks for e in block_expressions(b) if isinstance(e, ast.Call))
    if not matrices and not {n.name for n in nodes if isinstance(n, ast.Name)} & sums:
        return frozenset()
    while True:
        found = {
            name
            for name, function in rule.functions.items()
            if any(is_matrix_call(e, frozenset(names)) for e in block_expressions(body_of(function)))
        }
        if found <= names:
            return frozenset(names)
        names |= found


def _same(a: ast.Expr, b: ast.Expr) -> bool:
    """Return whether two options are equal, ignoring their positions in the source."""
    return type(a) is type(b) and replace(a, span=b.span) == b


def row_of(node: ast.Call) -> Builtin:
    """Return the row of the builtin that is called."""
    assert isinstance(node.function, ast.Name)
    return BUILTINS.get(node.function.name, _NONE)
