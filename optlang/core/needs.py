"""Static analysis of a rule, done once per rule: what selects its variants, what it reads and what it calls."""

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
from optlang.syntax.walk import assigned, block_expressions, body_of, expressions, is_matrix_call, parts, statements

#: Functions whose arguments include sizes of the result.
SIZED = MAKERS | {*RANDOMS, "flip", EMPTY, *(name for name, row in BUILTINS.items() if row.sized)}


@dataclass(frozen=True)
class Needs:
    """The inputs and capabilities that a rule needs.

    Attributes:
        choosing: The hyperparameters and keys of the param group that static questions may read. This may be too many:
            then the variant's key is recomputed and found unchanged.
        group_keys: The user's keys that the rule reads from the param group (``group.NAME``).
        facts: The facts of a tensor that the rule names.
        time: Whether the rule needs the update count of a tensor (``first`` alone does not).
        group_time: Whether the rule reads ``group.t``, the step count of a group.
        calls: The functions that evaluate the closure: ``loss`` and functions of a point or a direction.
        draws: Whether the rule draws random numbers.
        matrices: Whether any formula goes beyond elements and their sums.
        repeats: Whether there is a ``repeat``, whose count must be known before the step.
        requires: Whether the rule has requirements on tensors.
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
        """Whether any size of a tensor may select the variant, not only the named facts."""
        return self.matrices or self.repeats or self.requires


@remembering
def needs(rule: Rule) -> Needs:
    """Return the needs of a checked rule."""
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
    """Return whether any expression reads the update count, directly or through a function."""
    for node in nodes:
        if isinstance(node, ast.Name) and node.name == "t":
            return True
        if isinstance(node, ast.Call) and isinstance(node.function, ast.Name) and node.function.name in BUILTINS:
            name = node.function.name
            formula, block = definition(name), body(name)
            inner = expressions(formula) if formula is not None else block_expressions(block or ())
            if name in RANDOMS or _reads_time(inner):  # each update draws new numbers
                return True
    return False


def _choosing(rule: Rule, nodes: Iterable[ast.Expr]) -> frozenset[str]:
    """Return the hyperparameters that static questions may read."""
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
    """Return the subexpressions that may be decided statically."""
    match node:
        case ast.Ternary(condition=condition):
            return (condition,)
        case ast.Compare() | ast.Unary(op="not") | ast.Binary(op="and" | "or"):
            return parts(node)
        case ast.Binary(op="??", left=left):
            return (left,)
        case ast.Index():
            return parts(node)[1:]  # the indexed value is not a number
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
