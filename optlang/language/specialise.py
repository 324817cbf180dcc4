"""A checked rule, with its static questions answered -> straight statements.

Given the values of the hyperparameters and the facts of a tensor, what is static is decided: branches not taken
disappear, functions (the user's, and derived builtins) are inlined, options become literals. What is left are
assignments and ``if`` on values only known in a step. The answers given on the way are the *key* of the variant: two
sets of values with equal keys leave the same statements, so one compiled kernel serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optlang.diagnostics import Diagnostic, OptlangError
from optlang.language import derived
from optlang.language import tree as ast
from optlang.language.builtins import BUILTINS, Builtin
from optlang.language.evaluate import NotStatic, evaluate, member_name, truth
from optlang.language.rule import HyperType, Rule, State, Value
from optlang.language.walk import assigned, statements
from optlang.source import Span

#: How many nodes the statements of one variant may have: far above any optimizer, far below what takes seconds.
MAX_NODES = 20_000

Scope = dict[str, ast.Expr]
LITERALS = (ast.Number, ast.Infinity, ast.Text, ast.Bool, ast.Nothing)
ATOMS = (*LITERALS, ast.Name, ast.Member)


@dataclass(frozen=True)
class Special:
    """What a rule is for one set of answers.

    Attributes:
        key: The answers, in the order in which the questions came up.
        states: The states that exist.
        start: Statements that give states their initial values (a state without one starts at zero).
        body: The statements of a step: assignments to one name, and ``if`` on values of the step.
        dims: Dimensions that some reduction names.
    """

    key: tuple[Value, ...]
    states: tuple[State, ...]
    start: tuple[ast.Stmt, ...]
    body: tuple[ast.Stmt, ...]
    dims: frozenset[int]


def specialise(rule: Rule, values: Mapping[str, Value]) -> Special:
    """Decide what is static in a rule.

    Args:
        rule: The checked rule.
        values: Hyperparameters and facts of the tensor by name, keys of the param group as ``group.NAME``.

    Returns:
        The statements that are left and the key of the variant.
    """
    work = _Specialiser(rule, values)
    states = tuple(s for s in rule.states if s.when is None or work.decides(s.when))
    start = work.initial(states)
    body = work.statements(rule.body)
    return Special(tuple(work.answers), states, start, body, frozenset(work.dims))


class _Specialiser:
    """One walk over a rule; see the module docstring."""

    def __init__(self, rule: Rule, values: Mapping[str, Value]) -> None:
        self.rule = rule
        self.values = values
        self.hypers = {h.name: h for h in rule.hypers}
        self.fixed = {"p", "g", *(s.name for s in rule.states)}
        self.answers: list[Value] = []
        self.dims: set[int] = set()
        self.known: Scope = {}  # locals that are literals at this point
        self.out: list[ast.Stmt] = []
        self.fresh_count = 0
        self.at = Span(0, 0)  # the statement of the rule that is being worked on
        self.budget = MAX_NODES

    # Statements ---------------------------------------------------------------------------------------------

    def initial(self, states: Sequence[State]) -> tuple[ast.Stmt, ...]:
        """Return the statements that give the initial values."""
        for state in states:
            if state.initial is not None:
                self.at = state.span
                value = self.reduce(state.initial, {})
                self.assign(ast.Name(state.span, state.name, state.name), "=", value, state.span)
        return self.take()

    def statements(self, body: Sequence[ast.Stmt]) -> tuple[ast.Stmt, ...]:
        """Return what is left of statements of the rule."""
        for statement in body:
            self.statement(statement)
        return self.take()

    def take(self) -> tuple[ast.Stmt, ...]:
        """Return the statements gathered so far and start afresh."""
        taken, self.out = tuple(self.out), []
        return taken

    def assign(self, target: ast.Name, op: str, value: ast.Expr, span: Span) -> None:
        """Add an assignment; remember a local that is a literal."""
        if not isinstance(value, (ast.Text, ast.Nothing)):  # nothing but static questions can read these
            self.out.append(ast.Assign(span, (target,), op, value))
        self.known.pop(target.name, None)
        if op == "=" and isinstance(value, LITERALS) and target.name not in self.fixed:
            self.known[target.name] = value

    def fresh(self, stem: str, value: ast.Expr) -> ast.Name:
        """Bind ``value`` to a new local and return its name (a dot keeps it apart from the user's names)."""
        self.fresh_count += 1
        name = ast.Name(value.span, f"{stem}.{self.fresh_count}", stem)
        self.assign(name, "=", value, self.at)
        return name

    def atom(self, stem: str, value: ast.Expr) -> ast.Expr:
        """Return ``value`` if it is a name or literal, else a new local that holds it."""
        return value if isinstance(value, ATOMS) else self.fresh(stem, value)

    def statement(self, node: ast.Stmt) -> None:
        """Add what is left of one statement."""
        self.at = node.span
        match node:
            case ast.Assign(targets=(target,), op=op, value=value):
                self.assign(target, op, self.reduce(value, {}), node.span)
            case ast.Assign(targets=targets, value=ast.Call() as call):
                results = self.call_user(call, {})
                # Results are bound before any target is written: `x, y = swap(x, y)`.
                held = [self.fresh(t.name, r) for t, r in zip(targets, results, strict=True)]
                for target, value in zip(targets, held, strict=True):
                    self.assign(target, "=", value, node.span)
            case ast.If():
                self.branches(node)
            case _:
                raise AssertionError(f"the checker let {type(node).__name__} through")

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
        try:
            answer = truth(evaluate(node, self.values))
        except NotStatic:
            return node
        if not isinstance(node, LITERALS):
            self.answers.append(answer)
        return ast.Bool(node.span, answer)

    def reduce(self, node: ast.Expr, scope: Scope) -> ast.Expr:
        """Return what is left of an expression; ``scope`` gives the meaning of parameters and locals of a def."""
        self.budget -= 1
        if self.budget < 0:
            raise OptlangError([too_large(self.rule)])
        match node:
            case ast.Name(name=name):
                return self.name(node, scope[name]) if name in scope else self.name(node, node)
            case ast.Member():
                return self.literal(node, self.values.get(member_name(node) or ""))
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
            case ast.Binary(left=left, right=right):
                return replace(node, left=self.reduce(left, scope), right=self.reduce(right, scope))
            case ast.Compare():
                return self.compare(node, scope)
            case ast.Ternary(condition=c, then=then, other=other):
                return self.choose(node.span, c, then, other, scope)
            case ast.Call():
                return self.call(node, scope)
            case _:
                return node

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
            self.answers.append(value is None)
            return ast.Nothing(at.span) if value is None else node
        return self.literal(node, value)

    def literal(self, node: ast.Name | ast.Member, value: Value) -> ast.Expr:
        """Return an option's value as a literal; a number stays a name, so that it may change."""
        if isinstance(value, bool):
            self.answers.append(value)
            return ast.Bool(node.span, value)
        if isinstance(value, str):
            self.answers.append(value)
            return ast.Text(node.span, value)
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
        return ast.Ternary(span, held, self.reduce(then, scope), self.reduce(other, scope))

    # Calls --------------------------------------------------------------------------------------------------

    def call(self, node: ast.Call, scope: Scope) -> ast.Expr:
        """Return what is left of a call: a primitive with its arguments in order, or an inlined body."""
        assert isinstance(node.function, ast.Name)
        name = node.function.name
        if name in self.rule.functions:
            (result,) = self.call_user(node, scope)
            return result
        builtin = BUILTINS[name]
        if name == "where":
            c, a, b = self.arguments(builtin, node, scope, lambda argument: argument)[:3]
            return self.choose(node.span, c, a, b, scope)
        body = derived.definition(name)
        if body is None:
            return self.primitive(node, builtin, scope)
        values = self.arguments(builtin, node, scope, lambda argument: self.reduce(argument, scope))
        names = [parameter for parameter, _ in builtin.parameters]
        inner: Scope = {n: self.atom(n, v) for n, v in zip(names, values, strict=True)}
        dim = next((a.value for a in node.arguments if a.name == "dim"), None)
        if dim is not None:
            inner["dim"] = scope.get("dim", dim) if isinstance(dim, ast.Name) else dim
        return self.reduce(body, inner)

    def primitive(self, node: ast.Call, builtin: Builtin, scope: Scope) -> ast.Expr:
        """Return a call of a primitive with what is left of its arguments."""
        kept: list[ast.Argument] = []
        for argument in node.arguments:
            if argument.name == "dim":
                dim = scope.get("dim") if isinstance(argument.value, ast.Name) else argument.value
                if dim is not None:
                    self.dims.update(dims_of(dim))
                    kept.append(replace(argument, value=dim))
            else:
                kept.append(ast.Argument(argument.span, None, self.reduce(argument.value, scope)))
        return replace(node, arguments=tuple(kept))

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
                argument = derived.default(builtin, parameter)
                assert argument is not None, "the checker let a missing argument through"
            values.append(value(argument))
        return values

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
            return (self.reduce(function.body, inner),)
        results = self.run(function.body, inner)
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
                    results = self.call_user(call, scope)
                    scope.update({t.name: r for t, r in zip(targets, results, strict=True)})
                case ast.If():
                    returned = self.run_if(statement, tuple(body[i + 1 :]), scope)
                    if returned is not None:
                        return returned
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
        if returns:
            ours, theirs = self.run((*body, *rest), left), self.run((*other, *rest), right)
            assert ours is not None and theirs is not None, "the checker let a def without return through"
            return tuple(ast.Ternary(node.span, held, a, b) for a, b in zip(ours, theirs, strict=True))
        self.run(body, left)
        self.run(other, right)
        for name in {*left, *right}:
            a, b = left.get(name), right.get(name)
            if a is None or b is None:  # assigned on one side only: the checker allows no later read
                scope[name] = a or b or scope[name]
            elif a is not b:
                scope[name] = self.fresh(name, ast.Ternary(node.span, held, a, b))
        return None


def dims_of(node: ast.Expr) -> frozenset[int]:
    """Return the dimensions that a ``dim=`` argument names."""
    items = node.items if isinstance(node, ast.Tuple) else (node,)
    values = (evaluate(item, {}) for item in items)
    return frozenset(int(v) for v in values if isinstance(v, (int, float)))


def _returns(body: Sequence[ast.Stmt]) -> bool:
    """Return whether statements hold a ``return``."""
    return any(isinstance(statement, ast.Return) for statement in statements(body))


def too_large(rule: Rule) -> Diagnostic:
    """Return the error of a rule that grows too large when its functions are written out."""
    return Diagnostic(
        "E511",
        f"the rule grows beyond {MAX_NODES:,} operations when its functions are written out",
        rule.tree.source,
        None,
        help="call functions fewer times, or store their result in a name and use the name",
    )
