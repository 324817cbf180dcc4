"""What is left of expressions once what is static in them has been decided, and the statements that this takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from optlang.core.core import (
    Key,
    KnownSize,
    Operation,
    Part,
    SizeOf,
    Transposed,
)
from optlang.core.evaluate import NotStatic, evaluate, member_name, truth
from optlang.core.limits import MAX_NODES, too_large
from optlang.core.needs import needs
from optlang.core.ordinals import SUMS, Ordinals
from optlang.core.sizes import Sizes, factors_of
from optlang.diagnostics import OptlangError
from optlang.functions.shapes import size_of
from optlang.functions.table import (
    BUILTINS,
    EVALUATIONS,
    MATRIX_FUNCTIONS,
    Builtin,
)
from optlang.identity import GivenName
from optlang.rule import Answer, HyperType, Rule, Unasked, Value, Values, remembering
from optlang.source import Span
from optlang.syntax import tree as ast
from optlang.syntax.walk import (
    assigned,
    block_expressions,
    body_of,
    expressions,
    is_matrix_call,
)

Scope = dict[str, ast.Expr]
LITERALS = (ast.Number, ast.Infinity, ast.Text, ast.Bool, ast.Nothing)
ATOMS = (*LITERALS, ast.Name, Key)
_NONE = Builtin("", "", "", "")


class Reducer(ABC):
    """Reduces expressions; calls are reduced by its subclass.

    Args:
        rule: The rule.
        values: Hyperparameters, keys of the parameter group and facts of the tensor.
        shape: The tensor's shape; by default that of a matrix with the facts among ``values``.
    """

    def __init__(self, rule: Rule, values: Values, shape: tuple[int, ...] | None) -> None:
        self.rule = rule
        self.values = dict(values)  # and those of static locals
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
        self.known: Scope = {}  # locals that are literals at this point
        self.out: list[ast.Stmt] = []
        self.fresh_count = 0
        self.at = Span(0, 0)  # the statement of the rule that is being worked on
        self.budget = MAX_NODES
        self.numbers: dict[GivenName, float] = {}  # values of locals of our own, for sizes and counts
        self.entries: dict[str, Any] = {}  # sizes of the histories that loops go through, by the loops' names
        #: Where we are: the calls that are being written out, and the loops with their turns.
        self.trace: list[tuple[ast.Node, int | None]] = []
        self.ordinals = _ordinals(rule)

    @abstractmethod
    def call(self, node: ast.Call, scope: Scope) -> ast.Expr:
        """Return what is left of a call."""

    @abstractmethod
    def result(self, node: ast.Call, index: int, scope: Scope) -> ast.Expr:
        """Return one result of a builtin that has several."""

    # Statements ---------------------------------------------------------------------------------------------

    def take(self) -> tuple[ast.Stmt, ...]:
        """Return the statements gathered so far and start afresh."""
        taken, self.out = tuple(self.out), []
        return taken

    def assign(self, target: ast.Name, op: str, value: ast.Expr, span: Span) -> None:
        """Add an assignment; remember a local that is a literal."""
        if not isinstance(value, (ast.Text, ast.Nothing)):  # nothing but static questions can read these
            self.out.append(ast.Assign(span, (target,), op, value))
            if self.sizes is not None:
                self.follow(self.sizes, target, op, value)
        self.known.pop(target.name, None)
        if op == "=" and isinstance(value, LITERALS) and target.name not in self.fixed:
            self.known[target.name] = value

    def follow(self, sizes: Sizes, target: ast.Name, op: str, value: ast.Expr) -> None:
        """Note the shape of what a name is given, and check that it can take it."""
        shape = sizes.of(value)
        if op != "=":
            shape = sizes.of(ast.Binary(value.span, op[:-1], target, value))
        starting = target.name in self.fixed and target.name not in sizes.names and target.name not in ("p", "g")
        if target.name == "p" or (target.name in self.fixed and not starting and target.name != "g"):
            sizes.stored(target.name, shape, value.span)
        else:
            sizes.names[target.name] = shape

    def fresh(self, stem: str, value: ast.Expr) -> ast.Name:
        """Bind ``value`` to a new local and return its name (a dot keeps it apart from the user's names)."""
        self.fresh_count += 1
        name = ast.Name(value.span, f"{stem}.{self.fresh_count}", stem)
        self.assign(name, "=", value, self.at)
        number = self.number(value)
        if number is not None:
            self.numbers[name.name] = number
        return name

    def atom(self, stem: str, value: ast.Expr) -> ast.Expr:
        """Return ``value`` if it is a name or literal, else a new local that holds it."""
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
        """Return what is left of a condition: a Bool if it is static."""
        held = self.reduce(node, scope)
        return held if isinstance(held, ast.Bool) else self.ask(held)

    def ask(self, node: ast.Expr) -> ast.Expr:
        """Return the truth of an expression as a literal if it is static, else the expression."""
        question = self.sized(node)
        try:
            answer = truth(evaluate(question, self.values))
        except NotStatic:
            return node
        if any(isinstance(part, (ast.Name, Key)) for part in expressions(node)):  # `2 == 2` is no question
            self.answer(question, answer, numbers=True)
        return ast.Bool(node.span, answer)

    def answer(self, question: ast.Expr, answer: Answer, numbers: bool = False) -> None:
        """Note an answer, which belongs to the key, and what was asked; ``numbers`` says that it was about numbers."""
        self.questions.append(question)
        self.answers.append(answer)
        if numbers and not isinstance(answer, Unasked):
            self.asked.append((question, answer))

    def number(self, node: ast.Expr) -> float | None:
        """Return the value of an expression that is left, if it is a number known before the step."""
        try:
            value = evaluate(self.sized(node), {**self.values, **self.numbers})
        except NotStatic:
            return None
        return float(value) if isinstance(value, (bool, int, float)) else None

    def sized(self, node: ast.Expr) -> ast.Expr:
        """Return an expression with what is known in place of the sizes ``rows(x)``, ``cols(x)`` and ``size(x, i)``."""
        if self.sizes is None:
            return node
        match node:
            case SizeOf(function=name, value=value, dim=dim):
                self.sizes.of(node)  # which refuses dimensions that are not there
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
        """Return what is left of an expression; ``scope`` gives the meaning of parameters and locals of a def."""
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
        """Return what is left of one item of an index."""
        if not isinstance(item, ast.Slice):
            return self.reduce(item, scope)
        ends = (None if end is None else self.reduce(end, scope) for end in (item.start, item.stop))
        return ast.Slice(item.span, *ends)

    def name(self, at: ast.Name, node: ast.Expr) -> ast.Expr:
        """Return a literal for an option or a local that is one, else the name."""
        if not isinstance(node, ast.Name):
            return node
        if node.name in self.known:
            return self.known[node.name]
        hyper = self.hypers.get(node.name)
        if hyper is None or hyper.type is HyperType.NUMBER:
            return node
        value = self.values[node.name]
        if hyper.type is HyperType.OPTIONAL:
            # Another question than whether it is true, which may be asked as well.
            self.answer(ast.Compare(node.span, ("==",), (node, ast.Nothing(node.span))), value is None)
            return ast.Nothing(at.span) if value is None else node
        if value is None:
            self.answer(node, None)
            return ast.Nothing(at.span)
        return self.literal(node, value)

    def literal(self, node: ast.Name | Key, value: Value) -> ast.Expr:
        """Return an option's value as a literal; a number stays a name, so that it may change."""
        if isinstance(value, bool):
            self.answer(node, value)
            return ast.Bool(node.span, value)
        if isinstance(value, str):
            self.answer(node, value)
            return ast.Text(node.span, value)
        if isinstance(node, Key):  # another group may have a truth value under this key
            self.answer(node, Unasked.NUMBER)
        return node

    def junction(self, node: ast.Binary, scope: Scope) -> ast.Expr:
        """Return what is left of ``and`` / ``or``."""
        decisive = node.op == "or"
        left = self.condition(node.left, scope)
        if isinstance(left, ast.Bool):
            return left if left.value is decisive else self.condition(node.right, scope)
        right = self.condition(node.right, scope)
        if isinstance(right, ast.Bool):
            return right if right.value is decisive else left
        return replace(node, left=left, right=right)

    def compare(self, node: ast.Compare, scope: Scope) -> ast.Expr:
        """Return what is left of a comparison; chains are split, nothing but none equals none."""
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
        """Return the chosen side of a static choice, or a choice between what is left of both sides."""
        held = self.condition(c, scope)
        if isinstance(held, ast.Bool):
            return self.reduce(then if held.value else other, scope)
        if self.is_apart(then) or self.is_apart(other):
            (chosen,) = self.either(span, held, lambda: [self.reduce(then, scope)], lambda: [self.reduce(other, scope)])
            return chosen
        return ast.Ternary(span, held, self.reduce(then, scope), self.reduce(other, scope))

    def is_apart(self, node: ast.Expr) -> bool:
        """Whether an expression is computed only where it is due: with matrices, or sums over the model, in it."""
        return bool(self.due_names) and any(is_matrix_call(inner, self.due_names) for inner in expressions(node))

    def either(
        self,
        span: Span,
        held: ast.Expr,
        ours: Callable[[], Sequence[ast.Expr]],
        theirs: Callable[[], Sequence[ast.Expr]],
    ) -> list[ast.Expr]:
        """Return the values of one of two pieces of work, each done on its side of an ``if``: only one is computed."""
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
    """Return the names of a rule's own that mean the same wherever they are read."""
    times = Counter(name.name for name in assigned(rule.body))
    return frozenset(n for n, count in times.items() if count == 1) - {"p", "g", *(s.name for s in rule.states)}


_ordinals = remembering(Ordinals)


@remembering
def _due_names(rule: Rule) -> frozenset[str]:
    """Return the names of the functions with matrices or sums over the model in them; empty for a rule without."""
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
    """Whether two options are the same, wherever they are written."""
    return type(a) is type(b) and replace(a, span=b.span) == b


def row_of(node: ast.Call) -> Builtin:
    """Return the row of the builtin that is called."""
    assert isinstance(node.function, ast.Name)
    return BUILTINS.get(node.function.name, _NONE)
