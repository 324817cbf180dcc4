"""Calls: user functions and derived builtins are inlined; primitives are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

from optlang.core import definitions
from optlang.core.core import Drawn, Evaluated, ModelSum, Operation, Result, SizeOf
from optlang.core.evaluate import evaluate
from optlang.core.limits import MAX_REPEATS
from optlang.core.reduce import LITERALS, Reducer, Scope, row_of
from optlang.core.sizes import Unfit
from optlang.functions.table import ASKING, BUILTINS, HALT, MAKERS, RANDOMS, SEARCHES, SIZES, Builtin
from optlang.identity import NamedPoint, Site
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned, statements

Made = TypeVar("Made")


class CallReducer(Reducer):
    """Reduces calls."""

    def within(self, node: ast.Node, work: Callable[[], Made], turn: int | None = None) -> Made:
        """Run ``work`` inside a call or a loop iteration and return its result."""
        self.trace.append((node, turn))
        try:
            return work()
        finally:
            self.trace.pop()

    def times(self, count: ast.Expr, scope: Scope) -> int:
        """Return how often a ``repeat`` runs. The count becomes part of the variant's key."""
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
        """Return the values of the loop variables per iteration: the given rows, or the hyperparameters of a tuple."""
        if not isinstance(node.over, ast.Name):
            return node.rows
        parts = [(replace(node.over, name=h.name, text=h.name),) for h in self.rule.keys[node.over.name]]
        return parts[:: -1 if node.backwards else 1]

    def call(self, node: ast.Call, scope: Scope) -> ast.Expr:
        """Reduce a call to a primitive with its arguments in order, or to the inlined body."""
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
        """Reduce a call that evaluates the closure."""
        if name in SEARCHES:
            arguments = self.arguments(BUILTINS[name], node, scope, lambda argument: self.reduce(argument, scope))
        else:
            arguments = [self.reduce(a.value, scope) for a in node.arguments]
        site: Site | NamedPoint = self.site(name, node)
        point = node.arguments[0].value
        if name not in SEARCHES and isinstance(point, ast.Name) and not self.trace and point.name in self.once:
            site = NamedPoint(point.name)  # a named point is evaluated once, whatever is requested there
        return Evaluated(node.span, name, site, tuple(arguments))

    def drawn(self, name: str, node: ast.Call, scope: Scope) -> ast.Expr:
        """Reduce a random call: ``randn`` and ``rand`` are primitive, the others are derived from them."""
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
        """Return the identity of a call: its ordinal in the rule, and those of the enclosing calls and iterations.

        Ordinals count calls in the source rule, so they are the same in every variant, and comments and line breaks do
        not change them.
        """
        numbered = self.ordinals.around(name)
        places = [(numbered.get(id(at)), turn) for at, turn in (*self.trace, (node, None))]
        return Site(tuple(part for place in places for part in place if part is not None))

    def result(self, node: ast.Call, index: int, scope: Scope) -> ast.Expr:
        """Return one result of a builtin with several results."""
        return self._results(node, scope)[index]

    def several(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Return the results of a call with several results."""
        assert isinstance(node.function, ast.Name)
        if node.function.name in self.rule.functions:
            return self.call_user(node, scope)
        return self._results(node, scope)

    def _results(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Return the results of a builtin with several results."""
        row = row_of(node)
        operation = self.primitive(node, row, scope)
        assert isinstance(operation, Operation)
        return tuple(Result(node.span, operation, i) for i in range(len(row.results)))

    def call_block(self, builtin: Builtin, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Inline a derived function whose definition is a block."""
        inner = self.bound(builtin, node, scope)
        body = definitions.body(builtin.name)
        assert body is not None
        results = self.inside(node, lambda: self.run(body, inner))
        assert results is not None
        return results

    def inside(self, node: ast.Call, work: Callable[[], Made]) -> Made:
        """Run ``work`` inside a builtin and return its result. Shape errors there are reported at the call."""
        try:
            return self.within(node, work)
        except Unfit as unfit:
            assert isinstance(node.function, ast.Name)
            raise Unfit(node.span, f"in `{node.function.name}`: {unfit.message}", unfit.help) from None

    def primitive(self, node: ast.Call, builtin: Builtin, scope: Scope) -> ast.Expr:
        """Return the operation for a primitive call; a sum over no dimensions reduces to its argument."""
        kept: list[ast.Expr] = []
        dims: tuple[int, ...] | None = None
        for argument in node.arguments:
            if argument.name == "dim":
                dim = scope.get("dim") if isinstance(argument.value, ast.Name) else argument.value
                if isinstance(dim, ast.Slice):
                    dims = self.counted(dim, kept[0])
                    if not dims:  # nothing to sum
                        return _number(kept[0])
                elif dim is not None and not isinstance(dim, ast.Nothing):
                    dims = dims_of(dim)
                if dims is not None:
                    if not {*dims} <= {0, -1, -2} and dim is not None:
                        self.fix_ndim(dim)
                    self.dims.update(dims)
            else:
                value = self.reduce(argument.value, scope)
                # Matrix functions take named values.
                kept.append(self.atom("matrix", value) if builtin.matrix and builtin.name not in MAKERS else value)
        for parameter, default in builtin.parameters[len(kept) :] if builtin.matrix else ():
            if default is not None:  # `flip(x)`
                filled = definitions.default(builtin, parameter)
                assert filled is not None
                kept.append(filled)
        return Operation(node.span, builtin.name, tuple(kept), dims)

    def counted(self, dims: ast.Slice, value: ast.Expr) -> tuple[int, ...]:
        """Return the dimensions of a value that the slice in ``dim=1:`` selects."""
        self.fix_ndim(dims)
        rank = len(self.shape) if self.sizes is None else len(self.sizes.of(value))
        ends = (None if end is None else int(self.number(end) or 0) for end in (dims.start, dims.stop))
        return tuple(range(rank)[slice(*ends)])

    def fix_ndim(self, at: ast.Expr) -> None:
        """Restrict the variant to tensors with as many dimensions as this one."""
        if not self.fixed_ndim:
            self.fixed_ndim = True
            self.answer(ast.Name(at.span, "ndim", "ndim"), len(self.shape), numbers=True)

    def arguments(
        self, builtin: Builtin, node: ast.Call, scope: Scope, value: Callable[[ast.Expr], ast.Expr]
    ) -> list[ast.Expr]:
        """Return the arguments of a builtin in parameter order, with defaults filled in."""
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
        """Bind the parameters of a derived function. A ``dim`` is passed on unevaluated."""
        values = self.arguments(builtin, node, scope, lambda argument: self.reduce(argument, scope))
        names = [parameter for parameter, _ in builtin.parameters]
        return {n: v if n == "dim" else self.atom(n, v) for n, v in zip(names, values, strict=True)}

    def call_user(self, node: ast.Call, scope: Scope) -> tuple[ast.Expr, ...]:
        """Inline a call to a ``def`` and return its results."""
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
        """Inline the statements of a ``def``, adding its locals to ``scope``; return its results, if it returns.

        A def is pure, so both sides of an ``if`` on a runtime value can run, and each name selects the value of the
        side taken.
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
        """Inline an ``if`` of a ``def``. If a side returns, ``rest`` (the statements after it) is inlined into both."""
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
        """Inline both sides of an ``if`` of a ``def`` into the two branches of an ``if`` statement.

        If a side returns, ``rest`` is inlined after each.
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


def _number(node: ast.Expr) -> ast.Expr:
    """Return a value as a number: a condition becomes 0 or 1."""
    if isinstance(node, (ast.Name, ast.Number)):
        return node
    return ast.Binary(node.span, "*", ast.Number(node.span, "1", Fraction(1)), node)


def dims_of(node: ast.Expr) -> tuple[int, ...]:
    """Return the dimensions that a ``dim=`` argument names."""
    items = node.items if isinstance(node, ast.Tuple) else (node,)
    values = (evaluate(item, {}) for item in items)
    return tuple(int(v) for v in values if isinstance(v, (int, float)))


def _returns(body: Sequence[ast.Stmt]) -> bool:
    """Return whether any of the statements is a ``return``."""
    return any(isinstance(statement, ast.Return) for statement in statements(body))
