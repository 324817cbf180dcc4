"""Warnings about rules that compile but are probably wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from optlang.checker.dry_run import DryRun
from optlang.checker.dry_run_values import BAD_LOG, BY_ZERO, NEGATIVE_ROOT, ZERO_BY_ZERO
from optlang.checker.grid import Abandoned, Grid
from optlang.checker.samples import Sample
from optlang.core.needs import needs
from optlang.declarations.findings import Findings
from optlang.expand.histories import counter, sizes_of, starter
from optlang.expand.iterations import UNREAD
from optlang.functions.table import MATRIX_FUNCTIONS
from optlang.rule import Rule
from optlang.source import Span
from optlang.syntax.suggest import nearest
from optlang.syntax.tree import Assign, Binary, Call, Def, Expr, For, Name, StateDecl, Stmt, Unary
from optlang.syntax.walk import (
    assigned,
    body_of,
    called,
    expressions,
    is_matrix_call,
    names_read,
    own_expressions,
    statements,
)

#: The number of samples for dry runs; fewer for a very long rule.
MAX_TRIALS = 8
MAX_STEPS = 6_000


def warn(rule: Rule, samples: Iterable[Sample], findings: Findings) -> None:
    """Add warnings for a rule without errors.

    Args:
        rule: The rule.
        samples: Samples of its hyperparameters and facts, starting with the defaults.
        findings: Collects the warnings.
    """
    reads = set(_all_reads(rule))
    _unused_states(rule, reads, findings)
    _unused_hypers(rule, reads, findings)
    _unused_locals(rule, reads, findings)
    _unused_functions(rule, findings)
    if "g" not in reads and not needs(rule).calls:  # `grad(x)` is a gradient too
        findings.add(
            "W610",
            "the rule never uses the gradient `g`",
            None,
            help="every parameter moves the same way whatever the loss: is `g` missing from the update?",
        )
    if "p" not in reads:
        _forgotten(rule, findings)
    for expr in _all_expressions(rule):
        _eps_twice(expr, findings)
    length = sum(1 for _ in _all_expressions(rule)) + 1
    limit = max(1, min(MAX_TRIALS, MAX_STEPS // length))
    small = [w for w in samples if len(w.shape) <= 2 and w.values["numel"] in (6.0, 1.0)]
    if any(is_matrix_call(expr, MATRIX_FUNCTIONS) for expr in _all_expressions(rule)):
        small.sort(key=lambda sample: not sample.ordinary)
    _first_step(rule, small[:limit], findings)
    _ascent(rule, small[:1], findings)


def _all_expressions(rule: Rule) -> Iterator[Expr]:
    """Yield every expression and subexpression of a rule."""
    for block in _blocks(rule):
        for statement in statements(block):
            for own in own_expressions(statement):
                yield from expressions(own)
    for state in rule.states:
        for part in (state.initial, state.when):
            if part is not None:
                yield from expressions(part)
    for requirement in rule.requirements:
        yield from expressions(requirement.condition)
    for hyper in rule.hypers:
        if hyper.derived is not None:
            yield from expressions(hyper.derived)
    for function in rule.functions.values():
        for parameter in function.parameters:
            if parameter.default is not None:
                yield from expressions(parameter.default)


def _blocks(rule: Rule) -> Iterator[tuple[Stmt, ...]]:
    """Yield the statements of a rule, its events and its functions."""
    yield rule.body
    yield from rule.events.values()
    yield from (body_of(function) for function in rule.functions.values())


def _all_reads(rule: Rule) -> Iterator[str]:
    """Yield the names that a rule reads; a `for` reads every part of its tuple."""
    yield from (e.name for e in _all_expressions(rule) if isinstance(e, Name))
    for block in _blocks(rule):
        yield from (name.name for name in names_read(block))  # including the targets of `x += ...`
        for loop in statements(block):
            if isinstance(loop, For):
                yield from (hyper.name for hyper in rule.keys.get(loop.over_name, ()))


# Unused names -----------------------------------------------------------------------------------------------


def _unused_states(rule: Rule, reads: set[str], findings: Findings) -> None:
    written = {n.name: n.span for body in (*rule.events.values(), rule.body) for n in reversed(list(assigned(body)))}
    decls = [d for d in rule.tree.items if isinstance(d, StateDecl)]
    named = {item.name.name for d in decls for item in d.items if item.key is not None}
    of_histories = {name(history) for history in sizes_of(rule.tree) for name in (counter, starter)}
    for state in rule.states:
        name = state.name
        if state.name in written and state.name in named:
            continue  # a state with a key may be meant for checkpoints
        if name in of_histories:
            continue
        if state.name in written and state.name not in reads:
            findings.add(
                "W601",
                f"state `{name}` is written but never read",
                written[state.name],
                label="this value is never used",
                help=f"use `{name}` in the update, or remove the state; "
                f"to read it from outside, write `state {name} as {name}`",
                related=(("declared here", state.span),) if not rule.inferred else (),
            )
        elif state.name not in written and (state.initial is None or state.name not in reads):
            stays = "stays at its initial value" if state.initial is not None else "stays 0"
            near = nearest(state.name, [n for n in written if n not in {s.name for s in rule.states}])
            findings.add(
                "W605",
                f"state `{name}` is never assigned and {stays}",
                state.span,
                label="declared here, assigned nowhere",
                help=f"did you mean to assign it where `{near}` is assigned?" if near else "assign it, or remove it",
            )


def _forgotten(rule: Rule, findings: Findings) -> None:
    """Warn about a rule whose new `p` does not depend on the old one."""
    last = max((s for s in statements(rule.body) if _sets_parameter(s)), key=lambda s: s.span, default=None)
    if last is None:
        return
    slip = re.search(r"=[-+](?=\s)", (last.span.source or findings.source).excerpt(last.span))
    findings.add(
        "W611",
        "the new value of `p` does not depend on the old one",
        last.span,
        label="`p` is replaced",
        help=f"did you mean `p {slip[0][::-1]} ...`?" if slip else "to change it, write `p -= ...`",
    )


def _sets_parameter(statement: Stmt) -> bool:
    return isinstance(statement, Assign) and any(target.name == "p" for target in statement.targets)


def _unused_hypers(rule: Rule, reads: set[str], findings: Findings) -> None:
    for hyper in rule.hypers:
        if hyper.name not in reads:
            findings.add(
                "W602",
                f"hyperparameter `{hyper.name}` is never used",
                hyper.span,
                label="changing it has no effect",
                help="use it in a formula, or remove it",
            )


def _unused_locals(rule: Rule, reads: set[str], findings: Findings) -> None:
    states = {state.name for state in rule.states}
    for block, own_reads in _scopes(rule, reads):
        for statement in statements(block):
            if not isinstance(statement, Assign) or len(statement.targets) > 1:
                continue
            target = statement.targets[0]
            if target.name in states | {"p", "g", UNREAD} or target.name in own_reads:
                continue
            near = nearest(target.name, states)
            findings.add(
                "W603",
                f"`{target.text}` is assigned but never used",
                target.span,
                label="this value is never used",
                help=f"did you mean the state `{near}`?" if near else "remove it, or use it in the update",
            )


def _scopes(rule: Rule, reads: set[str]) -> Iterator[tuple[tuple[Stmt, ...], set[str]]]:
    yield rule.body, reads
    for body in rule.events.values():
        yield body, {name.name for name in names_read(body)}
    for function in rule.functions.values():
        body = body_of(function)
        yield body, {name.name for name in names_read(body)}


def _unused_functions(rule: Rule, findings: Findings) -> None:
    used: set[str] = set()
    pending = [name.name for body in (rule.body, *rule.events.values()) for name in called(body)]
    pending += [
        node.function.name
        for state in rule.states
        for expr in (state.initial, state.when)
        if expr is not None
        for node in expressions(expr)
        if isinstance(node, Call) and isinstance(node.function, Name)
    ]
    while pending:
        name = pending.pop()
        if name in rule.functions and name not in used:
            used.add(name)
            pending += [callee.name for callee in called(body_of(rule.functions[name]))]
    for name, function in rule.functions.items():
        if name not in used:
            _unused_function(function, findings)


def _unused_function(function: Def, findings: Findings) -> None:
    findings.add(
        "W604",
        f"function `{function.name.text}` is never called",
        function.name.span,
        label="never called",
        help="call it, or remove it",
    )


# Formulas ---------------------------------------------------------------------------------------------------


def _eps_twice(expr: Expr, findings: Findings) -> None:
    """Warn about ``sqrt(v + eps) + eps``."""
    if not (isinstance(expr, Binary) and expr.op == "+"):
        return
    for side, other in ((expr.left, expr.right), (expr.right, expr.left)):
        if not isinstance(other, Name):
            continue
        for node in expressions(side):
            if _is_root(node) and isinstance(node, Call):
                inside = next((t for t in _terms(node.arguments[0].value) if t.name == other.name), None)
                if inside is not None:
                    findings.add(
                        "W608",
                        f"`{other.text}` is added under the root and outside it",
                        inside.span,
                        label="under the root",
                        help="papers add it in one of the two places; remove the other",
                        related=(("and outside here", other.span),),
                    )


def _is_root(node: Expr) -> bool:
    return (
        isinstance(node, Call)
        and isinstance(node.function, Name)
        and node.function.name in ("sqrt", "rsqrt")
        and len(node.arguments) == 1
    )


def _terms(expr: Expr) -> Iterator[Name]:
    """Yield the names that are terms of a sum."""
    if isinstance(expr, Name):
        yield expr
    elif isinstance(expr, Binary) and expr.op in ("+", "-"):
        yield from _terms(expr.left)
        yield from _terms(expr.right)
    elif isinstance(expr, Unary) and expr.op == "+":
        yield from _terms(expr.operand)


# The first step ---------------------------------------------------------------------------------------------

P = (0.3, -1.2, 0.7, 1.1, -0.2, 2.0)
G = (0.5, -0.25, 1.5, -2.0, 1e-3, 0.75)
CASES: tuple[tuple[tuple[float, ...], tuple[float, ...], str], ...] = (
    (P, G, "on the first step"),
    (P, (0.0, *G[1:]), "on the first step where the gradient is 0"),
    (P, (0.0,) * 6, "on the first step if the whole gradient is 0"),
    ((0.0,) * 6, G, "on the first step where the parameter is 0"),
)

TROUBLE = {
    ZERO_BY_ZERO: ("0 is divided by 0", "is 0", "add a small constant such as eps to the denominator"),
    BY_ZERO: ("a number is divided by 0", "is 0", "add a small constant such as eps to the denominator"),
    NEGATIVE_ROOT: (
        "the root of a negative number is taken",
        "of a negative number",
        "take the root of a square or of `abs(x)`",
    ),
    BAD_LOG: ("the logarithm of 0 or a negative number is taken", "not positive", "add a small constant inside"),
}


def _table(sample: Sample, numbers: tuple[float, ...]) -> Grid:
    """Return numbers as a table with the shape of a sample's tensor."""
    shape = sample.shape
    rows = shape[0] if len(shape) == 2 else 1
    cols = shape[-1] if shape else 1
    return Grid(rows, cols, numbers[: rows * cols])


def _first_step(rule: Rule, samples: Iterable[Sample], findings: Findings) -> None:
    """Warn about arithmetic that breaks down in the first step."""
    reported: set[Span] = set()
    for sample in samples:
        for p, g, when in CASES:
            run = DryRun(rule, sample, _table(sample, p), _table(sample, g))
            try:
                run.run(1)
            except Abandoned:
                break
            for span, what in run.trouble.items():
                if span in reported:
                    continue
                reported.add(span)
                message, label, help = TROUBLE[what]
                order = _order_help(rule, span)
                findings.add("W606", f"{message} {when}", span, label=label, help=order or help)


def _order_help(rule: Rule, span: Span) -> str | None:
    """Return a help line for a span that reads a state before its first update."""
    starts = {state.name for state in rule.states if state.initial is None}
    written: dict[str, Span] = {}
    for name in assigned(rule.body):
        written.setdefault(name.name, name.span)
    early = [n for n in names_read(rule.body) if span.holds(n.span)]
    if any(n.name == "t" for n in early) and not any(n.name in ("p", "g") or n.name in written for n in early):
        return "t is 1 on the first step: is this off by one?"
    for name in names_read(rule.body):
        if span.holds(name.span) and name.name in starts and written.get(name.name, span) > name.span:
            return f"`{name.text}` starts at 0 and is updated only after this: update it first, or add eps"
    return None


def _ascent(rule: Rule, samples: Iterable[Sample], findings: Findings) -> None:
    """Warn about a rule that ascends with its defaults."""
    for sample in samples:
        run = DryRun(rule, sample, _table(sample, (0.0,) * 6), _table(sample, G))
        try:
            run.run(2)
        except Abandoned:
            return
        along = run.along.data
        if not run.moved or not all(x >= 0 for x in along) or sum(along) < 1e-12:
            return
        span = max(run.moved, key=lambda place: run.moved[place])
        findings.add(
            "W607",
            "the parameter moves along the gradient, so the loss grows",
            span,
            label="goes up",
            help="to minimise, subtract: `p -= lr*g`",
        )
