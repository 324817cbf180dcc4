"""Finds the locals and expressions of a rule whose values are known before its first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from optlang.core.evaluate import member_name
from optlang.functions.table import BUILTINS, ELEMENTWISE, FACT_NAMES, SIZES
from optlang.identity import GroupKey
from optlang.rule import Rule, remembering
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned, body_of, expressions, own_expressions, parts, statements


def known_before(
    body: Sequence[ast.Stmt], hypers: Collection[str], states: Collection[str], functions: Mapping[str, ast.Def]
) -> dict[str, ast.Expr]:
    """Return the locals of a rule that are known before its first step, with their expressions, in source order.

    Such a local is assigned exactly once, outside any block. Its value depends only on hyperparameters, facts of the
    tensor, keys of the param group and other such locals.
    """
    times = Counter(name.name for name in assigned(body))
    taken = {"p", "g", *states, *hypers}
    candidates = {
        statement.targets[0].name: statement.value
        for statement in body
        if isinstance(statement, ast.Assign) and statement.op == "=" and len(statement.targets) == 1
    }
    candidates = {name: value for name, value in candidates.items() if times[name] == 1 and name not in taken}
    reading = _QuestionFinder(functions)
    needs = {name: reading.needs(value) for name, value in candidates.items()}
    readers: dict[str, list[str]] = {}
    for name, read in needs.items():
        for other in read or ():
            readers.setdefault(other, []).append(name)
    known = {*hypers, *FACT_NAMES}
    lost = [name for name, read in needs.items() if read is None]
    lost += [other for other in readers if other not in known and other not in candidates]
    gone = set[str]()
    while lost:
        name = lost.pop()
        if name not in gone:
            gone.add(name)
            lost += readers.get(name, ())
    return {name: value for name, value in candidates.items() if name not in gone}


@remembering
def known_locals(rule: Rule) -> Mapping[str, ast.Expr]:
    """Return the locals of a checked rule that are known before its first step; see :func:`known_before`."""
    return known_before(rule.body, {h.name for h in rule.hypers}, {s.name for s in rule.states}, rule.functions)


class _QuestionFinder:
    """Finds the names that must be known before the first step for an expression to be known.

    Args:
        functions: The functions of the rule.
    """

    def __init__(self, functions: Mapping[str, ast.Def]) -> None:
        self.functions = functions
        self._of_functions: dict[str, set[str] | None] = {}

    def needs(self, node: ast.Expr) -> set[str] | None:
        """Return the names an expression depends on; None if it can never be known before the first step."""
        found = set[str]()
        match node:
            case ast.Name(name=name):
                return {name}
            case ast.Member():
                if not isinstance(member_name(node), GroupKey):
                    return None
            case ast.Call(function=ast.Name(name=name)) if name in self.functions:
                inside = self._needs_of(name)
                if inside is None:
                    return None
                found |= inside
            case ast.Call(function=ast.Name(name=name), arguments=arguments) if name in SIZES:
                names = {n.name for a in arguments for n in expressions(a.value) if isinstance(n, ast.Name)}
                return names - {"p", "g"}  # only the sizes of the values are read
            case ast.Call(function=ast.Name(name=name), arguments=arguments):
                plain = name in BUILTINS and BUILTINS[name].group == ELEMENTWISE
                if not plain or any(a.name == "dim" for a in arguments):
                    return None
            case ast.Index() | ast.Unsupported() | ast.Binary(op="@"):
                return None
            case _:
                pass
        if not isinstance(node, ast.Member):
            for part in parts(node):
                read = self.needs(part)
                if read is None:
                    return None
                found |= read
        return found

    def _needs_of(self, name: str) -> set[str] | None:
        """Return the outer names that a function's body depends on; None if its value can never be known."""
        if name not in self._of_functions:
            self._of_functions[name] = None  # breaks recursion
            block = body_of(self.functions[name])
            own = {p.name.name for p in self.functions[name].parameters} | {n.name for n in assigned(block)}
            inside = [self.needs(expr) for statement in statements(block) for expr in own_expressions(statement)]
            if all(read is not None for read in inside):
                self._of_functions[name] = set[str]().union(*(read for read in inside if read is not None)) - own
        return self._of_functions[name]


def is_known(node: ast.Expr, free: Collection[str], functions: Mapping[str, ast.Def]) -> bool:
    """Return whether an expression is known before the first step, given that the names in ``free`` are."""
    needs = _QuestionFinder(functions).needs(node)
    return needs is not None and needs <= {*free}


def all_statements(rule: Rule) -> Iterator[ast.Stmt]:
    """Yield the statements of a rule, its events and its functions."""
    yield from rule.body
    for event in rule.events.values():
        yield from event
    for function in rule.functions.values():
        yield from body_of(function)


def tops(rule: Rule) -> Iterator[ast.Expr]:
    """Yield every top-level expression of a rule."""
    for statement in statements(all_statements(rule)):
        yield from own_expressions(statement)
    for state in rule.states:
        yield from (e for e in (state.initial, state.when) if e is not None)
