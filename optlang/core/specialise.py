"""A checked rule, with its static questions answered -> straight statements.

Given the values of the hyperparameters and the facts of a tensor, what is static is decided: branches not taken
disappear, functions (the user's, and derived builtins) are inlined, loops are written out, options become literals.
What is left are assignments, and ``if`` and ``every`` on values only known in a step. In a rule with matrices, the
shapes of all values are followed, so that one that does not fit is found before anything is computed.

The answers given on the way are the *key* of the variant: two sets of values with equal keys leave the same
statements, so one compiled kernel serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeVar

from optlang.core import definitions
from optlang.core.core import (
    VERIFYING,
    Core,
    Drawn,
    Evaluated,
    Key,
    KnownSize,
    ModelSum,
    Operation,
    Part,
    Result,
    SizeOf,
    Transposed,
    verify,
)
from optlang.core.evaluate import NotStatic, evaluate, member_name, truth
from optlang.core.known import known_locals
from optlang.core.needs import needs
from optlang.core.ordinals import SUMS, Ordinals
from optlang.core.sizes import Sizes, Unfit
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.functions.shapes import size_of
from optlang.functions.table import (
    ASKING,
    BUILTINS,
    EVALUATIONS,
    HALT,
    MAKERS,
    MATRIX_FUNCTIONS,
    RANDOMS,
    SEARCHES,
    SIZES,
    Builtin,
)
from optlang.identity import GivenName, NamedPoint, Site
from optlang.kinds import Level
from optlang.rule import Answer, HyperType, Rule, State, Unasked, Value, Values, remembering
from optlang.source import Span
from optlang.syntax import tree as ast
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import (
    assigned,
    block_expressions,
    body_of,
    expressions,
    is_matrix_call,
    statements,
)

#: How many nodes the statements of one variant may have: far above any optimizer, far below what takes seconds.
MAX_NODES = 20_000

#: How often a ``repeat`` may run: each time is written out.
MAX_REPEATS = 100

Scope = dict[str, ast.Expr]
Made = TypeVar("Made")
LITERALS = (ast.Number, ast.Infinity, ast.Text, ast.Bool, ast.Nothing)
ATOMS = (*LITERALS, ast.Name, Key)
_NONE = Builtin("", "", "", "")


class SymbolicSize(int):
    """The size of a dimension, with the formula that it is, a product: products of sizes are sizes.

    Args:
        value: The size of an example.
        factors: Its formula.
    """

    factors: tuple[GivenName | int, ...]

    def __new__(cls, value: int, *factors: GivenName | int) -> SymbolicSize:
        """Return a size with a formula."""
        size = super().__new__(cls, value)
        size.factors = factors
        return size

    def __mul__(self, other: int) -> SymbolicSize:
        return SymbolicSize(int(self) * int(other), *self.factors, *(_factors(other) or (other,)))

    __rmul__ = __mul__


def _factors(size: int) -> tuple[GivenName | int, ...] | None:
    """Return the formula of a size; None if it is just a number."""
    return size.factors if isinstance(size, SymbolicSize) else None


def specialise(rule: Rule, values: Values, shape: tuple[int, ...] | None = None, event: str | None = None) -> Core:
    """Decide what is static in a rule.

    Args:
        rule: The checked rule.
        values: Hyperparameters, keys of the param group and facts of the tensor.
        shape: The tensor's shape; by default that of a matrix with the facts among ``values``.
        event: ``eval`` or ``train`` for the statements of ``on eval`` and ``on train`` instead of those of a step.

    Returns:
        The statements that are left and the key of the variant.

    Raises:
        Unfit: If the tensor's shape does not suit the rule.
    """
    work = _Specialiser(rule, values, shape)
    work.before_states()
    known = tuple(work.out)
    states = tuple(s for s in rule.states if s.when is None or work.decides(s.when))
    start = work.initial(states)
    body = work.statements(rule.body if event is None else rule.events[event])
    ndim = len(work.shape)
    core = Core(
        tuple(work.answers),
        states,
        start,
        (*known, *body),
        frozenset(work.dims),
        work.sizes is not None,
        ndim,
        event,
        tuple(work.questions),
        tuple(work.asked),
        work.told,
        work.sizes is not None or work.fixed_ndim,
    )
    if VERIFYING:
        verify(core, rule)
    return core


class _Specialiser:
    """One walk over a rule; see the module docstring."""

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

    # Statements ---------------------------------------------------------------------------------------------

    def before_states(self) -> None:
        """Work out the locals that are known before the step, which states and functions may read wherever they are."""
        rule = self.rule
        names = known_locals(rule)
        for statement in rule.body:
            if isinstance(statement, ast.Assign) and statement.targets[0].name in names:
                target = statement.targets[0]
                self.at = statement.span
                value = self.reduce(statement.value, {})
                self.assign(target, "=", value, statement.span)
                known = self.number(value)
                if known is not None:
                    self.values[target.name] = known
                    self.told[target.name] = self.sized(value)

    def initial(self, states: Sequence[State]) -> tuple[ast.Stmt, ...]:
        """Return the statements that give the initial values."""
        for state in states:
            if state.initial is not None:
                self.at = state.span
                value = self.reduce(state.initial, {})
                self.assign(ast.Name(state.span, state.name, state.name), "=", value, state.span)
            if self.sizes is not None and not self.sizes.names.get(state.name):  # a number is spread
                whole = state.scope is StateScope.TENSOR and state.kind.level > Level.SCALAR
                self.sizes.names[state.name] = self.shape if whole else ()
        return self.take()

    def statements(self, body: Sequence[ast.Stmt]) -> tuple[ast.Stmt, ...]:
        """Return what is left of statements of the rule."""
        self.block(body)
        return self.take()

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

    def statement(self, node: ast.Stmt) -> None:
        """Add what is left of one statement."""
        self.at = node.span
        match node:
            case ast.Assign(targets=(target,), op=op, value=value, at=None):
                self.assign(target, op, self.reduce(value, {}), node.span)
            case ast.Assign(at=ast.Name()):
                self.entry(node)
            case ast.Assign(targets=targets, value=ast.Call() as call):
                results = self.several(call, {})
                # Results are bound before any target is written: `x, y = swap(x, y)`.
                held = [self.fresh(t.name, r) for t, r in zip(targets, results, strict=True)]
                for target, value in zip(targets, held, strict=True):
                    self.assign(target, "=", value, node.span)
            case ast.If():
                self.branches(node)
            case ast.Repeat(count=count, body=body):
                for turn in range(self.times(count, {})):
                    self.within(node, lambda: self.block(body), turn)
            case ast.For(over=ast.Name(name=over)) if over not in self.rule.keys:
                self.history(node)
            case ast.For(names=names, body=body):
                for turn, row in enumerate(self.turns(node)):
                    self.at = node.span
                    values = [self.reduce(value, {}) for value in row]
                    for name, value in zip(names, values, strict=True):
                        self.assign(name, "=", value, node.span)
                    self.within(node, lambda: self.block(body), turn)
            case ast.Every(period=period, start=start, body=body):
                length = self.reduce(period, {})
                begin = None if start is None else self.reduce(start, {})
                for target in assigned((node,)):
                    self.known.pop(target.name, None)
                before, known = self.take(), dict(self.known)
                block = self.statements(body)
                self.known = known
                self.out = [*before, replace(node, period=length, start=begin, body=block)]
            case _:
                raise AssertionError(f"the checker let {type(node).__name__} through")

    def history(self, node: ast.For) -> None:
        """Add what is left of a ``for`` over a history, which stays a loop."""
        assert self.sizes is not None
        for target in assigned((node,)):
            self.known.pop(target.name, None)
        self.entries[node.name.name] = self.sizes.of(node.over)[0]
        before, known = self.take(), dict(self.known)
        block = self.statements(node.body)
        self.known = known
        self.out = [*before, replace(node, body=block)]

    def entry(self, node: ast.Assign) -> None:
        """Add ``a[i] = x``: one value for each entry of a history."""
        assert self.sizes is not None and node.at is not None
        value = self.atom("entry", self.reduce(node.value, {}))
        (target,) = node.targets
        self.sizes.names[target.name] = (self.entries[node.at.name], *self.sizes.of(value))
        self.out.append(replace(node, value=value))

    def block(self, body: Sequence[ast.Stmt]) -> None:
        """Add what is left of some statements."""
        for statement in body:
            self.statement(statement)

    def within(self, node: ast.Node, work: Callable[[], Made], turn: int | None = None) -> Made:
        """Return what ``work`` does, done inside of a call, or in a turn of a loop."""
        self.trace.append((node, turn))
        try:
            return work()
        finally:
            self.trace.pop()

    def times(self, count: ast.Expr, scope: Scope) -> int:
        """Return how often a ``repeat`` runs; the number belongs to the variant."""
        node = self.reduce(count, scope)
        number = self.number(node)
        assert number is not None, "the checker let a count through that is not static"
        if number != number or number < 0 or number != int(min(number, MAX_REPEATS + 1)) or number > MAX_REPEATS:
            message = f"`repeat` runs a whole number of times from 0 to {MAX_REPEATS}, not {number:g} times"
            raise Unfit(count.span, message, "change the hyperparameter that it is computed from")
        if not isinstance(node, LITERALS):
            self.answer(self.sized(node), number, numbers=True)
        return int(number)

    def turns(self, node: ast.For) -> Sequence[tuple[ast.Expr, ...]]:
        """Return what the names of a loop are in each turn: rows as written, or the hyperparameters of a tuple."""
        if not isinstance(node.over, ast.Name):
            return node.rows
        parts = [(replace(node.over, name=h.name, text=h.name),) for h in self.rule.keys[node.over.name]]
        return parts[:: -1 if node.backwards else 1]

    def branches(self, node: ast.If) -> None:
        """Add the taken branch of an ``if`` that is static, or an ``if`` with what is left of its branches."""
        left: list[tuple[ast.Expr, tuple[ast.Stmt, ...]]] = []
        other = node.other
        for condition, body in node.branches:
            held = self.condition(condition, {})
            if isinstance(held, ast.Bool):
                if not held.value:
                    continue
                other = body
                break
            left.append((held, body))
        if not left:
            for statement in other or ():
                self.statement(statement)
            return
        for target in assigned((node,)):  # not a literal on every path any more
            self.known.pop(target.name, None)
        before = self.take()
        known = dict(self.known)
        blocks = []
        for condition, body in left:
            self.known = dict(known)
            blocks.append((condition, self.statements(body)))
        self.known = dict(known)
        rest = self.statements(other) if other else None
        self.known = known
        self.out = [*before, ast.If(node.span, tuple(blocks), rest)]

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
                return KnownSize(node.span, int(size), _factors(size))
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
                return self.result(call, _row(call).results.index(name), scope)
            case ast.Index(value=ast.Call() as call, items=(ast.Number(value=i),)) if _row(call).results:
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

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: ast.Call, scope: Scope) -> ast.Expr:
        """Return what is left of a call: a primitive with its arguments in order, or an inlined body."""
        assert isinstance(node.function, ast.Name)
        name = node.function.name
        if name in self.rule.functions:
            (result,) = self.call_user(node, scope)
            return result
        if name in SIZES:
            argument, *dims = (self.reduce(a.value, scope) for a in node.arguments)
            return SizeOf(node.span, name, self.atom("sized", argument), *dims)
        builtin = BUILTINS[name]
        if name == "where":
            c, a, b = self.arguments(builtin, node, scope, lambda argument: argument)[:3]
            return self.choose(node.span, c, a, b, scope)
        if builtin.results:
            assert builtin.bare is not None, "the checker let a function with several results through"
            return self.result(node, builtin.bare, scope)
        if name in RANDOMS:
            return self.drawn(name, node, scope)
        if name == "total":
            (value,) = (self.reduce(a.value, scope) for a in node.arguments)
            return ModelSum(node.span, self.site(name, node), value)
        if name == HALT:
            arguments = self.arguments(builtin, node, scope, lambda argument: self.reduce(argument, scope))
            return Operation(node.span, name, tuple(arguments))
        if name in ASKING:
            return self.evaluated(name, node, scope)
        if builtin.block:
            (result,) = self.call_block(builtin, node, scope)
            return result
        body = definitions.definition(name)
        if body is None:
            return self.primitive(node, builtin, scope)
        inner = self.bound(builtin, node, scope)
        dim = next((a.value for a in node.arguments if a.name == "dim"), None)
        if dim is not None:
            inner["dim"] = scope.get("dim", dim) if isinstance(dim, ast.Name) else dim
        return self.inside(node, lambda: self.reduce(body, inner))

    def evaluated(self, name: str, node: ast.Call, scope: Scope) -> ast.Expr:
        """Return what the closure is called for."""
        if name in SEARCHES:
            arguments = self.arguments(BUILTINS[name], node, scope, lambda argument: self.reduce(argument, scope))
        else:
            arguments = [self.reduce(a.value, scope) for a in node.arguments]
        site: Site | NamedPoint = self.site(name, node)
        point = node.arguments[0].value
        if name not in SEARCHES and isinstance(point, ast.Name) and not self.trace and point.name in self.once:
            site = NamedPoint(point.name)  # one point, whatever is asked for there
        return Evaluated(node.span, name, site, tuple(arguments))

    def drawn(self, name: str, node: ast.Call, scope: Scope) -> ast.Expr:
        """Return random numbers: two functions are primitive, the others made of them."""
        arguments = [self.reduce(a.value, scope) for a in node.arguments]
        sizes = () if name == "bernoulli" else tuple(arguments)
        numbers = Drawn(node.span, "randn" if name == "randn" else "rand", self.site(name, node), sizes)
        if name in ("randn", "rand"):
            return numbers
        drawn = self.fresh("drawn", numbers)
        if name == "bernoulli":
            return ast.Compare(node.span, ("<",), (drawn, arguments[0]))
        half = ast.Compare(node.span, ("<",), (drawn, ast.Number(node.span, "0.5", Fraction(1, 2))))
        one = ast.Number(node.span, "1", Fraction(1))
        return ast.Ternary(node.span, half, ast.Unary(node.span, "-", one), one)

    def site(self, name: str, node: ast.Call) -> Site:
        """Return what tells a call apart: which of the rule's it is, and in which calls and turns around it.

        Calls are numbered in the rule as it is written, so that variants that leave out others mean the same one by it,
        and neither comments nor line breaks matter.
        """
        numbered = self.ordinals.around(name)
        places = [(numbered.get(id(at)), turn) for at, turn in (*self.trace, (node, None))]
        return Site(tuple(part for place in places for part in place if part is not None))

    def result(self, node: ast.Call, index: int, scope: Scope) -> ast.Expr:
        """Return one result of a builtin that has several."""
        return self._results(node, scope)[index]

    def several(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Return the results of a call that gives several."""
        assert isinstance(node.function, ast.Name)
        if node.function.name in self.rule.functions:
            return self.call_user(node, scope)
        return self._results(node, scope)

    def _results(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Return the results of a builtin that has several."""
        row = _row(node)
        operation = self.primitive(node, row, scope)
        assert isinstance(operation, Operation)
        return tuple(Result(node.span, operation, i) for i in range(len(row.results)))

    def call_block(self, builtin: Builtin, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Inline a derived function that is defined by a block."""
        inner = self.bound(builtin, node, scope)
        body = definitions.body(builtin.name)
        assert body is not None
        results = self.inside(node, lambda: self.run(body, inner))
        assert results is not None
        return results

    def inside(self, node: ast.Call, work: Callable[[], Made]) -> Made:
        """Return what ``work`` does inside of a builtin; shapes that do not fit there are the call's mistake."""
        try:
            return self.within(node, work)
        except Unfit as unfit:
            assert isinstance(node.function, ast.Name)
            raise Unfit(node.span, f"in `{node.function.name}`: {unfit.message}", unfit.help) from None

    def primitive(self, node: ast.Call, builtin: Builtin, scope: Scope) -> ast.Expr:
        """Return a primitive with what is left of its arguments: an operation, but for a sum over no dimensions."""
        kept: list[ast.Expr] = []
        dims: tuple[int, ...] | None = None
        for argument in node.arguments:
            if argument.name == "dim":
                dim = scope.get("dim") if isinstance(argument.value, ast.Name) else argument.value
                if isinstance(dim, ast.Slice):
                    dims = self.counted(dim, kept[0])
                    if not dims:  # nothing to add up
                        return _number(kept[0])
                elif dim is not None and not isinstance(dim, ast.Nothing):
                    dims = dims_of(dim)
                if dims is not None:
                    if not {*dims} <= {0, -1, -2} and dim is not None:
                        self.fix_ndim(dim)
                    self.dims.update(dims)
            else:
                value = self.reduce(argument.value, scope)
                # A function of whole matrices is applied to values that have names.
                kept.append(self.atom("matrix", value) if builtin.matrix and builtin.name not in MAKERS else value)
        for parameter, default in builtin.parameters[len(kept) :] if builtin.matrix else ():
            if default is not None:  # `flip(x)`
                filled = definitions.default(builtin, parameter)
                assert filled is not None
                kept.append(filled)
        return Operation(node.span, builtin.name, tuple(kept), dims)

    def counted(self, dims: ast.Slice, value: ast.Expr) -> tuple[int, ...]:
        """Return the dimensions of a value that ``dim=1:`` stands for."""
        self.fix_ndim(dims)
        rank = len(self.shape) if self.sizes is None else len(self.sizes.of(value))
        ends = (None if end is None else int(self.number(end) or 0) for end in (dims.start, dims.stop))
        return tuple(range(rank)[slice(*ends)])

    def fix_ndim(self, at: ast.Expr) -> None:
        """Make the variant one for tensors with just as many dimensions as this one has."""
        if not self.fixed_ndim:
            self.fixed_ndim = True
            self.answer(ast.Name(at.span, "ndim", "ndim"), len(self.shape), numbers=True)

    def arguments(
        self, builtin: Builtin, node: ast.Call, scope: Scope, value: Callable[[ast.Expr], ast.Expr]
    ) -> list[ast.Expr]:
        """Return the arguments of a builtin in the order of its parameters, defaults filled in."""
        given = [a.value for a in node.arguments if a.name is None]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        values = []
        for i, (parameter, _) in enumerate(builtin.parameters):
            argument = given[i] if i < len(given) else named.get(parameter)
            if argument is None:
                argument = definitions.default(builtin, parameter)
                assert argument is not None, "the checker let a missing argument through"
            values.append(value(argument))
        return values

    def bound(self, builtin: Builtin, node: ast.Call, scope: Scope) -> Scope:
        """Return what the parameters of a derived function stand for; dimensions stay as they are written."""
        values = self.arguments(builtin, node, scope, lambda argument: self.reduce(argument, scope))
        names = [parameter for parameter, _ in builtin.parameters]
        return {n: v if n == "dim" else self.atom(n, v) for n, v in zip(names, values, strict=True)}

    def call_user(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Inline a call of a ``def`` and return its results."""
        assert isinstance(node.function, ast.Name)
        function = self.rule.functions[node.function.name]
        given = [a.value for a in node.arguments if a.name is None]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        inner: Scope = {}
        for i, parameter in enumerate(function.parameters):
            name = parameter.name.name
            argument = given[i] if i < len(given) else named.get(name)
            if argument is None:
                assert parameter.default is not None, "the checker let a missing argument through"
                inner[name] = self.reduce(parameter.default, {})
            else:
                inner[name] = self.atom(name, self.reduce(argument, scope))
        if not isinstance(function.body, tuple):
            formula = function.body
            return (self.within(node, lambda: self.reduce(formula, inner)),)
        block = function.body
        results = self.within(node, lambda: self.run(block, inner))
        assert results is not None, "the checker let a def without return through"
        return results

    def run(self, body: Sequence[ast.Stmt], scope: Scope) -> tuple[ast.Expr, ...] | None:
        """Inline the statements of a ``def``; ``scope`` gains its locals; returns its results, if it returns.

        A def is pure, so both sides of an ``if`` on a value of the step can run, and each name takes the side that
        holds.
        """
        for i, statement in enumerate(body):
            match statement:
                case ast.Return(values=values):
                    return tuple(self.atom("result", self.reduce(v, scope)) for v in values)
                case ast.Assign(targets=(target,), op=op, value=value):
                    held = self.reduce(value, scope)
                    if op != "=":
                        held = ast.Binary(statement.span, op[:-1], self.reduce(target, scope), held)
                    scope[target.name] = self.atom(target.name, held)
                case ast.Assign(targets=targets, value=ast.Call() as call):
                    results = self.several(call, scope)
                    results = tuple(self.atom(t.name, r) for t, r in zip(targets, results, strict=True))
                    scope.update({t.name: r for t, r in zip(targets, results, strict=True)})
                case ast.If():
                    returned = self.run_if(statement, tuple(body[i + 1 :]), scope)
                    if returned is not None:
                        return returned
                case ast.Repeat(count=count, body=block):
                    for turn in range(self.times(count, scope)):
                        self.within(statement, lambda: self.run(block, scope), turn)
                case ast.For(names=names, body=block):
                    for turn, row in enumerate(self.turns(statement)):
                        results = tuple(self.reduce(value, scope) for value in row)
                        scope.update({n.name: self.atom(n.name, v) for n, v in zip(names, results, strict=True)})
                        self.within(statement, lambda: self.run(block, scope), turn)
                case _:
                    raise AssertionError(f"the checker let {type(statement).__name__} through")
        return None

    def run_if(self, node: ast.If, rest: tuple[ast.Stmt, ...], scope: Scope) -> tuple[ast.Expr, ...] | None:
        """Inline an ``if`` of a ``def``; ``rest`` follows it and belongs to each side if one of them returns."""
        condition, body = node.branches[0]
        other: tuple[ast.Stmt, ...] = node.other or ()
        if len(node.branches) > 1:
            other = (replace(node, branches=node.branches[1:]),)
        held = self.condition(condition, scope)
        if isinstance(held, ast.Bool):
            taken = body if held.value else other
            return self.run((*taken, *rest) if _returns(taken) else taken, scope)
        held = self.atom("condition", held)
        returns = _returns(body) or _returns(other)
        left, right = dict(scope), dict(scope)
        if self.due_names:
            return self.run_either(node, held, (body, other), rest if returns else None, scope)
        if returns:
            ours, theirs = self.run((*body, *rest), left), self.run((*other, *rest), right)
            assert ours is not None and theirs is not None, "the checker let a def without return through"
            return tuple(ast.Ternary(node.span, held, a, b) for a, b in zip(ours, theirs, strict=True))
        self.run(body, left)
        self.run(other, right)
        for name in dict.fromkeys((*left, *right)):
            a, b = left.get(name), right.get(name)
            if a is None or b is None:  # assigned on one side only: the checker allows no later read
                scope[name] = a or b or scope[name]
            elif a is not b:
                scope[name] = self.fresh(name, ast.Ternary(node.span, held, a, b))
        return None

    def run_either(
        self,
        node: ast.If,
        held: ast.Expr,
        sides: tuple[tuple[ast.Stmt, ...], tuple[ast.Stmt, ...]],
        rest: tuple[ast.Stmt, ...] | None,
        scope: Scope,
    ) -> tuple[ast.Expr, ...] | None:
        """Inline both sides of an ``if`` of a ``def``, each on its side of an ``if`` of the rule.

        ``rest`` follows each side, if one of them returns.
        """
        scopes = (dict(scope), dict(scope))
        if rest is not None:

            def returned(i: int) -> tuple[ast.Expr, ...]:
                results = self.run((*sides[i], *rest), scopes[i])
                assert results is not None, "the checker let a def without return through"
                return results

            return tuple(self.either(node.span, held, lambda: returned(0), lambda: returned(1)))
        names = [n.name for side in sides for n in assigned(side)]
        both = [n for n in dict.fromkeys(names) if n in scope or all(n in {t.name for t in assigned(s)} for s in sides)]

        def ran(i: int) -> list[ast.Expr]:
            self.run(sides[i], scopes[i])
            return [scopes[i][name] for name in both]

        scope.update(zip(both, self.either(node.span, held, lambda: ran(0), lambda: ran(1)), strict=True))
        return None


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


def _number(node: ast.Expr) -> ast.Expr:
    """Return a value as a number: a condition counts as 0 or 1."""
    if isinstance(node, (ast.Name, ast.Number)):
        return node
    return ast.Binary(node.span, "*", ast.Number(node.span, "1", Fraction(1)), node)


def _row(node: ast.Call) -> Builtin:
    """Return the row of the builtin that is called."""
    assert isinstance(node.function, ast.Name)
    return BUILTINS.get(node.function.name, _NONE)


def dims_of(node: ast.Expr) -> tuple[int, ...]:
    """Return the dimensions that a ``dim=`` argument names."""
    items = node.items if isinstance(node, ast.Tuple) else (node,)
    values = (evaluate(item, {}) for item in items)
    return tuple(int(v) for v in values if isinstance(v, (int, float)))


def _returns(body: Sequence[ast.Stmt]) -> bool:
    """Return whether statements hold a ``return``."""
    return any(isinstance(statement, ast.Return) for statement in statements(body))


def too_large(rule: Rule) -> Diagnostic:
    """Return the error of a rule that grows too large when its functions are written out."""
    return Diagnostic(
        "E511",
        f"the rule grows beyond {MAX_NODES:,} operations when its functions are inlined",
        rule.tree.source,
        None,
        help="call functions fewer times, or assign their result to a name and use the name",
    )


def too_many_paths(rule: Rule) -> Diagnostic:
    """Return the error of a rule whose steps can go too many ways."""
    return Diagnostic(
        "E511",
        "a step of this rule has more than 32 possible paths: too many `every` blocks and conditions around matrices",
        rule.tree.source,
        None,
        help="merge blocks that run at the same time",
    )


def constant_sum(rule: Rule, span: Span | None) -> Diagnostic:
    """Return the error of a rule that sums what is one number after all over dimensions of unknown sizes."""
    return Diagnostic(
        "E310",
        "this sum over inner dimensions does not depend on the tensor",
        rule.tree.source,
        span,
        help="multiply the number by how many there are",
    )
