"""What a rule needs of a step, found once for each rule: what chooses its variants, what it reads, what it calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optlang.core.definitions import body, definition
from optlang.core.evaluate import member_name
from optlang.core.known import all_statements, known_locals, tops
from optlang.functions.table import BUILTINS, EMPTY, EVALUATIONS, FACT_NAMES, MAKERS, MATRIX_FUNCTIONS, RANDOMS, SIZES
from optlang.identity import Count, GivenName, GroupKey
from optlang.rule import HyperType, Rule, remembering
from optlang.syntax import tree as ast
from optlang.syntax.walk import (
    assigned,
    block_expressions,
    body_of,
    expressions,
    is_matrix_call,
    parts,
    statements,
)

#: Functions whose results have sizes given by an argument.
SIZED = MAKERS | {*RANDOMS, "flip", EMPTY, *(name for name, row in BUILTINS.items() if row.sized)}


@dataclass(frozen=True)
class Needs:
    """What a rule needs.

    Attributes:
        choosing: The hyperparameters and keys of the parameter group that some static question may read. A few too
            many do no harm: the key of the variant is then computed again and found unchanged.
        group_keys: The user's keys that it reads from the parameter group (``group.NAME``).
        facts: The facts of a tensor that it names.
        time: Whether it needs the count of a tensor's updates (``first`` alone needs none).
        group_time: Whether it names ``group.t``, the count of a group's steps.
        calls: What it asks of the closure: ``loss`` and functions of a point or a direction.
        draws: Whether it draws random numbers.
        matrices: Whether some formula is about more than elements and their sums.
        repeats: Whether some part is repeated, as often as must be known before the step.
        requires: Whether it has requirements on tensors.
    """

    choosing: frozenset[GivenName]
    group_keys: tuple[str, ...]
    facts: frozenset[str]
    time: bool
    group_time: bool
    calls: frozenset[str]
    draws: bool
    matrices: bool
    repeats: bool
    requires: bool

    @property
    def shape(self) -> bool:
        """Whether any size of a tensor may choose between variants, not only the facts that are named."""
        return self.matrices or self.repeats or self.requires


@remembering
def needs(rule: Rule) -> Needs:
    """Return what a checked rule needs."""
    nodes = [node for top in tops(rule) for node in expressions(top)]
    every = [*nodes, *(node for r in rule.requirements for node in expressions(r.condition))]
    keys = tuple(dict.fromkeys(n.name for n in every if isinstance(n, ast.Member) and _is_key(n)))
    blocks = tuple(all_statements(rule))
    called = {n.function.name for n in nodes if isinstance(n, ast.Call) and isinstance(n.function, ast.Name)}
    names = {n.name for n in every if isinstance(n, ast.Name)}
    own = {h.name for h in rule.hypers} | {s.name for s in rule.states} | {n.name for n in assigned(blocks)}
    return Needs(
        choosing=frozenset({*_choosing(rule, nodes), *map(GroupKey, keys)}),
        group_keys=keys,
        facts=frozenset((names | called) & {*FACT_NAMES, "eps_of"}),
        time=any(isinstance(s, ast.Every) for s in statements(blocks)) or _reads_time(nodes),
        group_time=any(isinstance(n, ast.Member) and member_name(n) is Count.GROUP for n in nodes),
        calls=EVALUATIONS & (called | names) - own,
        draws=bool(called & {*RANDOMS}),
        matrices=any(is_matrix_call(node, MATRIX_FUNCTIONS | {*SIZES}) for node in nodes),
        repeats=any(isinstance(s, ast.Repeat) for s in statements(blocks)),
        requires=any(r.of_tensors for r in rule.requirements),
    )


def _is_key(node: ast.Member) -> bool:
    return isinstance(member_name(node), GroupKey)


def _reads_time(nodes: Iterable[ast.Expr]) -> bool:
    """Whether some expression reads the count of updates, or is of a function that does."""
    for node in nodes:
        if isinstance(node, ast.Name) and node.name == "t":
            return True
        if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) and node.function.name in BUILTINS:
            name = node.function.name
            formula, block = definition(name), body(name)
            inner = expressions(formula) if formula is not None else block_expressions(block or ())
            if name in RANDOMS or _reads_time(inner):  # each update draws its own
                return True
    return False


def _choosing(rule: Rule, nodes: Iterable[ast.Expr]) -> frozenset[str]:
    """Return the hyperparameters that some static question may read."""
    hypers = {h.name for h in rule.hypers}
    known = known_locals(rule)
    questions = [question for node in nodes for question in _questions(node, rule)]
    for statement in statements(all_statements(rule)):
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
    return frozenset(names)


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
