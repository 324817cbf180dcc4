"""Checks calls to a rule's functions by interpreting them with their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optlang.checker.expressions import ExpressionReader
from optlang.checker.tensors import is_known_before, literal, named
from optlang.checker.values import MISTAKE, CheckedValue, Sort, Uses, merge
from optlang.core import definitions
from optlang.core.limits import MAX_REPEATS
from optlang.functions.shapes import Mismatch
from optlang.functions.table import BUILTINS, Builtin
from optlang.kinds import HOST, STATIC, Level
from optlang.source import Span
from optlang.syntax.tree import (
    Assign,
    Binary,
    Bool,
    Call,
    Def,
    Every,
    Expr,
    For,
    If,
    Infinity,
    Member,
    Name,
    Nothing,
    Number,
    Repeat,
    Return,
    Stmt,
    Text,
)
from optlang.syntax.walk import body_of, statements

ATOMS = (Number, Infinity, Text, Bool, Nothing, Name, Member)
Results = tuple[CheckedValue, ...]
Env = dict[str, CheckedValue]


class Inliner(ExpressionReader):
    """Interprets functions; the statements of a rule are handled by a subclass."""

    def assigned(self, node: Assign) -> CheckedValue:
        """Infer the value of an assignment to one name."""
        if node.op == "=":
            return self.value(node.value)
        target = node.targets[0]
        before = self.number(target)
        return self.changed(node, before, self.number(node.value))

    def changed(self, node: Assign, before: CheckedValue, by: CheckedValue) -> CheckedValue:
        """Infer the new value of a name changed by ``+=`` and the like."""
        return self.combine(node.value, (before, by))

    def results(self, node: Assign) -> Results:
        """Infer the values of an assignment to several names."""
        call = node.value
        if isinstance(call, Call) and isinstance(call.function, Name):
            results: Results = ()
            if call.function.name in self.scope.functions:
                results = self.call_function(call)
            elif call.function.name in BUILTINS and BUILTINS[call.function.name].results:
                results = self.several(call, BUILTINS[call.function.name])
            if len(results) == len(node.targets):
                return results
        return (MISTAKE,) * len(node.targets)

    # Blocks ------------------------------------------------------------------------------------------------------

    def repeated(self, node: Repeat, run: Callable[[], None]) -> None:
        """Interpret the body of a ``repeat`` as often as it runs, or until nothing changes."""
        for _ in range(self.count(node.count)):
            before = dict(self.env if self.frame is None else self.frame)
            run()
            if before == (self.env if self.frame is None else self.frame):
                return

    def count(self, expr: Expr) -> int:
        """Return the count of a ``repeat`` in this sample."""
        value = self.number(expr)
        if value.sort is Sort.UNKNOWN and not isinstance(expr, Member):
            return 1
        if not is_known_before(value):
            self.unknown_before(expr, value, "the count of `repeat`")
            return 1
        known = value.known
        if not isinstance(known, (int, float)):
            return 1
        if 0 <= known <= MAX_REPEATS and known % 1 == 0:
            return int(known)
        if self.sample.defaults:
            self.bad_count(expr, known)
        return 1

    def bad_count(self, expr: Expr, known: float) -> None:
        """Report an invalid ``repeat`` count."""
        if known > MAX_REPEATS:
            self.report(
                "E511",
                f"a `repeat` runs at most {MAX_REPEATS} times, not {known:g}",
                expr.span,
                label="too many",
                help="its body is unrolled; the inner iteration of an optimizer takes a handful of steps",
            )
        else:
            self.report(
                "E314",
                f"a body cannot be repeated {known:g} times",
                expr.span,
                label="expected an integer of at least 0",
                help=f"round it: `floor({self.text(expr)})`" if known > 0 else "use an integer: `repeat 5:`",
            )

    def due(self, node: Every) -> CheckedValue:
        """Return the condition of an ``every``, after checking its numbers."""
        for expr, what in ((node.period, "the period of `every`"), (node.start, "the start of `every`")):
            if expr is None:
                continue
            value = self.number(expr)
            if value.sort is Sort.UNKNOWN or is_known_before(value):
                continue
            if isinstance(expr, Binary) and expr.op == "or" and self.site is None:
                self.report(
                    "E314",
                    f"{what} is a number, not a condition",
                    expr.span,
                    label="expected a number, optionally with `or first`",
                    help="`every 10 or first:` also runs in the first step; for other conditions, write `if "
                    "CONDITION:`",
                )
            else:
                self.unknown_before(expr, value, what)
        return CheckedValue(HOST, Sort.CONDITION, Uses.TIME)

    def facts(self, expr: Expr) -> CheckedValue:
        """Return the dependency of a count or period on the tensor's shape."""
        return CheckedValue(STATIC, uses=self.number(expr).uses & Uses.FACT)

    def turns(self, node: For) -> Iterator[Env]:
        """Yield the values of the loop variables in each iteration, except for a loop over a history."""
        for part in self.scope.tuples.get(node.over_name, ()):
            yield {node.name.name: self.part(part)}
        for row in node.rows:
            yield {name.name: _bound(value, self.value(value)) for name, value in zip(node.names, row, strict=True)}

    def part(self, name: str) -> CheckedValue:
        """Infer one part of a tuple that a ``for`` iterates over."""
        return self.hyper(name) if name in self.scope.hypers else MISTAKE

    # Calls -------------------------------------------------------------------------------------------------------

    def call_function(self, node: Call) -> Results:
        """Interpret one of the rule's functions with the arguments of a call."""
        assert isinstance(node.function, Name)
        return self.enter(node, self.scope.functions[node.function.name])

    def written_out(self, node: Call, builtin: Builtin) -> CheckedValue:
        """Infer the result of a builtin that is defined by a block."""
        function = definitions.function(builtin.name)
        assert function is not None
        if builtin.shape is not None and node.arguments:
            first = self.number(node.arguments[0].value)
            try:
                builtin.shapes(self.shape(first))
            except Mismatch as mismatch:
                return MISTAKE if first.sort is Sort.UNKNOWN else self.mismatch(node, mismatch)
        if builtin.takes_dim and node.arguments:
            first, dim = self.number(node.arguments[0].value), named(node, builtin).get("dim", Nothing(node.span))
            if first.sort is not Sort.UNKNOWN and first.kind.level <= Level.SCALAR:
                return self.no_tensor(node)
            if literal(dim) is None and not isinstance(dim, Nothing):
                return MISTAKE  # reported where arguments are checked
        (result, *_) = self.enter(node, function, inside=True)
        if result.sort is not Sort.UNKNOWN:
            self.fine(node)
        return result

    def enter(self, node: Call, function: Def, inside: bool = False) -> Results:
        """Interpret a function with the arguments of a call; ``inside`` marks a builtin."""
        given = [a.value for a in node.arguments if a.name is None]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        inner: Env = {}
        for i, parameter in enumerate(function.parameters):
            name = parameter.name.name
            argument = given[i] if i < len(given) else named.get(name)
            if argument is not None:
                inner[name] = _bound(argument, self.value(argument))
            elif parameter.default is not None:
                caller, self.frame = self.frame, None
                inner[name] = self.value(parameter.default)
                self.frame = caller
            else:
                inner[name] = MISTAKE
        if inside and any(value.sort is Sort.UNKNOWN for value in inner.values()):
            return (MISTAKE,)
        around = self.frame, self.own, self.site, self.around
        body = body_of(function)
        self.frame, self.own = inner, _own(body)
        self.site = (self.site or node) if inside else self.site
        results = self.function_block(body)
        self.frame, self.own, self.site, self.around = around
        return results if results is not None else (MISTAKE,)

    def function_block(self, body: Sequence[Stmt]) -> Results | None:
        """Interpret the statements of a function; return its results if it returns."""
        assert self.frame is not None
        for i, statement in enumerate(body):
            match statement:
                case Return(values=values):
                    return tuple(self.returned(v) for v in values)
                case Assign(targets=(target,)):
                    self.frame[target.name] = self.placed(_bound(statement.value, self.assigned(statement)))
                case Assign(targets=targets):
                    for target, value in zip(targets, self.results(statement), strict=True):
                        self.frame[target.name] = self.placed(value)
                case If(branches=branches, other=other):
                    around = self.around
                    results = self.function_if(branches, other or (), body[i + 1 :])
                    if not any(isinstance(s, Return) for s in statements((statement,))):
                        self.around = around  # what follows applies to all tensors again
                    if results is not None:
                        return results
                case Repeat() | For() | Every():
                    self.function_loop(statement)
                case _:
                    pass
        return None

    def function_loop(self, node: Repeat | For | Every) -> None:
        """Interpret a block of a function that is repeated, or runs only in some steps."""
        assert self.frame is not None
        match node:
            case Repeat(count=count, body=body):
                around, self.around = self.around, self.around | self.facts(count).uses
                self.repeated(node, lambda: self.quiet(body))
                self.around = around
            case For(names=names, body=body):
                for values in self.turns(node):
                    self.frame.update(values)
                    self.function_block(body)
                for name in names:
                    self.frame.pop(name.name, None)
            case Every(period=period, start=start, body=body):
                held, before, around = self.due(node), dict(self.frame), self.around
                for expr in (period, start):
                    self.around |= Uses.NOTHING if expr is None else self.facts(expr).uses
                self.function_block(body)
                self.frame = self.meet(self.frame, before, held)
                self.around = around

    def quiet(self, body: Sequence[Stmt]) -> None:
        """Interpret statements of a function that do not return."""
        self.function_block(body)

    def returned(self, expr: Expr) -> CheckedValue:
        """Infer one result of a function."""
        return self.placed(_bound(expr, self.value(expr)))

    def placed(self, value: CheckedValue) -> CheckedValue:
        """Return a value with the dependencies of the enclosing blocks added."""
        return value._replace(uses=value.uses | self.around)

    def function_if(
        self,
        branches: Sequence[tuple[Expr, tuple[Stmt, ...]]],
        other: tuple[Stmt, ...],
        following: Sequence[Stmt],
    ) -> Results | None:
        """Interpret an ``if`` of a function; ``following`` are the statements after it."""
        assert self.frame is not None
        if not branches:
            return self.function_block(other)
        (condition, body), *rest = branches
        held = self.condition(condition)
        answer = self.decide(condition, held)
        self.around |= held.uses & Uses.FACT
        if answer is not None:
            return self.function_block(body) if answer else self.function_if(rest, other, following)
        before = dict(self.frame)
        ours = self.function_block(body)
        if ours is None:
            after_ours = self.frame
            theirs, self.frame = None, before.copy()
            theirs = self.function_if(rest, other, following)
            if theirs is None:
                self.frame = self.meet(after_ours, self.frame, held)
                return None
            self.frame = after_ours
            ours = self.function_block(following)
        else:
            self.frame = before
            theirs = self.function_if(rest, other, following) or self.function_block(following)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return ours or theirs
        return tuple(self.merged(condition, (a, b), held) for a, b in zip(ours, theirs, strict=True))

    def meet(self, a: Env, b: Env, condition: CheckedValue) -> Env:
        """Join the environments after two branches."""
        met: Env = {}
        for name in (*a, *(name for name in b if name not in a)):
            one, two = a.get(name), b.get(name)
            if one is not None and two is not None:
                met[name] = one if one is two else self.either(one, two, condition)
            else:
                known = one if one is not None else two
                assert known is not None
                met[name] = self.either(known, known, condition)._replace(missing=True)
        return met

    def either(self, one: CheckedValue, two: CheckedValue, condition: CheckedValue) -> CheckedValue:
        """Join two values of a name; if their shapes differ, the name must not be read."""
        try:
            return merge((one, two), self.sample.shape, condition)
        except Mismatch:
            clash = f"{self.phrase(one)} or {self.phrase(two)}"
            return one._replace(clash=clash, missing=one.missing or two.missing)


def _own(body: Sequence[Stmt]) -> dict[str, tuple[Span, Span]]:
    """Return the names a function assigns, with the span of the first assignment's target and statement."""
    found: dict[str, tuple[Span, Span]] = {}
    for statement in statements(body):
        if isinstance(statement, Assign):
            for target in statement.targets:
                found.setdefault(target.name, (target.span, statement.span))
        elif isinstance(statement, For):
            for name in statement.names:
                found.setdefault(name.name, (name.span, name.span))
    return found


def _bound(expr: Expr, value: CheckedValue) -> CheckedValue:
    """Return a value bound to a new name: computed numbers do not select variants."""
    if value.literal or value.sort is not Sort.NUMBER or isinstance(expr, ATOMS):
        return value
    return value._replace(uses=value.uses | Uses.LOCAL)
