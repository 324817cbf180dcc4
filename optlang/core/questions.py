"""Which values a rule's static questions may read.

A variant stays as long as these values (and the facts of the tensor) stay; the runtime compares just them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from optlang.core.definitions import body, definition
from optlang.core.evaluate import member_name
from optlang.functions.table import BUILTINS, ELEMENTWISE, EMPTY, EVALUATIONS, FACT_NAMES, MAKERS, RANDOMS, SIZES
from optlang.identity import Count, GivenName, GroupKey
from optlang.rule import HyperType, Rule, remembering
from optlang.syntax import tree as ast
from optlang.syntax.walk import assigned, block_expressions, body_of, expressions, own_expressions, parts, statements

#: Functions whose results have sizes given by an argument.
SIZED = MAKERS | {*RANDOMS, "flip", EMPTY, *(name for name, row in BUILTINS.items() if row.sized)}


def group_keys(rule: Rule) -> tuple[str, ...]:
    """Return the keys of the user's own that a rule reads from the param group (``group.NAME``)."""
    keys: dict[str, None] = {}
    for top in (*tops(rule), *(required.condition for required in rule.requirements)):
        for node in expressions(top):
            if isinstance(node, ast.Member) and isinstance(member_name(node), GroupKey):
                keys.setdefault(node.name)
    return tuple(keys)


def known_before(
    body: Sequence[ast.Stmt], hypers: Collection[str], states: Collection[str], functions: Mapping[str, ast.Def]
) -> dict[str, ast.Expr]:
    """Return the locals of a rule that are known before its first step, and what they are, in textual order.

    Such a local is assigned once, outside of any block, a value that depends only on hyperparameters, facts of the
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
    """Finds out what has to be known before the first step for an expression to be known.

    Args:
        functions: The functions of the rule.
    """

    def __init__(self, functions: Mapping[str, ast.Def]) -> None:
        self.functions = functions
        self._of_functions: dict[str, set[str] | None] = {}

    def needs(self, node: ast.Expr) -> set[str] | None:
        """Return the names of what an expression is known from; None if it is known in no case."""
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
                return names - {"p", "g"}  # of the values, only their sizes are known
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
        """Return what the body of a function reads from outside; None if its value is known in no case."""
        if name not in self._of_functions:
            self._of_functions[name] = None  # for one that calls itself
            block = body_of(self.functions[name])
            own = {p.name.name for p in self.functions[name].parameters} | {n.name for n in assigned(block)}
            inside = [self.needs(expr) for statement in statements(block) for expr in own_expressions(statement)]
            if all(read is not None for read in inside):
                self._of_functions[name] = set[str]().union(*(read for read in inside if read is not None)) - own
        return self._of_functions[name]


def is_known(node: ast.Expr, free: Collection[str], functions: Mapping[str, ast.Def]) -> bool:
    """Whether the value of an expression is known before the first step, if those of ``free`` are."""
    needs = _QuestionFinder(functions).needs(node)
    return needs is not None and needs <= {*free}


@remembering
def static_names(rule: Rule) -> frozenset[GivenName]:
    """Return the hyperparameters and keys of the param group that some static question may read.

    A few too many do no harm: the key of the variant is then computed again and found unchanged.
    """
    hypers = {h.name for h in rule.hypers}
    known = known_locals(rule)
    questions = [question for top in tops(rule) for node in expressions(top) for question in _questions(node, rule)]
    for statement in statements(_body(rule)):
        match statement:
            case ast.If(branches=branches):
                questions += [condition for condition, _ in branches]
            case ast.Repeat(count=count):
                questions.append(count)
            case _:
                pass
    for function in rule.functions.values():  # a count may be a local of the function
        block = body_of(function)
        if any(isinstance(s, ast.Repeat) for s in statements(block)):
            questions += list(block_expressions(block))
    questions += [s.when for s in rule.states if s.when is not None]
    names = {h.name for h in rule.hypers if h.type is not HyperType.NUMBER}
    told = set[str]()
    while questions:
        for node in expressions(questions.pop()):
            if isinstance(node, ast.Name) and node.name in known and node.name not in told:
                told.add(node.name)
                questions.append(known[node.name])
            elif isinstance(node, ast.Name) and node.name in hypers:
                names.add(node.name)
    return frozenset({*names, *map(GroupKey, group_keys(rule))})


@remembering
def reads_time(rule: Rule) -> bool:
    """Return whether a rule needs the count of a tensor's updates (``first`` alone needs none)."""

    def reads(node: ast.Expr) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) and node.function.name in BUILTINS:
            name = node.function.name
            if name in RANDOMS:
                return True  # each update draws its own
            formula, block = definition(name), body(name)
            inner = expressions(formula) if formula is not None else block_expressions(block or ())
            return any(map(reads, inner))
        return isinstance(node, ast.Name) and node.name == "t"

    if any(isinstance(statement, ast.Every) for statement in statements(_body(rule))):
        return True
    return any(reads(node) for top in tops(rule) for node in expressions(top))


@remembering
def reads_group_time(rule: Rule) -> bool:
    """Return whether some formula of a rule names ``group.t``, the count of a group's steps."""
    nodes = (node for top in tops(rule) for node in expressions(top))
    return any(isinstance(node, ast.Member) and member_name(node) is Count.GROUP for node in nodes)


def _questions(node: ast.Expr, rule: Rule) -> tuple[ast.Expr, ...]:
    """Return the parts of an expression that may be decided statically."""
    match node:
        case ast.Ternary(condition=condition):
            return (condition,)
        case ast.Compare() | ast.Unary(op="not") | ast.Binary(op="and" | "or"):
            return parts(node)
        case ast.Binary(op="??", left=left):
            return (left,)
        case ast.Index():
            return parts(node)[1:]  # what it is an index of is no number
        case ast.Call(function=ast.Name(name=name)) if name == "where" or name in rule.functions:
            return parts(node)
        case ast.Call(function=ast.Name(name=name)) if name in SIZED or (name in BUILTINS and BUILTINS[name].block):
            return parts(node)
        case ast.Call(function=ast.Name(name=name), arguments=arguments) if name in BUILTINS:
            options = [parameter for parameter, default in BUILTINS[name].parameters if default is not None]
            if not BUILTINS[name].reduction or not options:
                return ()
            return tuple(a.value for a in arguments[BUILTINS[name].required :])  # `norm(x, k)`
        case _:
            return ()


def _body(rule: Rule) -> Iterator[ast.Stmt]:
    """Yield the statements of a rule, of its events and of its functions."""
    yield from rule.body
    for event in rule.events.values():
        yield from event
    for function in rule.functions.values():
        yield from body_of(function)


def tops(rule: Rule) -> Iterator[ast.Expr]:
    """Yield every expression of a rule that is not inside another."""
    for statement in statements(_body(rule)):
        yield from own_expressions(statement)
    for state in rule.states:
        yield from (e for e in (state.initial, state.when) if e is not None)


@remembering
def evaluations(rule: Rule) -> frozenset[str]:
    """Return what a rule asks of the closure: ``loss`` and functions of a point or a direction."""
    nodes = (node for top in tops(rule) for node in expressions(top))
    named = (node.function if isinstance(node, ast.Call) else node for node in nodes)
    names = {name.name for name in named if isinstance(name, ast.Name)}
    own = {h.name for h in rule.hypers} | {s.name for s in rule.states} | {n.name for n in assigned(_body(rule))}
    return EVALUATIONS & names - own


@remembering
def draws(rule: Rule) -> bool:
    """Return whether some formula of a rule draws random numbers."""
    nodes = (node for top in tops(rule) for node in expressions(top))
    return any(
        isinstance(n, ast.Call) and isinstance(n.function, ast.Name) and n.function.name in RANDOMS for n in nodes
    )
