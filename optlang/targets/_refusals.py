"""Constructs of rules that targets do not support, and where a rule uses them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from optlang.compiler import CompiledRule, example_facts
from optlang.core.core import Core, Key, ModelSum
from optlang.core.evaluate import member_name
from optlang.core.known import tops
from optlang.core.needs import needs
from optlang.core.sizes import Unfit
from optlang.core.specialise import specialise
from optlang.diagnostics import Diagnostic
from optlang.expand.histories import sizes_of
from optlang.functions.table import EVALUATIONS, MATRIX_FUNCTIONS, RANDOMS, SEARCHES, SIZES
from optlang.identity import GroupKey
from optlang.rule import Rule, Values
from optlang.source import Span
from optlang.syntax import tree as ast
from optlang.syntax.tree import StateScope
from optlang.syntax.walk import block_expressions, expressions, statements
from optlang.targets import Order, refusal


def nodes(rule: Rule) -> Iterator[ast.Expr]:
    """Yield every expression of a rule, in source order of its statements."""
    for top in tops(rule):
        yield from expressions(top)


def called(rule: Rule, names: Collection[str]) -> ast.Expr | None:
    """Return the first call of one of some functions, or the first reference to one of their names."""
    return _first(rule, lambda n: _name_of(n) in names)


def no_shape(compiled: CompiledRule, target: str) -> Diagnostic:
    """Return the error for a rule that accepts none of the shapes that a target tries."""
    asked = [r.condition.span for r in compiled.rule.requirements if r.of_tensors]
    help = "the target tries the rule on tensors of common shapes, but it accepts none of them; relax its requirements"
    return refusal(compiled, target, "a rule for unusual shapes", asked[0] if asked else None, help)


def outside_python(order: Order, target: str) -> list[Diagnostic]:
    """Return the errors for constructs that only Python files support."""
    compiled = order.compiled
    return [
        *routes(compiled, target),
        *whole_vectors(compiled, target),
        *derived_defaults(compiled, target),
        *histories(compiled, target),
        *closure(compiled, target),
        *random_numbers(compiled, target),
    ]


def closure(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the error for a rule that calls the closure."""
    if needs(compiled.rule).calls - {*SEARCHES}:
        node = called(compiled.rule, EVALUATIONS - {*SEARCHES})
        yield refusal(
            compiled,
            target,
            f"the closure (`{_name_of(node) or 'loss'}`)",
            _span(node),
            "a step receives only gradients; compile the rule in Python, or write it with one gradient per step",
        )


def random_numbers(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the error for a rule that draws random numbers."""
    if needs(compiled.rule).draws:
        node = called(compiled.rule, RANDOMS)
        yield refusal(
            compiled,
            target,
            f"random numbers (`{_name_of(node)}`)",
            _span(node),
            "they come from the optimizer's seed, which the file does not hold; add the noise to the gradients instead",
        )


def routes(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the error for a rule that routes parameters to other rules."""
    if compiled.rule.routes:
        others = " and ".join(f"`{other.name}`" for other, _ in compiled.routes)
        others = others or " and ".join(dict.fromkeys(f"`{r.title}`" for r in compiled.rule.routes))
        help = f"emit {others} separately, and pass each its own parameters"
        yield refusal(compiled, target, "`route`", compiled.rule.routes[0].span, help)


def derived_defaults(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the error for a hyperparameter whose default is derived from others."""
    derived = next((hyper.derived for hyper in compiled.rule.hypers if hyper.derived is not None), None)
    if derived is not None:
        help = "give the hyperparameter a number as its default"
        yield refusal(compiled, target, "a default computed from another hyperparameter", derived.span, help)


def whole_vectors(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the errors for constructs that see all parameters as one vector: ``flat``, and line searches."""
    help = "use the class that `optlang.compile` returns"
    flat = next((item for item in compiled.rule.tree.items if isinstance(item, ast.Flat)), None)
    if flat is not None:
        yield refusal(compiled, target, "`flat`", flat.span, help)
    search = called(compiled.rule, SEARCHES)
    if search is not None:
        yield refusal(compiled, target, f"a line search (`{_name_of(search)}`)", search.span, help)


def histories(compiled: CompiledRule, target: str) -> Iterator[Diagnostic]:
    """Yield the error for a rule that keeps a history."""
    kept = next((item for item in compiled.rule.tree.items if isinstance(item, ast.History)), None)
    if kept is not None:
        yield refusal(
            compiled, target, "`history`", kept.span, "use the target `module`, or compile the rule in Python"
        )


def several_passes(order: Order, target: str) -> Iterator[Diagnostic]:
    """Yield the errors for constructs that need more than one pass over a tensor: matrices, sums, periods.

    Constructs that the chosen values disable (such as clipping that is switched off) do not count.
    """
    compiled, rule = order.compiled, order.compiled.rule
    core = _left(order)
    if core is None or rule.routes:
        return
    help = "use the target `torchscript`"
    left = list(block_expressions((*core.start, *core.body)))
    if any(isinstance(n, ModelSum) for n in left):
        found = called(rule, ("total", "gnorm"))
        yield refusal(compiled, target, f"a sum over the whole model (`{_name_of(found)}`)", _span(found), help)
    every = [s for s in statements(core.body) if isinstance(s, ast.Every)]
    if every:
        yield refusal(compiled, target, "`every`", every[0].span, help)
    if core.matrices and not sizes_of(rule.tree):
        found = _first(rule, _is_matrix)
        name = _name_of(found)
        yield refusal(compiled, target, f"matrices (`{name}`)" if name else "matrices", _span(found), help)
    for state in core.states:
        if state.scope is not StateScope.TENSOR:
            owner = "parameter group" if state.scope is StateScope.GROUP else "whole optimizer"
            yield refusal(compiled, target, f"a state of the {owner} (`{state.name}`)", state.span, help)
            break
    for statement in (s for body in rule.events.values() for s in body):
        yield refusal(compiled, target, "`on eval` and `on train`", statement.span, help)
        break
    if any(isinstance(n, Key) for n in left):
        found = _first(rule, lambda n: isinstance(n, ast.Member) and member_name(n) is not None)
        yield refusal(compiled, target, "a key of the parameter group", _span(found), help)


def _left(order: Order) -> Core | None:
    """Return a rule specialized to the chosen values; None if no tensor with this number of dimensions is valid."""
    facts = example_facts(order.ndim)
    group: Values = {GroupKey(key): 1.0 for key in order.compiled.group_keys}
    values = {**order.compiled.defaults(), **group, **order.values, **facts.named()}
    try:
        return specialise(order.compiled.rule, values, facts.shape)
    except Unfit:
        return None


def _is_matrix(node: ast.Expr) -> bool:
    """Return whether an expression works on whole matrices."""
    if isinstance(node, ast.Call):
        return _name_of(node) in MATRIX_FUNCTIONS | {*SIZES}
    return (isinstance(node, ast.Binary) and node.op == "@") or (isinstance(node, ast.Member) and node.name == "T")


def _first(rule: Rule, holds: Callable[[ast.Expr], bool]) -> ast.Expr | None:
    return next((node for node in nodes(rule) if holds(node)), None)


def _name_of(node: ast.Expr | None) -> str | None:
    if isinstance(node, ast.Call):
        node = node.function
    return node.name if isinstance(node, ast.Name) else None


def _span(node: ast.Expr | None) -> Span | None:
    return None if node is None else node.span
