"""Checks rules that consist of routes: ``route R when COND``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optlang.checker.places import ROUTE
from optlang.checker.resolve import Resolver
from optlang.checker.samples import Sample, facts
from optlang.checker.shape_errors import ShapeErrors
from optlang.checker.statements import StatementReader
from optlang.core.evaluate import NotStatic, evaluate
from optlang.diagnostics import Diagnostic, OptlangError
from optlang.syntax.library import rule_names, rule_of
from optlang.syntax.parse import parse
from optlang.syntax.suggest import did_you_mean
from optlang.syntax.tree import OptimizerDecl, Route, Stmt, Text, Tree, Unsupported, Use

#: The sample shape for conditions, and the maximum number of dimensions.
SHAPE = (5, 7)
MAX_NDIM = 9


#: Checks a tree; returns the rule, or None if it has errors, and the findings.
Check = Callable[[Tree], tuple[object | None, list[Diagnostic]]]


def check_routes(tree: Tree, resolver: Resolver, check: Check) -> None:
    """Check a rule with routes: their order, rules and conditions, and that it contains nothing else."""
    findings = resolver.findings
    routes = [item for item in tree.items if isinstance(item, Route)]
    for item in tree.items:
        if isinstance(item, Unsupported):
            resolver.unsupported(item)
        elif not isinstance(item, (Route, OptimizerDecl)):
            findings.add(
                "E412",
                "a rule with routes can contain only routes",
                item.span,
                label="does not belong here",
                help="move it to a rule in another file: each tensor is updated by the rule that it is routed to",
                related=(("a route", routes[0].span),),
            )
            break
    if not any(isinstance(item, OptimizerDecl) for item in tree.items):
        findings.add(
            "E412",
            "a rule with routes needs a name",
            routes[0].span,
            label="expected `optimizer NAME` before this",
            help="write for example `optimizer MuonWithAdamW` on the first line",
        )
    for route in routes:
        _check_rule(route, resolver, check)
        if route.when is not None:
            resolver.expression(route.when, ROUTE)
            sample = Sample(facts(SHAPE), SHAPE)
            StatementReader(resolver.scope, sample, findings, {}, {}, ShapeErrors()).condition(route.when)
    if not findings.has_errors:
        _check_reached(routes, resolver)


def _check_reached(routes: Sequence[Route], resolver: Resolver) -> None:
    """Report the first unreachable route, as far as that depends only on the number of dimensions."""
    left: dict[int, Route | None] = dict.fromkeys(range(MAX_NDIM))  # and the route that takes each number of dimensions
    all_taken: Route | None = None
    for route in routes:
        if all_taken is not None:
            why, last = "every tensor already has a route", all_taken
        else:
            mine = _dimensions(route)
            if mine is None:
                continue
            before = [taken for ndim in mine if (taken := left[ndim]) is not None]
            left |= {ndim: route for ndim in mine if left[ndim] is None}
            all_taken = route if len(mine) == MAX_NDIM else None
            if not mine or len(before) < len(mine) or route.when is None:
                continue  # `otherwise` may be a fallback
            why, last = "these tensors already have a route", before[0]
        resolver.findings.add(
            "E412",
            "this route is never taken",
            route.span,
            label=why,
            help="the first matching route is taken: put narrower routes first, and `otherwise` last",
            related=(("by this one", last.span),),
        )
        return


def _dimensions(route: Route) -> list[int] | None:
    """Return the numbers of dimensions that a route takes; None if it depends on anything else."""
    if route.when is None:
        return list(range(MAX_NDIM))
    try:
        return [ndim for ndim in range(MAX_NDIM) if evaluate(route.when, {"ndim": float(ndim)})]
    except NotStatic:
        return None


def _check_rule(route: Route, resolver: Resolver, check: Check) -> None:
    """Check that a route names a rule with an update, of the library or in a file."""
    if isinstance(route.rule, Text):
        _check_file(route, resolver, check)
        return
    name, known = route.rule.name, rule_names()
    if name not in known:
        near = did_you_mean(name, known)
        resolver.findings.add(
            "E215",
            f"the library has no rule `{route.rule.text}`",
            route.rule.span,
            label="not a rule of the library",
            help=near or "`optlang list` prints the rules of the library; write the name of a file in quotes",
        )
    elif known[name]:
        _routes_itself(route, resolver)


def _check_file(route: Route, resolver: Resolver, check: Check) -> None:
    """Check that a route names a file that holds a valid rule with an update."""
    findings = resolver.findings
    try:
        parsed = parse(rule_of(route.rule, findings.source))
        if any(isinstance(item, Route) for item in parsed.items):
            _routes_itself(route, resolver)
            return
        if not any(isinstance(item, (Stmt, Use)) for item in parsed.items):
            findings.add(
                "E215",
                f"`{route.title}` has no update",
                route.rule.span,
                label="not a rule with an update",
                help="route to a rule that changes `p`; transforms and functions have to be called by a rule",
            )
            return
        errors = [found for found in check(parsed)[1] if found.is_error]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message, help = f"cannot read {route.title}: {reason}", "paths are relative to this file"
        findings.add("E215", message, route.rule.span, label="not a rule file", help=help)
        return
    except OptlangError as error:
        errors = list(error.diagnostics)
    if errors:
        source, span = errors[0].outermost
        findings.add(
            "E215",
            f"{route.title} has errors",
            route.rule.span,
            label=f"line {source.position(span.start)[0]}: {errors[0].message}",
            help=f"`optlang check {route.title}` shows them",
        )


def _routes_itself(route: Route, resolver: Resolver) -> None:
    resolver.findings.add(
        "E215",
        f"`{route.title}` has routes itself",
        route.rule.span,
        label="not a rule with an update",
        help="route to a rule with an update: copy the routes of the other rule here",
    )
